"""What a report says of a search."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from test_json_contract import assert_documented
from test_loop import BUDGET, SETUP, search

from edgekd.builds.search.explain import search_result
from edgekd.core.typed_values import from_plain
from edgekd.evaluation.report.html import render
from edgekd.evaluation.report.page import environment
from edgekd.evaluation.report.search import Spot
from edgekd.evaluation.report.types import BeforeAfter, Report
from edgekd.evaluation.search_result import SearchResult
from edgekd.hardware.budget import Budget


def report_on(search: SearchResult | None) -> str:
    nothing = BeforeAfter(None, None)
    return render(Report("t", "m.onnx", "CPU", "ptq", nothing, nothing, nothing, search=search))


def test_the_document_and_its_section_of_the_report() -> None:
    found, _ = search()
    summary = search_result(found, SETUP, 125.0)
    document = json.loads(json.dumps(summary.document))
    assert_documented(document, "search")
    assert from_plain(SearchResult, document, "search.json") == summary
    page = report_on(summary)
    assert "2 min 5 s" in page.replace("\u00a0", " ")
    assert page.count('class="spot tried"') + page.count('class="spot front"') == summary.thorough - 1
    assert summary.rank_correlation is None
    assert "rank correlation" not in page
    assert page.count('class="spot winner"') == 1
    assert page.count('class="limit"') == 2
    for line in summary.why:
        assert line in page
    for part in ("Why it won", "What would be tried next", "What each choice of the winner costs"):
        assert part in page
    assert "script" not in page


def test_a_failed_candidate_is_listed_with_its_error_and_not_drawn() -> None:
    found, _ = search(Budget(max_bytes=3_000_000, min_fps=300), trials=18)
    summary = search_result(found, replace(SETUP, budget=Budget(max_bytes=2_400_000, min_fps=400)), 1.0)
    failed = replace(summary.points[-1], error="prune: <not> faster", kept=None, bytes=None)
    summary = replace(summary, points=(*summary.points[:-1], failed))
    page = report_on(summary)
    assert "prune: &lt;not&gt; faster" in page
    assert len(re.findall('class="spot', page)) == summary.thorough - (failed.rung == 1)
    assert page.count('class="limit"') == 1


def test_without_a_search_or_a_winner_there_is_no_section() -> None:
    assert "<h2>" not in report_on(None)
    found, _ = search(Budget(max_bytes=1000))
    assert "<h2>" not in report_on(search_result(found, SETUP, 0.0))


def test_a_winner_that_was_tried_in_part_is_said_to_be() -> None:
    found, _ = search(BUDGET, left_s=lambda: 0.0)
    assert search_result(found, SETUP, 0.0).why[-1].startswith("It was not tried in full")


def test_with_four_candidates_tried_in_full_the_rank_correlation_of_estimates_is_reported() -> None:
    found, _ = search(Budget(max_bytes=2_400_000), trials=18)
    summary = search_result(found, SETUP, 1.0)
    assert summary.thorough >= 4
    assert summary.rank_correlation == round(summary.rank_correlation, 3)
    assert -1 <= summary.rank_correlation <= 1
    assert f"measured then is {summary.rank_correlation:.3g}." in " ".join(report_on(summary).split())


@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_scatter_holds_any_number_of_spots(count: int) -> None:
    spots = [Spot(1.0 + at % 7, 90 + at, f"no {at} & more", "tried") for at in range(count)]
    drawn = environment().get_template("charts.html").module.scatter(spots, "MB", "%", None, 95.0)  # type: ignore[attr-defined]
    assert drawn.count("<circle") == count
    assert "no 0 &amp; more" in drawn
    assert "nan" not in drawn
