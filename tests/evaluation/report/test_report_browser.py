"""The report page in a real browser, at desk and phone width, in both colour schemes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accessibility import overlaps, violations
from running import Built

from edgekd.evaluation.report.html import render
from edgekd.evaluation.report.page import environment
from edgekd.evaluation.report.search import Spot
from edgekd.evaluation.report.types import ClassRow, Report, for_bundle

SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def wide(report: Report) -> Report:
    """The report at its widest: long names everywhere, 80 classes."""
    long = "a_very_long_name_without_any_space_" * 5
    classes = tuple(ClassRow(f"{long}{i}", 10_000, 0.5, 0.5 + i / 1000) for i in range(80))
    layers = tuple(replace(row, name=long) for row in report.layers)
    return replace(
        report, title=long, model=long, notes=(long,), classes=classes, layers=layers, provenance={long: long}
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["full", "bundled", "wide"])
def test_page_opens_cleanly(browser, full_report: Report, tmp_path: Path, kind: str, size: str, scheme: str) -> None:
    report = {"full": full_report, "bundled": for_bundle(full_report), "wide": wide(full_report)}[kind]
    file = tmp_path / "report.html"
    file.write_text(render(report), encoding="utf-8")
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")

    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("h1").inner_text() == report.title
    assert ("Latency" in page.locator("h2").all_inner_texts()) == (kind != "bundled")
    widths = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
    assert len(widths) == 4
    assert all(widths)
    page.close()


@pytest.mark.slow
def test_the_report_of_a_build_is_accessible_on_a_phone_and_on_a_desk(browser, tiny_build: Built) -> None:
    page = browser.new_page()
    page.goto((tiny_build.out / "report.html").as_uri())
    assert violations(page) == []
    page.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("largest", [7.0, 12.0, 950.0])
def test_labels_of_a_scatter_do_not_overlap(
    browser, full_report: Report, tmp_path: Path, largest: float, size: str
) -> None:
    macros = environment().get_template("charts.html").module
    spots = [Spot(0.9 * largest, 97.0, "low", "tried"), Spot(largest, 101.0, "high", "winner")]
    drawn = macros.scatter(spots, "MB of the bundle", "% of the mAP50-95 kept", None, 98.0)
    file = tmp_path / "report.html"
    file.write_text(render(full_report).replace("</main>", f'<figure class="chart">{drawn}</figure></main>'), "utf-8")
    page = browser.new_page(viewport=SIZES[size])
    page.goto(file.as_uri())
    assert page.locator("text.tick", has_text="MB of the bundle").count() == 1
    assert overlaps(page) == []
    page.close()
