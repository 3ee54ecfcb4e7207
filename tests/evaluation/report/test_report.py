"""The report page: what it says, what it leaves out, and that hostile text stays text."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.detection.types import Detections
from edgekd.evaluation.report import charts, pictures, text
from edgekd.evaluation.report.html import CHART_ROWS, render, verdict
from edgekd.evaluation.report.types import (
    BeforeAfter,
    BudgetRow,
    ClassRow,
    LayerRow,
    Report,
    SizeRow,
    StageRow,
    Training,
    for_bundle,
)

HOSTILE = """<script>alert("1")</script>&'</style><img src=x onerror=alert(1)>"""
VOID = {"meta", "link", "img", "input", "wbr"}


class Page(HTMLParser):
    """The elements of a page, its headings and its text; fails where elements do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        layout = "\n" in data and data.isspace()
        if self._open and self._open[-1] != "style" and not layout:
            self.text += data.replace(text.NBSP, " ")
        if self._open and self._open[-1] in ("h1", "h2"):
            self.headings.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]


BARE = Report("t", "m.onnx", "CPU", "ptq", BeforeAfter(None, None), BeforeAfter(None, None), BeforeAfter(None, None))


def test_the_same_report_gives_the_same_bytes(full_report: Report) -> None:
    assert render(full_report).encode() == render(full_report).encode()


def test_every_section_is_there_in_order(full_report: Report) -> None:
    assert Page(render(full_report)).headings == [
        "yolo11n for Jetson AGX Xavier",
        "Budget",
        "Stages",
        "Accuracy by class",
        "Accuracy by object size",
        "Latency",
        "Size by layer",
        "Sample detections",
        "Notes",
        "Provenance",
    ]


def test_the_headline_numbers_are_formatted(full_report: Report) -> None:
    page = Page(render(full_report)).text
    for words in (
        "0.446was 0.45198.9 % kept",
        "2.91 MBwas 10.7 MB3.7× smaller",
        "× faster",
        "3.41 MBlimit 12.0 MB28.4 %",
    ):
        assert words in page


def test_without_content_only_the_headline_is_left_and_missing_numbers_are_dashes() -> None:
    page = Page(render(BARE))
    assert page.headings == ["t"]
    assert "was –" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text


def test_the_bundle_copy_holds_nothing_that_changes_from_run_to_run(full_report: Report) -> None:
    other_run = replace(
        full_report,
        bundle_bytes=1,
        stages=tuple(replace(row, seconds=9.9, cached=not row.cached) for row in full_report.stages),
        budget=tuple(replace(row, value="1 FPS") if row.timed else row for row in full_report.budget),
        latencies=(),
    )
    html = render(for_bundle(full_report))
    assert html == render(for_bundle(other_run))
    page = Page(html)
    assert "Latency" not in page.headings
    assert not {"FPS", "Time", "stand-in", " ms"} & set(re.findall(r"FPS|Time|stand-in| ms", page.text))


@pytest.mark.parametrize("bundled", [False, True])
def test_nothing_points_outside_the_file(full_report: Report, bundled: bool) -> None:
    html = render(for_bundle(full_report) if bundled else full_report)
    assert not re.search(r"(https?:)?//\w|@import|url\(", re.sub(r"base64,[^\"]*", "", html))
    page = Page(html)
    assert not page.all("script")
    addresses = [a[key] or "" for _, a in page.elements for key in ("src", "href") if key in a]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)


def test_hostile_text_stays_text(full_report: Report) -> None:
    hostile = replace(
        full_report,
        **dict.fromkeys(("title", "model", "target", "recipe"), HOSTILE),
        stages=(StageRow(HOSTILE, 1.0, 1, 0.1, 0.1, note=HOSTILE),),
        budget=(BudgetRow(HOSTILE, HOSTILE, HOSTILE, False, "measured"),),
        classes=tuple(ClassRow(HOSTILE, 1, 0.1, 0.2) for _ in range(30)),
        sizes=tuple(replace(row, name=HOSTILE) for row in full_report.sizes),
        layers=(LayerRow(HOSTILE, HOSTILE, (1,), HOSTILE, 1, 1),),
        latencies=tuple(replace(row, engine=HOSTILE) for row in full_report.latencies),
        class_names=(HOSTILE,) * 5,
        pictures=tuple(replace(row, title=HOSTILE) for row in full_report.pictures),
        provenance={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )
    plain, page = Page(render(full_report)), Page(render(hostile))
    assert not page.all("script")
    assert len(page.all("img")) == len(plain.all("img"))
    assert len(page.all("style")) == 1
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.text.count(HOSTILE) > 40


@given(st.text(), st.text())
def test_any_text_is_given_back_in_elements_and_attributes(content: str, value: str) -> None:
    page = Page(render(replace(BARE, training=(Training(value, ({content: 1.0},)),))))
    assert f"Epoch{content}, loss".replace(text.NBSP, " ") in page.text
    assert f"{value}, by epoch" in [element.get("aria-label") for element in page.all("div")]


def test_tables_are_captioned_and_charts_are_named_or_hidden(full_report: Report) -> None:
    page = Page(render(full_report))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert page.all("img")
    assert all(image["alt"] for image in page.all("img"))
    assert sum("role" in svg for svg in page.all("svg")) == len(page.all("title")) - 1
    html = render(full_report)
    outer = [svg for svg in re.findall(r"<svg[^>]*>", html) if "overflow=" not in svg]
    assert all('aria-hidden="true"' in svg or 'role="img"' in svg for svg in outer)


def test_the_basis_of_a_latency_is_said_and_explained(full_report: Report) -> None:
    predicted = tuple(replace(row, basis="predicted", samples_ms=()) for row in full_report.latencies)
    page = Page(render(replace(full_report, latencies=predicted, budget=()))).text
    assert "predicted: calculated for the target; nothing was run there." in page
    assert "stand-in" not in page
    assert "FPS predicted" in page


def test_the_few_frames_beyond_the_scale_are_counted(full_report: Report) -> None:
    after = full_report.latencies[1]
    page = Page(
        render(replace(full_report, latencies=(replace(after, samples_ms=(*after.samples_ms, 900.0, 950.0)),)))
    ).text
    assert "2 slower frames lie beyond the right edge." in page


def test_rare_classes_are_marked_and_have_a_mean_of_their_own(full_report: Report) -> None:
    rows = (
        ClassRow("often", 90, 0.9, 0.9),
        ClassRow("seldom", 3, 0.5, 0.2, True),
        ClassRow("never", 0, None, None, True),
    )
    page = Page(render(replace(full_report, classes=rows, sizes=()))).text
    assert "3 objects, rare" in page
    assert "90 objects, rare" not in page
    assert "went from a mean of 0.500 to 0.200" in page
    assert "rare" not in Page(render(replace(full_report, classes=rows[:1], sizes=()))).text


def test_eighty_classes_show_those_that_changed_most_and_keep_all_in_a_table(full_report: Report) -> None:
    rows = tuple(ClassRow(f"kind {i:02}", i, 0.5, 0.5 + (i - 40) / 1000) for i in range(80))
    html = render(replace(full_report, classes=rows))
    chart = html[html.index("Accuracy by class") : html.index("All 80 classes")]
    plotted = re.findall(r"kind (\d\d)", chart)
    assert len(plotted) == CHART_ROWS
    assert [int(number) for number in plotted] == [*range(11), *range(71, 80)]
    everything = html[html.index("All 80 classes") : html.index("Accuracy by object size")]
    assert len(re.findall(r"kind \d\d", everything)) == 80


def test_a_class_without_numbers_is_last_and_dashed(full_report: Report) -> None:
    rows = (ClassRow("absent", 0, None, None), ClassRow("nan", 3, float("nan"), 0.4), ClassRow("gain", 9, 0.1, 0.3))
    page = Page(render(replace(full_report, classes=rows, sizes=()))).text
    assert page.index("gain") < page.index("absent 0 objects") < page.index("nan 3 objects")
    assert "nan 3 objects–0.400–" in page


def test_layers_are_summed_by_precision(full_report: Report) -> None:
    page = Page(render(full_report)).text
    assert "float3241.05 MB1.05 MB0.0 %" in page
    assert "int8263.23 MB809 kB100.0 %" in page


@pytest.mark.parametrize(
    ("met", "state", "words"),
    [
        ([], "open", "No budget was set"),
        ([True, True], "met", "Budget met"),
        ([True, None], "open", "Budget met so far; not checked: b1"),
        ([None, None], "open", "Budget not checked: b0, b1"),
        ([None, False], "missed", "Budget missed: b1 is 2, limit 3"),
    ],
)
def test_one_miss_decides_the_verdict(met: list[bool | None], state: str, words: str) -> None:
    assert verdict([BudgetRow(f"b{i}", "3", "2", m, None) for i, m in enumerate(met)]) == (state, words)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.size(None), "–"),
        (text.size(0), "0 B"),
        (text.size(999), "999 B"),
        (text.size(999_499), "999 kB"),
        (text.size(999_600), "1.00 MB"),
        (text.size(10_742_103), "10.7 MB"),
        (text.size(2.5e12), "2,500 GB"),
        (text.milliseconds(8.4217), "8.42 ms"),
        (text.milliseconds(0.01234), "0.0123 ms"),
        (text.milliseconds(9.999), "10.0 ms"),
        (text.milliseconds(float("inf")), "–"),
        (text.rate(1234.5), "1,230 FPS"),
        (text.duration(0.0421), "0.04 s"),
        (text.duration(9.996), "10.0 s"),
        (text.duration(125.2), "2 min 5 s"),
        (text.difference(-0.0123), "▼ −0.012"),
        (text.difference(0.0123), "▲ +0.012"),
        (text.difference(-0.0001), "0.000"),
        (text.percent(BeforeAfter(0.0, 0.3).share), "–"),
        (text.times(0.4, "faster", "slower"), "2.5× faster"),
        (text.times(1.04, "faster", "slower"), "1.04× slower"),
        (text.times(1.0, "faster", "slower"), "unchanged"),
        (text.times(0.0, "faster", "slower"), "–"),
    ],
)
def test_numbers_are_readable(shown: str, expected: str) -> None:
    assert shown.replace(text.NBSP, " ") == expected


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_their_range_evenly(low: float, extent: float) -> None:
    ticks = charts.nice_ticks(low, low + extent)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + extent - 1e-6 * step
    assert np.allclose(np.diff(ticks), step)
    assert 2 <= len(ticks) <= 9


def test_a_dumbbell_places_both_marks_on_the_scale() -> None:
    html = render(replace(BARE, sizes=(SizeRow("small", 0.25, 0.75),)))
    assert 'cx="31.25%"' in html, "the scale ends at 0.8"
    assert re.search(r'x="93.75%"[^>]*class="after"', html)
    assert html.count("<circle") == 2, "one is in the legend"
    assert render(replace(BARE, sizes=(SizeRow("small", None, 0.75),))).count("<circle") == 1


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_pictures_are_jpegs_of_limited_size_and_the_page_stays_small(full_report: Report) -> None:
    four = replace(full_report, pictures=full_report.pictures * 2)
    html = render(four)
    assert len(html.encode()) < 1_500_000
    images = Page(html).all("img")
    assert len(images) == 8
    assert decoded(images[0]["src"] or "").shape == (360, 640, 3)
    assert (images[0]["width"], images[0]["height"]) == ("640", "360")


def test_pure_noise_still_gives_a_small_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    assert len(pictures.data_uri(noise)) < 4 / 3 * 200_000


def test_only_sure_detections_are_drawn_and_told() -> None:
    image = np.full((640, 640, 3), 90, np.uint8)
    boxes = np.array([[100, 100, 300, 300], [400, 400, 600, 600]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.1], np.float32), np.array([0, 7]))
    drawn = pictures.draw(image, np.empty((0, 4), np.float32), found, ("person",))
    assert (drawn[60:310, 90:310] != 90).any()
    assert (drawn[380:, 380:] == 90).all()
    assert (image == 90).all()
    assert pictures.summary(found, ("person",)) == "1 person"


def test_truth_is_drawn_at_the_scale_of_the_picture() -> None:
    image = np.zeros((1280, 1280, 3), np.uint8)
    nothing = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    drawn = pictures.draw(image, np.array([[400, 400, 800, 800]], np.float32), nothing, ())
    ys, xs = np.nonzero(drawn.max(axis=2) > 200)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == pytest.approx((200, 200, 400, 400), abs=3)
    assert pictures.summary(nothing, ()) == "nothing found"


def test_a_label_that_the_letters_cannot_show_is_the_class_number() -> None:
    assert pictures.label(("каска", "vest"), 0) == "class 0"
    assert pictures.label(("каска", "vest"), 1) == "vest"
    assert pictures.label((), 3) == "class 3"


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_letters_has_enough_contrast_in_both_schemes() -> None:
    css = files("edgekd.evaluation.report").joinpath("report.css").read_text("utf-8")
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]
    assert len(schemes) == 2
    for scheme in schemes:
        for name in ("text", "muted", "before", "after", "good", "bad", "open"):
            for ground in ("page", "surface"):
                high, low = sorted((luminance(scheme[name]), luminance(scheme[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)
