// Poll this page, and replace the parts that have changed. Without this script the page stays as it was when it was
// opened. Nothing leaves this machine.
"use strict";

const INTERVAL_MS = 2000;
const COMPARED = 2;
const FOCUSABLE = "a, button, input, summary, [tabindex]";
const SCROLLING = ".scroll, pre";
const BOXES = ".choice input";
const chosen = Array.from(document.querySelectorAll(`${BOXES}:checked`), (box) => box.value);

function checkChosen(part) {
  for (const box of part.querySelectorAll(BOXES)) box.checked = chosen.includes(box.value);
}

// Two builds are compared: choosing a third replaces the one that was chosen first.
function choose(event) {
  if (!event.target.matches(BOXES)) return;
  const at = chosen.indexOf(event.target.value);
  if (at >= 0) chosen.splice(at, 1);
  if (event.target.checked) chosen.push(event.target.value);
  chosen.splice(0, chosen.length - COMPARED);
  checkChosen(document);
}

// A key that identifies a focusable element among those of its part, also after it has moved.
function keyOf(element) {
  const attribute = (name) => element.getAttribute(name);
  return element.tagName + (attribute("href") || attribute("value") || attribute("aria-label") || element.textContent);
}

// Return a function that opens, focuses and scrolls a new part of the page as the reader had left the old one.
function readerState(old, fresh) {
  const open = Array.from(old.querySelectorAll("details"), (each) => each.open);
  const scrolled = Array.from(old.querySelectorAll(SCROLLING), (each) => [each.scrollLeft, each.scrollTop]);
  const focused = old.contains(document.activeElement) ? keyOf(document.activeElement) : null;
  return () => {
    checkChosen(fresh);
    fresh.querySelectorAll("details").forEach((each, at) => (each.open = open[at] ?? each.open));
    fresh.querySelectorAll(SCROLLING).forEach((each, at) => each.scrollTo(...(scrolled[at] ?? [0, 0])));
    const same = focused && Array.from(fresh.querySelectorAll(FOCUSABLE)).find((each) => keyOf(each) === focused);
    if (same) same.focus({preventScroll: true});
  };
}

function update(main, fresh, sources) {
  const restores = [];
  const parts = Array.from(fresh.children, (part) => {
    const old = main.querySelector(`:scope > #${CSS.escape(part.id)}`);
    if (old && sources.get(part.id) === part.outerHTML) return old;
    sources.set(part.id, part.outerHTML);
    if (old) restores.push(readerState(old, part));
    return part;
  });
  const same = parts.length === main.children.length && parts.every((part, at) => part === main.children[at]);
  if (!same) main.replaceChildren(...parts);
  restores.forEach((restore) => restore());
}

function follow(main) {
  const sources = new Map(Array.from(main.children, (part) => [part.id, part.outerHTML]));
  const connection = document.getElementById("connection");
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, {cache: "no-cache"});
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      update(main, page.querySelector("main"), sources);
      connection.textContent = "";
    } catch {
      connection.textContent = "No answer from edgekd ui: this page is as it was.";
    }
  }, INTERVAL_MS);
}

document.addEventListener("change", choose);
const live = document.querySelector("main[data-live]");
if (live) follow(live);
