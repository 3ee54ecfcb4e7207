"""Measure load time in Chromium and size of a build's report. Goals: at most 2 seconds and 5 MB.

Each page is opened from disk in a fresh browser. The times are the browser's own: to first paint, to complete load
including pictures, and to apply every filter of the gallery once. Pass reports of finished builds:
`report_page.py demo=runs/demo/report.html yolo11n=runs/yolo11n/report.html`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from frame import Blocks, Document, Given, Option, Result, main, table, yes

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
)
LIMIT_MS, LIMIT_BYTES = 2000, 5_000_000
NAVIGATION = "performance.getEntriesByType('navigation')[0]"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
FILTERED = """() => {
  const form = document.querySelector('form[data-for="gallery"]');
  if (!form) return null;
  const began = performance.now();
  for (const select of form.querySelectorAll("select")) {
    for (const option of select.options) {
      select.value = option.value;
      select.dispatchEvent(new Event("change", {bubbles: true}));
      document.body.offsetHeight;
    }
    select.value = "";
  }
  return performance.now() - began;
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a fresh browser; close it at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


def measure(name: str, file: Path, rounds: int) -> Result:
    """Open a page in `rounds` fresh browsers. Return its size, and median and worst times in milliseconds."""
    painted, loaded, filtered = [], [], []
    for _ in range(rounds):
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(file.absolute().as_uri(), wait_until="load")
            page.wait_for_function(f"{NAVIGATION}.loadEventEnd > 0")
            loaded.append(page.evaluate(f"{NAVIGATION}.loadEventEnd"))
            painted.append(page.evaluate(PAINTED))
            filtered.append(page.evaluate(FILTERED))
            pictures, elements = (page.evaluate(f"document.{what}.length") for what in ("images", "all"))
    return {
        "page": name,
        "bytes": file.stat().st_size,
        "pictures": pictures,
        "elements": elements,
        "painted_ms": middle(painted),
        "loaded_ms": round(median(loaded), 1),
        "worst_loaded_ms": round(max(loaded), 1),
        "filtered_ms": middle(filtered),
    }


def middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None


def page(found: Document) -> Blocks:
    yield "# Load time of a report"
    yield f"`{found.command}`, Chromium {found.chromium}, {found.rounds} openings each; medians."
    times = ("painted_ms", "loaded_ms", "worst_loaded_ms", "filtered_ms")
    yield table(
        "report of | size | pictures | elements | painted | loaded | worst | all filters once | "
        f"within {LIMIT_MS / 1000:g} s and {LIMIT_BYTES / 1e6:g} MB",
        (
            f"{row.page} | {row.bytes / 1e6:.2f} MB | {row.pictures} | {row.elements:,} | "
            f"{' | '.join('–' if row[key] is None else f'{row[key]:,.0f} ms' for key in times)} | "
            f"{yes(within(row), 'NO')}"
            for row in found.rows
        ),
    )


def within(row: Document) -> bool:
    return row.bytes <= LIMIT_BYTES and row.worst_loaded_ms <= LIMIT_MS


def run(given: Given) -> Result:
    pairs = [(name, Path(path)) for name, _, path in (each.partition("=") for each in given.pages)]
    with chromium() as browser:
        version = str(browser.version)
    return {"chromium": version, "rows": [measure(name, path, given.rounds) for name, path in pairs]}


if __name__ == "__main__":
    pages = Option("pages", ["demo=runs/demo/report.html"], nargs="*", metavar="NAME=PAGE")
    main(run, page, pages, Option("--rounds", 7), holds=lambda found: all(map(within, found.rows)))
