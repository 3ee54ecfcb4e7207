"""Whether a build is good enough: its budget against what was reached. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.spec import Budget


@dataclass(frozen=True)
class Line:
    """One limit of a budget.

    name: `max_bytes`, `min_retention` or `min_fps`; met: None where the value could not be had;
    basis: `measured`, or `stand-in` where another machine than the target ran it.
    """

    name: str
    limit: float
    value: float | None
    met: bool | None
    basis: str

    @property
    def label(self) -> str:
        """What people call it."""
        return _LABELS[self.name]

    def text(self, value: float | None) -> str:
        """A value of this line with its unit."""
        if value is None:
            return "-"
        if self.name == "max_bytes":
            return f"{value / 1e6:.2f} MB" if value >= 1e4 else f"{value:.0f} bytes"
        return f"{value:.1%}" if self.name == "min_retention" else f"{value:.1f}"


_LABELS = {
    "max_bytes": "bundle size",
    "min_retention": "mAP50-95 kept",
    "min_fps": "frames per second",
}


def judge(budget: Budget, *, bundle_bytes: int, retention: float | None, fps: float | None, basis: str) -> list[Line]:
    """A line per limit. Frames per second of a stand-in say nothing about the target: such a line stays undecided."""
    lines = []
    if budget.max_bytes is not None:
        lines.append(Line("max_bytes", budget.max_bytes, bundle_bytes, bundle_bytes <= budget.max_bytes, "measured"))
    if budget.min_retention is not None:
        reached = None if retention is None else retention >= budget.min_retention
        lines.append(Line("min_retention", budget.min_retention, retention, reached, "measured"))
    if budget.min_fps is not None:
        reached = fps >= budget.min_fps if fps is not None and basis == "measured" else None
        lines.append(Line("min_fps", budget.min_fps, fps, reached, basis))
    return lines


def verdict(lines: list[Line]) -> bool | None:
    """Whether the budget is met: False if a line is missed, else None if one is undecided, else True."""
    reached = [line.met for line in lines]
    if False in reached:
        return False
    return None if None in reached else True


LEVERS = {
    "max_bytes": "a smaller model of the family, or a larger --max-size",
    "min_retention": 'more calibration images (--calibration), ranges = "entropy" in a recipe, or a lower --keep',
    "min_fps": "a smaller model of the family, or a smaller input size",
}
"""What to try next where a line is missed."""
