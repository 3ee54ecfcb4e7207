// Filters, sorting and a reader for the report. Everything here is there without it; nothing leaves the page.
"use strict";

const MISSING = "–";
const UNITS = {kB: 1e3, MB: 1e6, GB: 1e9, "%": 1, B: 1, "µs": 1, ms: 1e3, dB: 1};

// The number in a cell, in one unit for a column; null where there is none.
function numberIn(text) {
  const plain = text.replace(/\s/g, " ").replace(/[▲▼,]/g, "").replace(/−/g, "-").trim();
  const found = /^([+-]?\s*[\d.]+(?:e[+-]?\d+)?)\s*(kB|MB|GB|B|%|µs|ms|dB)?$/.exec(plain);
  return found ? parseFloat(found[1].replace(" ", "")) * (UNITS[found[2]] || 1) : null;
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => {
    const text = row.cells[column].textContent.trim();
    return {row, text, number: numberIn(text), missing: text === MISSING};
  });
  const numeric = keyed.every((each) => each.missing || each.number !== null);
  keyed.sort((a, b) => {
    if (a.missing !== b.missing) return a.missing ? 1 : -1;
    return direction * (numeric ? a.number - b.number : a.text.localeCompare(b.text));
  });
  body.append(...keyed.map((each) => each.row));
}

function sortable(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sortBy(table, column, falling ? -1 : 1);
    });
  });
}

function galleryFilter(form) {
  const gallery = document.getElementById(form.dataset.for);
  const items = Array.from(gallery.children);
  const apply = () => {
    const selected = ["kind", "class", "size"].map((name) => [name, form.elements[name].value]);
    let shown = 0;
    for (const item of items) {
      item.hidden = !selected.every(([name, value]) => !value || item.dataset[name] === value);
      shown += item.hidden ? 0 : 1;
    }
    gallery.classList.toggle("bare", !form.elements.boxes.checked);
    form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  form.hidden = false;
  apply();
}

function layerFilter(form) {
  const rows = Array.from(document.querySelectorAll("table.layers tbody tr"));
  const apply = () => {
    const query = form.elements.text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(query);
      shown += row.hidden ? 0 : 1;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

// Reads out the numbers of one layer: under the pointer, or walked to with the arrow keys.
function reader(bands) {
  const table = document.querySelector("table.layers");
  if (!table) return;
  const heads = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
  const layers = Array.from(table.tBodies[0].rows, (row) => Array.from(row.cells, (cell) => cell.textContent));
  const readout = document.createElement("p");
  const charts = Array.from(bands.querySelectorAll("svg"));
  const lines = charts.map((chart) => {
    const line = document.createElement("span");
    line.className = "cursor";
    chart.parentNode.append(line);
    return line;
  });
  let current = 0;
  readout.className = "readout";
  readout.setAttribute("role", "status");
  bands.after(readout);
  bands.tabIndex = 0;
  bands.setAttribute("role", "group");
  bands.setAttribute("aria-label", "Layers from first to last: arrow keys go from one to the next");
  const show = (index) => {
    current = Math.min(Math.max(index, 0), layers.length - 1);
    for (const line of lines) line.style.left = `${(100 * (current + 0.5)) / layers.length}%`;
    readout.textContent = `${current + 1} of ${layers.length}: ${layers[current].map((text, i) => (i ? `${heads[i]} ${text}` : text)).join(" · ")}`;
    bands.classList.add("read");
  };
  bands.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -layers.length, End: layers.length}[event.key];
    if (!step) return;
    event.preventDefault();
    show(current + step);
  });
  bands.addEventListener("focus", () => show(current));
  bands.addEventListener("pointermove", (event) => {
    const box = charts[0].getBoundingClientRect();
    show(Math.floor(((event.clientX - box.left) / box.width) * layers.length));
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll('form[data-for="gallery"]').forEach(galleryFilter);
document.querySelectorAll('form[data-for="layers"]').forEach(layerFilter);
document.querySelectorAll(".bands").forEach(reader);
