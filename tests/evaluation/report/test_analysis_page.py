"""The page of an analysis: what it says, and that it needs neither script nor network to say it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from test_report import HOSTILE, Page

from edgekd.evaluation.analysis.types import Analysis
from edgekd.evaluation.report.html import render
from edgekd.evaluation.report.types import LayerRow, Report, for_bundle


@pytest.fixture(scope="module")
def hostile_analysis(analysis: Analysis) -> Analysis:
    crops = tuple(replace(c, class_name=HOSTILE, frame=HOSTILE, reason=HOSTILE) for c in analysis.crops[:3])
    classes = tuple(replace(each, name=HOSTILE) for each in analysis.classes)
    return replace(analysis, class_names=(HOSTILE,) * 5, classes=classes, crops=crops)


def test_the_sections_of_an_analysis_are_there(analysed_html: str) -> None:
    headings = Page(analysed_html).headings
    assert headings[4:14] == [
        "Accuracy by object size",
        "Objects lost and gained",
        "Confusion",
        "Confidence",
        "Latency",
        "Layers",
        "Attention",
        "Training",
        "Sample detections",
        "Missing",
    ]


def test_a_bundle_takes_nothing_of_it_along(full_report: Report, analysed_report: Report) -> None:
    assert render(for_bundle(analysed_report)) == render(for_bundle(full_report))


def test_the_one_script_is_ours_and_no_other_may_run(analysed_html: str) -> None:
    html = analysed_html
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    (policy,) = (m["content"] for m in Page(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" == policy
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[^\"]*", "", html).replace(script, ""))
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval", script)


def test_counts_are_those_of_the_analysis(analysed_html: str, analysis: Analysis) -> None:
    page = Page(analysed_html).text
    total = analysis.total
    assert f"Of {total.objects} labelled objects in 8 images" in page
    assert f"{total.lost} were lost" in page
    assert f"{total.false_before} before, {total.false_after} after" in page
    assert total.lost > 0
    assert total.gained > 0


def test_every_picture_says_in_words_what_it_shows(analysed_html: str, analysis: Analysis) -> None:
    images = [image for image in Page(analysed_html).all("img") if "loading" in image]
    words = [image["alt"] or "" for image in images]
    for crop in analysis.crops:
        assert any(crop.class_name in said and crop.frame in said and crop.reason in said for said in words)
    assert all(image["decoding"] == "async" and image["width"] and image["height"] for image in images)
    assert any(said.startswith("After: attention of") for said in words)


def test_the_page_stays_small(analysed_html: str) -> None:
    assert len(analysed_html.encode()) < 5_000_000


def test_hostile_names_stay_text(analysed_report: Report, hostile_analysis: Analysis) -> None:
    layers = tuple(replace(row, name=HOSTILE, op=HOSTILE) for row in analysed_report.layers[:3])
    report = replace(analysed_report, analysis=hostile_analysis, layers=layers, missing=(HOSTILE,))
    page = Page(render(report))
    assert len(page.all("script")) == 1
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.text.count(HOSTILE) > 20


def test_layers_show_what_was_seen_inside(analysed_html: str) -> None:
    html = analysed_html
    page = Page(html).text
    for words in (
        "CKA given → float",
        "CKA float → shipped",
        "Time before",
        "Time after",
        "predicted, not measured",
        "41.5 µs",
    ):
        assert words in page
    bands = [svg for svg in Page(html).all("svg") if svg.get("class") == "band"]
    assert len(bands) == 6
    assert all(svg["role"] == "img" for svg in bands)


def test_training_is_drawn_and_listed_for_each_epoch(analysed_html: str) -> None:
    page = Page(analysed_html).text
    assert "Training of the student" in page
    assert "box_loss: 3 in the first epoch, 0.6 in the last." in page
    assert "Epochbox_loss, lossfeatures, lossfeatures, weightteacher, weight" in page
    assert "boxes: 0.5 in the first epoch, 0.5 in the last." in page


def test_nothing_changed_is_said(analysed_report: Report, analysis: Analysis) -> None:
    same = replace(analysis, crops=(), changes=dict.fromkeys(analysis.changes, 0), confusions=(), shift=None)
    page = Page(render(replace(analysed_report, analysis=same)))
    assert "Nothing was lost or gained" in page.text
    assert not {"Confusion", "Confidence"} & set(page.headings)


def test_many_classes_share_a_matrix(analysed_report: Report, analysis: Analysis) -> None:
    names = tuple(f"kind {at:02}" for at in range(40))
    counts = np.zeros((41, 41), np.int64)
    counts[:, 3] = 5
    many = replace(analysis, class_names=names, tables=(counts, counts))
    page = Page(render(replace(analysed_report, analysis=many))).text
    matrix = page[page.index("Confusion matrix, before") :]
    assert "others" in matrix
    assert len(re.findall(r"kind \d\d", matrix[: matrix.index("missed")])) == 12


def test_a_layer_that_nobody_looked_at_is_dashed(analysed_report: Report) -> None:
    row = LayerRow("stray", "Conv", (1, 1, 1, 1), "float32", 4, 4)
    page = Page(render(replace(analysed_report, layers=(*analysed_report.layers, row)))).text
    assert "strayConv1 × 1 × 1 × 1float3232.004 B4 B–––––" in page
