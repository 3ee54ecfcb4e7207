"""Whether a build is good enough: its budget against what was reached. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.builds.recipe import Budget


@dataclass(frozen=True)
class Line:
    """One limit of a budget.

    name: `max_bytes` (of a bundle), `max_graph_bytes` (of a packed graph), `min_retention` (mAP50-95 after / before),
    `min_output` (1 - the relative error of the outputs), `min_fps` or `max_energy_mj` (a frame's); met: None where the
    value could not be had; basis: `measured`, `stand-in` where another machine than the target ran it, or `predicted`.
    """

    name: str
    limit: float
    value: float | None
    met: bool | None
    basis: str

    @property
    def is_size(self) -> bool:
        """Whether it limits bytes."""
        return self.name in ("max_bytes", "max_graph_bytes")

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share to be kept."""
        return self.name in ("min_retention", "min_output")

    @property
    def label(self) -> str:
        """What people call it."""
        return LABELS[self.name]

    def text(self, value: float | None) -> str:
        """A value of this line with its unit."""
        if value is None:
            return "-"
        if self.is_size:
            return size_text(value)
        if self.name == "max_energy_mj":
            return f"{value:.0f} mJ"
        return f"{value:.1%}" if self.is_accuracy else f"{value:.1f}"


def size_text(count: float) -> str:
    """Bytes for people: 12.30 MB, or 1234 bytes."""
    return f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count:.0f} bytes"


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
    bundle_bytes: int,
    retention: float | None,
    fps: float | None,
    basis: str,
    energy_mj: float | None = None,
) -> list[Line]:
    """A line per limit. Frames per second of a stand-in say nothing about the target: such a line stays undecided.

    So does energy, which is predicted: `energy_mj` is what a frame should take there.
    """
    lines = []
    if budget.max_bytes is not None:
        lines.append(Line("max_bytes", budget.max_bytes, bundle_bytes, bundle_bytes <= budget.max_bytes, "measured"))
    if budget.min_retention is not None:
        reached = None if retention is None else retention >= budget.min_retention
        lines.append(Line("min_retention", budget.min_retention, retention, reached, "measured"))
    if budget.min_fps is not None:
        reached = fps >= budget.min_fps if fps is not None and basis == "measured" else None
        lines.append(Line("min_fps", budget.min_fps, fps, reached, basis))
    if budget.max_energy_mj is not None:
        lines.append(Line("max_energy_mj", budget.max_energy_mj, energy_mj, None, "predicted"))
    return lines


def verdict(lines: list[Line]) -> bool | None:
    """Whether the budget is met: False if a line is missed, else None if one is undecided, else True."""
    reached = [line.met for line in lines]
    if False in reached:
        return False
    return None if None in reached else True
