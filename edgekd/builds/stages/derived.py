"""A lighter detector that was derived from another one, and the requirement that it is faster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stages.base import GraphStage
from edgekd.builds.stages.latency import LatencySource
from edgekd.core.errors import CompressError


@dataclass(frozen=True)
class DerivedDetector:
    """A detector that was derived from another one; pairs are before and after.

    Args:
        checkpoint: Its file.
        graph: Its float graph.
        parameters: Numbers of parameters.
        multiply_adds: Multiply-adds of a frame.
        latency_ms: Milliseconds of a frame.
    """

    checkpoint: Path
    graph: GraphStage
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    latency_ms: tuple[float, float]


def require_faster(what: str, derived: DerivedDetector, latency: LatencySource, with_what: str, fix: str) -> None:
    """Raise CompressError if the lighter detector is not faster; what: the method; with_what: its result."""
    before, after = derived.latency_ms
    if after < before:
        return
    raise CompressError(
        f"{what}, and not faster",
        expected=f"less than {before:.2f} ms a frame, as before, on {latency.where} ({latency.basis})",
        found=f"{after:.2f} ms with {with_what}",
        fix=fix,
    )
