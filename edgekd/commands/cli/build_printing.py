"""Printed text about a build: before and after, basis of the numbers, budget, files, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgekd.commands.cli.tables import megabytes, print_box, print_refused, print_table, rate_text, score_text

if TYPE_CHECKING:
    from edgekd.builds.run import BuildResult
    from edgekd.evaluation.search_result import SearchResult
    from edgekd.hardware.budget import LimitResult

_SEARCHED: tuple[tuple[str, Callable[..., str]], ...] = (
    ("kept", "{:.1%}".format),
    ("bytes", megabytes),
    ("latency_ms", lambda value: "-" if value is None else f"{value:.2f}"),
    ("energy_mj", lambda value: "-" if value is None else f"{value:.0f}"),
)


def print_outcome(outcome: BuildResult) -> None:
    """Print the result of `edgekd build`."""
    record, timing = outcome.record, outcome.machine.timing.result
    if record.request.search is not None:
        print_searched(record.request.search)
    print_box(outcome.bundle.name, ["", "before", "after"], _rows(outcome), tuple(_origins(outcome)))
    print_budget(outcome.budget)
    print_refused(timing.after.refused)
    print(f"bundle: {outcome.bundle}\nreport: {outcome.report}\nledger: {outcome.ledger}")
    if outcome.met is not False:
        device = "local" if record.request.target.kind == "cpu" else "ssh://CAMERA"
        print(f"next: edgekd engine {shlex.quote(str(outcome.bundle))} --device {device}")


def _rows(outcome: BuildResult) -> list[list[str]]:
    """Return the rows of a build's table: label, given detector, graph that ships."""
    record, timing = outcome.record, outcome.machine.timing.result
    scores = [score.result for score in record.scores]
    boxes = [score.boxes for score in scores if score.boxes]
    timed = [f"{each.total_ms.p50:.1f} ms, {rate_text(each.fps)}" for each in (timing.before, timing.after)]
    before_bytes, packed_bytes = outcome.graph_bytes
    return [
        ["mAP50-95", *(score_text(score.map50_95) for score in scores)],
        ["mAP50", *(score_text(score.map50) for score in scores)],
        *([["boxes, mAP50-95", *(score_text(each.map50_95) for each in boxes)]] if boxes else []),
        ["graph", megabytes(before_bytes), f"{megabytes(packed_bytes)} packed"],
        ["bundle", "", megabytes(outcome.bundle.stat().st_size)],
        [f"latency p50 ({timing.before.basis})", *timed],
    ]


def _origins(outcome: BuildResult) -> Iterator[str]:
    """Yield a line for each kind of number: what it was measured on."""
    record, compiled, timing = outcome.record, outcome.machine.compiled.result, outcome.machine.timing.result
    yield f"accuracy: measured on {record.scores[1].result.images} images with ONNX Runtime on the CPU"
    host, title = timing.host, record.request.target.title
    stand_in = "" if timing.before.basis == "measured" else f", a stand-in for the {title}"
    yield f"latency: measured on {host.cpu}, {host.threads} threads, {host.engine}{stand_in}"
    yield f"engine: {compiled.note}"
    if compiled.check:
        yield f"parser and builder check by TensorRT for RTX: {compiled.check}"


def print_searched(result: SearchResult) -> None:
    """Print the result of a search."""
    front = [point for point in result.points if point.front]
    rows = [[point.text, *(text(getattr(point, key)) for key, text in _SEARCHED)] for point in front]
    print_table(["the front", "kept", "bundle", "ms a frame", "mJ a frame"], rows)
    saved, tried = result.trainings_saved, result.tried
    print(f"{tried} of {result.candidates} candidates tried, {result.refused} refused; {saved} trainings saved")
    if result.rank_correlation is not None:
        print(f"rank correlation of estimated and measured accuracy: {result.rank_correlation:.2f}")
    print(f"search ended: {result.reason}\nwinner: {result.winner.text if result.winner else 'none'}")
    for line in result.why:
        print(line)


def print_budget(lines: Sequence[LimitResult]) -> None:
    """Print each limit, the value that was reached, and the verdict."""
    marks = {True: "met", False: "MISSED", None: "undecided here"}
    for line in lines:
        value, limit = line.texts
        print(f"budget, {line.label}: limit {limit}, reached {value} ({line.basis}): {marks[line.met]}")
