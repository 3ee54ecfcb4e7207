"""The limits of a build, and their comparison with the values that it reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Basis = Literal["measured", "stand-in", "predicted"]
LimitName = Literal["max_bytes", "max_graph_bytes", "min_retention", "min_output", "min_fps", "max_energy_mj"]
MORE_DIGITS = 4
"""Maximum number of additional decimals that show that a limit is missed: with them, sizes in MB show single bytes."""


@dataclass(frozen=True)
class Budget:
    """The limits of a build; None for no limit.

    Args:
        max_bytes: Maximum size of the bundle in bytes.
        min_retention: Minimum share of the given detector's mAP50-95, 0 to 1.
        min_fps: Minimum frames per second, one after the other, from frame to detections.
        max_energy_mj: Maximum millijoules of the whole device for a frame.
    """

    max_bytes: int | None = None
    min_retention: float | None = None
    min_fps: float | None = None
    max_energy_mj: float | None = None

    @property
    def any(self) -> bool:
        """True if there is any limit."""
        return any(limit is not None for limit in vars(self).values())


@dataclass(frozen=True)
class LimitResult:
    """One limit of a budget.

    Args:
        name: `max_bytes` (of a bundle), `max_graph_bytes` (of a packed graph), `min_retention` (mAP50-95 after /
            before), `min_output` (1 - the relative error of the outputs), `min_fps` or `max_energy_mj` (of a frame).
        limit: The limit as given.
        value: The value that was reached.
        met: Whether the limit is met; null where that is undecided: without a value, or if it is not `measured`.
        basis: `measured`, `stand-in` where another machine than the target ran it, or `predicted`.
    """

    name: LimitName
    limit: float
    value: float | None
    met: bool | None
    basis: Basis

    @property
    def is_size(self) -> bool:
        """True for a limit in bytes."""
        return self.name in ("max_bytes", "max_graph_bytes")

    @property
    def is_accuracy(self) -> bool:
        """True for a share, 0 to 1, of the mAP or of the outputs."""
        return self.name in ("min_retention", "min_output")

    @property
    def label(self) -> str:
        """Name for users."""
        return LABELS[self.name]

    @property
    def texts(self) -> tuple[str, str]:
        """Value and limit with their units; for a missed limit with enough decimals to show the difference."""
        more = range(MORE_DIGITS + 1) if self.met is False else range(1)
        pairs = [(self.text(self.value, digits), self.text(self.limit, digits)) for digits in more]
        return next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])

    def text(self, value: float | None, more_digits: int = 0) -> str:
        """Return a value with the unit of this limit; `-` for None."""
        if value is None:
            return "-"
        if self.is_size:
            return size_text(value, more_digits)
        if self.name == "max_energy_mj":
            return f"{value:.{more_digits}f} mJ"
        return f"{value:.{1 + more_digits}%}" if self.is_accuracy else f"{value:.{1 + more_digits}f}"


def size_text(count: float, more_digits: int = 0) -> str:
    """Return a size as text: 12.30 MB, or 1234 bytes."""
    return f"{count / 1e6:.{2 + more_digits}f} MB" if count >= 1e4 else f"{count:.0f} bytes"


LABELS = {
    "max_bytes": "bundle size",
    "max_graph_bytes": "packed graph",
    "min_retention": "mAP50-95 kept",
    "min_output": "output kept",
    "min_fps": "frames per second",
    "max_energy_mj": "energy of a frame",
}


def judge(
    budget: Budget,
    *,
    size: int,
    kept: float | None,
    fps: float | None = None,
    basis: Basis = "measured",
    energy_mj: float | None = None,
    size_limit: LimitName = "max_bytes",
    kept_limit: LimitName = "min_retention",
) -> list[LimitResult]:
    """Return a result for each limit of a budget.

    `met` is None for frames per second that were not measured on the target, and for energy, which is predicted.

    Args:
        size: Bytes of the bundle, or of the packed graph; `size_limit` is the name of that limit.
        kept: Share of the score or of the outputs, 0 to 1; `kept_limit` is the name of that limit.
        fps: Frames per second, on the machine that `basis` names.
        energy_mj: Predicted energy of a frame in millijoules.
    """
    lines = []
    if budget.max_bytes is not None:
        lines.append(LimitResult(size_limit, budget.max_bytes, size, size <= budget.max_bytes, "measured"))
    if budget.min_retention is not None:
        reached = None if kept is None else kept >= budget.min_retention
        lines.append(LimitResult(kept_limit, budget.min_retention, kept, reached, "measured"))
    if budget.min_fps is not None:
        reached = fps >= budget.min_fps if fps is not None and basis == "measured" else None
        lines.append(LimitResult("min_fps", budget.min_fps, fps, reached, basis))
    if budget.max_energy_mj is not None:
        lines.append(LimitResult("max_energy_mj", budget.max_energy_mj, energy_mj, None, "predicted"))
    return lines


def verdict(lines: Sequence[LimitResult]) -> bool | None:
    """Return False if a limit is missed, else None if one is undecided, else True."""
    reached = [line.met for line in lines]
    if False in reached:
        return False
    return None if None in reached else True
