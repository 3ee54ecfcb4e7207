"""The page of an analysis in a real browser: filters, sorting and charts by keyboard, and what is there without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accessibility import violations

from edgekd.evaluation.report.types import Report


@pytest.fixture(scope="module")
def file(analysed_html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "analysis.html"
    path.write_text(analysed_html, encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(file.as_uri())
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_opens_cleanly(browser: Any, file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.evaluate("Promise.all(Array.from(document.images, i => { i.loading = 'eager'; return i.decode(); }))")
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("Array.from(document.images).every(image => image.naturalWidth > 0)")
    page.close()


@pytest.mark.slow
def test_it_is_accessible_on_a_phone_and_on_a_desk(page: Any) -> None:
    assert violations(page) == []


def shown(page: Any) -> list[dict[str, str]]:
    seen = "Array.from(document.querySelectorAll('#gallery > li')).filter(item => item.offsetParent)"
    found: list[dict[str, str]] = page.evaluate(f"{seen}.map(item => ({{...item.dataset}}))")
    return found


def test_the_gallery_is_filtered_by_keyboard(page: Any) -> None:
    every = shown(page)
    assert {"lost", "gained", "alarm"} <= {each["kind"] for each in every}
    page.get_by_label("Class", exact=True).focus()
    page.keyboard.press("v")  # as a select takes it: the class that begins with it
    assert page.get_by_label("Class", exact=True).input_value() == "vest"
    vests = [each for each in every if each["class"] == "vest"]
    assert 0 < len(vests) < len(every)
    assert shown(page) == vests
    page.get_by_label("Change", exact=True).select_option("lost")
    lost = [each for each in vests if each["kind"] == "lost"]
    assert shown(page) == lost
    assert page.locator("#changes output").inner_text() == f"{len(lost)} of {len(every)} shown"
    page.get_by_label("Change", exact=True).select_option("")
    assert page.locator("li:visible .boxes").first.is_visible()
    page.get_by_label("Boxes").uncheck()
    assert not page.locator("li:visible .boxes").first.is_visible()


def test_tables_are_sorted_by_keyboard(page: Any) -> None:
    table = page.locator("#changes table.sortable")
    table.get_by_role("button", name="Labelled").focus()
    page.keyboard.press("Enter")
    head = table.locator("th", has_text="Labelled")
    numbers = [int(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert (head.get_attribute("aria-sort"), numbers) == ("descending", sorted(numbers, reverse=True))
    page.keyboard.press("Enter")
    numbers = [int(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert (head.get_attribute("aria-sort"), numbers) == ("ascending", sorted(numbers))


def test_units_are_minded_and_what_is_missing_is_last(page: Any, analysed_report: Report) -> None:
    page.locator("#layers summary").click()
    table = page.locator("table.layers")
    table.get_by_role("button", name="After", exact=True).click()
    names = table.locator("tbody th").all_inner_texts()
    largest = max(analysed_report.layers, key=lambda row: row.bytes_after or 0)
    assert names[0] == largest.name
    table.get_by_role("button", name="CKA float → shipped").click()
    column = table.locator("tbody td:last-child").all_inner_texts()
    assert column[-1] == "–", "the first layer has none"
    assert column[:-1] == sorted(column[:-1], key=float, reverse=True)


def test_layers_are_searched(page: Any) -> None:
    page.locator("#layers summary").click()
    page.get_by_label("Only layers with").fill("model.1/")
    assert page.locator("table.layers tbody tr:visible").count() == 1
    assert page.locator("#layers output").inner_text() == "1 of 30 shown"


def test_the_numbers_of_a_layer_are_read_out_by_arrow_keys(page: Any, analysed_report: Report) -> None:
    page.locator(".bands").focus()
    told = page.locator(".readout")
    assert told.inner_text().startswith(f"1 of 30: {analysed_report.layers[0].name}")
    page.keyboard.press("ArrowRight")
    assert told.inner_text().startswith(f"2 of 30: {analysed_report.layers[1].name}")
    assert "Stored as int8" in told.inner_text()
    page.keyboard.press("End")
    assert told.inner_text().startswith("30 of 30")
    page.keyboard.press("ArrowRight")
    assert told.inner_text().startswith("30 of 30")
    line, chart = (page.locator(f".bands {what}").first.bounding_box() for what in (".cursor", "svg"))
    assert line["x"] + 1 == pytest.approx(chart["x"] + chart["width"] * 29.5 / 30, abs=2)
    assert (line["y"], line["height"]) == pytest.approx((chart["y"], chart["height"]), abs=2)


def test_without_a_script_everything_is_there_but_the_controls(browser: Any, file: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    assert page.locator("#gallery > li").count() > 20
    assert page.locator("#gallery > li").first.is_visible()
    assert not page.locator("form").first.is_visible()
    assert page.locator("th button").count() == 0
    page.close()
