"""How soon does the report of a build open in Chromium, and how large is it? 2 seconds and 5 MB are the most.

Each page is opened from disk in a browser that has just been started, as often as --rounds says, and the numbers are
the browser's own: until its content is painted, until everything is loaded, pictures included, and until every filter
of the gallery has been applied once. The pages are of finished builds, by default that of `edgekd demo`:

    edgekd demo
    edgekd build yolo11n.pt --data coco256 --target xavier --recipe mixed --out runs/yolo11n
    python bench/report_page.py demo=runs/demo/report.html yolo11n=runs/yolo11n/report.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, conditions, conditions_lines, table, write_results

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


@dataclass(frozen=True)
class Row:
    """A page: its bytes, pictures and elements, and medians and the worst of several openings, in milliseconds."""

    page: str
    bytes: int
    pictures: int
    elements: int
    painted_ms: float | None
    loaded_ms: float
    worst_loaded_ms: float
    filtered_ms: float | None


def measure(name: str, file: Path, rounds: int) -> Row:
    """Open a page in so many fresh browsers."""
    from playwright.sync_api import sync_playwright

    painted, loaded, filtered = [], [], []
    counts = [0, 0]
    with sync_playwright() as driver:
        for _ in range(rounds):
            browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(file.absolute().as_uri(), wait_until="load")
            page.wait_for_function(f"{NAVIGATION}.loadEventEnd > 0")
            loaded.append(page.evaluate(f"{NAVIGATION}.loadEventEnd"))
            painted.append(page.evaluate(PAINTED))
            filtered.append(page.evaluate(FILTERED))
            counts = [page.evaluate(f"document.{what}.length") for what in ("images", "all")]
            browser.close()
    return Row(
        page=name,
        bytes=file.stat().st_size,
        pictures=counts[0],
        elements=counts[1],
        painted_ms=middle(painted),
        loaded_ms=round(median(loaded), 1),
        worst_loaded_ms=round(max(loaded), 1),
        filtered_ms=middle(filtered),
    )


def middle(values: Sequence[float | None]) -> float | None:
    """The median of the values that there are."""
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None


def page_of(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [
            row["page"],
            f"{row['bytes'] / 1e6:.2f} MB",
            str(row["pictures"]),
            f"{row['elements']:,}",
            *(
                "–" if row[key] is None else f"{row[key]:,.0f} ms"
                for key in ("painted_ms", "loaded_ms", "worst_loaded_ms", "filtered_ms")
            ),
            "yes" if within(row) else "NO",
        ]
        for row in found["rows"]
    ]
    header = ["report of", "size", "pictures", "elements", "painted", "loaded", "worst", "all filters once"]
    return [
        "# How soon a report opens",
        "",
        f"`{found['command']}`, Chromium {found['chromium']}, {found['rounds']} openings each; medians.",
        "",
        *table([*header, f"within {LIMIT_MS / 1000:g} s and {LIMIT_BYTES / 1e6:g} MB"], rows),
        "",
        *conditions_lines(found),
    ]


def within(row: Mapping[str, Any]) -> bool:
    """Whether a page is as small and as quick as it has to be, at its worst."""
    return row["bytes"] <= LIMIT_BYTES and row["worst_loaded_ms"] <= LIMIT_MS


def chromium_version() -> str:
    """Of the browser that is used."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        version = str(browser.version)
        browser.close()
    return version


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every page opens in time and is small enough, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="NAME=PAGE", default=["demo=runs/demo/report.html"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "report_page.json")
    given = parser.parse_args(arguments)
    now = conditions(threads=1)
    pairs = [(name, Path(path)) for name, _, path in (each.partition("=") for each in given.pages)]
    rows = [measure(name, path, given.rounds) for name, path in pairs]
    found = {
        "question": "how soon does the report of a build open in Chromium, and how large is it?",
        "command": " ".join(["python bench/report_page.py", *(f"{name}=RUN/{path.name}" for name, path in pairs)]),
        "chromium": chromium_version(),
        "rounds": given.rounds,
        "rows": [asdict(row) for row in rows],
        **now,
    }
    write_results(given.out, found, page_of(found))
    return 0 if all(map(within, found["rows"])) else 1


if __name__ == "__main__":
    sys.exit(main())
