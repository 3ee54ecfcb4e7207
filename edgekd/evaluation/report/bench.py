"""The result of `edgekd bench` as one self-contained HTML page: no script, no network, no external file."""

from __future__ import annotations

from edgekd.evaluation.bench_result import BenchResult
from edgekd.evaluation.report.bench_text import against_lines, bench_lines, bench_rows
from edgekd.evaluation.report.page import render_page
from edgekd.evaluation.report.types import latency_of


def render(title: str, bench: BenchResult) -> str:
    """Return the page."""
    result, other, engine = bench.result, bench.against, bench.host.engine
    latencies = [latency_of("after", engine, result, bench.timings["artifact", "camera"].total_ms.tolist())]
    tables = [("the artifact", bench_rows(result))]
    if other:
        samples_ms = bench.timings["against", "camera"].total_ms.tolist()
        latencies.insert(0, latency_of("before", engine, other.result, samples_ms))
        tables.append((other.artifact, bench_rows(other.result)))
    return render_page(
        "bench.html",
        title=title,
        bench=bench,
        lines=[*bench_lines(bench), *(f"Not reported: {reason}" for reason in result.refused)],
        latencies=latencies,
        tables=tables,
        against_lines=list(against_lines(other)) if other else [],
    )
