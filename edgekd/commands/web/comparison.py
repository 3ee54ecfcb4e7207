"""Comparison of two builds: which numbers are better, and which settings differ. No HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from edgekd.builds.ledger import LedgerStage
from edgekd.builds.stage_store import RECORD
from edgekd.commands.compare import Compared, Finished, compare_finished, numbered
from edgekd.commands.web.runs import Run, read_text
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.evaluation.report import text

Verdict = Literal["better", "worse", "same"]
SCORE_NOISE = 0.001
"""Scores from 0 to 1 that differ by less count as equal: the last digit that is shown."""
TIME_NOISE = 0.05
"""Times that differ by less, relative to the first, count as equal: repeated runs differ by as much."""
_ASKED = ("step", "rule", "opset", "head")
"""Inputs of stages that are settings; the others are computed."""


class _Figure(NamedTuple):
    """A number of a build.

    Args:
        name: Label of the number.
        key: The field of `ComparedBuild`.
        shown: Formats the number.
        sign: 1 if more is better, -1 if less is.
        kind: Kind of number, which decides when those of two builds compare.
    """

    name: str
    key: str
    shown: Callable[[Any], str]
    sign: int
    kind: Literal["score", "size", "time", "prediction", "fact"]


_FIGURES = (
    _Figure("mAP50-95", "map50_95", text.accuracy, 1, "score"),
    _Figure("mAP50", "map50", text.accuracy, 1, "score"),
    _Figure("mAP50-95 kept", "kept", text.percent, 1, "score"),
    _Figure("Packed graph", "graph_bytes", text.size, -1, "size"),
    _Figure("Bundle", "bundle_bytes", text.size, -1, "size"),
    _Figure("Latency of a frame, median", "p50_ms", text.milliseconds, -1, "time"),
    _Figure("Frames per second", "fps", text.rate, 1, "time"),
    _Figure("Latency on the target, predicted", "predicted_ms", text.milliseconds, -1, "prediction"),
    _Figure("Time of all stages", "seconds", text.duration, -1, "fact"),
)


@dataclass(frozen=True)
class FigureRow:
    """A number of both builds as text. change: from a to b, in percent. verdict: on b; None if they do not compare."""

    name: str
    a: str
    b: str
    change: str
    verdict: Verdict | None


@dataclass(frozen=True)
class SettingRow:
    """A setting with different values in both builds, as text."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """Two builds: the result of `edgekd compare`, its numbers with verdicts, and the settings that differ."""

    found: Compared
    figures: tuple[FigureRow, ...]
    settings: tuple[SettingRow, ...]

    def named(self, verdict: Verdict) -> list[str]:
        """Return the names of the numbers with a verdict."""
        return [row.name for row in self.figures if row.verdict == verdict]


def compare_runs(runs: tuple[Run, Run], builds: tuple[Finished, Finished]) -> Comparison:
    """Compare two finished builds."""
    found = compare_finished(*builds)
    settings = [dict(_settings(run, build)) for run, build in zip(runs, builds, strict=True)]
    rows = (
        SettingRow(name, *(shown.get(name, text.MISSING) for shown in settings))
        for name in {**settings[0], **settings[1]}
    )
    differing = tuple(row for row in rows if row.a != row.b)
    return Comparison(found, tuple(_figure_row(found, figure) for figure in _FIGURES), differing)


def _figure_row(found: Compared, figure: _Figure) -> FigureRow:
    a, b = (getattr(build, figure.key) for build in (found.a, found.b))
    shown = figure.shown(a), figure.shown(b)
    known = text.known(a) and text.known(b)
    change = f"{b / a - 1:+.1%}".replace("-", "−") if known and a else text.MISSING
    return FigureRow(figure.name, *shown, change, _verdict(found, figure, a, b) if known else None)


def _verdict(found: Compared, figure: _Figure, a: float, b: float) -> Verdict | None:
    """Return the verdict on b compared with a; None if they do not compare."""
    a_target, b_target = found.a.target, found.b.target
    comparable = {
        "score": found.same_data,
        "size": True,
        "time": found.same_host and found.a.basis == found.b.basis,
        "prediction": a_target == b_target,
        "fact": False,
    }
    if not comparable[figure.kind]:
        return None
    noise = {"score": SCORE_NOISE, "time": TIME_NOISE * abs(a)}.get(figure.kind, 0.0)
    if figure.shown(a) == figure.shown(b) or abs(b - a) < noise:
        return "same"
    return "better" if figure.sign * (b - a) > 0 else "worse"


def _settings(run: Run, build: Finished) -> Iterator[tuple[str, str]]:
    """Yield names and values of the settings of a build, and of the versions and machine that it ran with."""
    ledger, lineage = build.ledger, build.manifest.lineage
    facts = {
        "model": ledger.model,
        "data": ledger.data,
        "target": ledger.target,
        "recipe": lineage.recipe,
        "seed": lineage.seed,
        "limit": {line.label: line.text(line.limit) for line in ledger.budget},
        "edgekd": ledger.edgekd,
        "library": dict(lineage.tools),
        "machine": {name: getattr(ledger.host, name) for name in ("cpu", "cores", "threads", "engine")},
    }
    for name, value in facts.items():
        yield from _flat(name, to_plain(value))
    for (name, number), stage in numbered(ledger.stages).items():
        yield from _stage_settings(run, f"{name} {number + 1}" if number else name, stage)


def _stage_settings(run: Run, name: str, stage: LedgerStage) -> Iterator[tuple[str, str]]:
    """Yield names and values of the settings of a stage; nothing if its record is gone or damaged."""
    try:
        folder = run.inner("stages").inner(f"{stage.name}-{stage.key[:16]}")
        for key, value in json.loads(read_text(folder, RECORD))["inputs"].items():
            if key in _ASKED:
                yield from _flat(name if key == "step" else f"{name}, {key}", value)
    except (SpecError, OSError, ValueError, LookupError, AttributeError, RecursionError):
        return


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the scalars and lists in a nested value as text, with their names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}, {key}", inner)
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)
