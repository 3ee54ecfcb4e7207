"""The result of `edgekd bench` as one self-contained HTML page: no script, no network, no external file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.evaluation.report.bench_text import against_lines, bench_lines, bench_rows
from edgekd.evaluation.report.page import render_page
from edgekd.evaluation.report.types import latency_of


def render(title: str, result: Mapping[str, Any], samples: Mapping[str, Sequence[float]]) -> str:
    """Return the page. samples: Milliseconds of every frame, `after` of the artifact, `before` of the other one."""
    other, engine = result["against"], result["host"]["engine"]
    before = [latency_of("before", engine, other, samples["before"])] if other else []
    return render_page(
        "bench.html",
        title=title,
        result=result,
        lines=[*bench_lines(result), *(f"Not reported: {reason}" for reason in result["refused"])],
        latencies=[*before, latency_of("after", engine, result, samples["after"])],
        tables=[("the artifact", bench_rows(result)), *([(other["artifact"], bench_rows(other))] if other else [])],
        against_lines=list(against_lines(other)) if other else [],
    )
