"""Stage `compare`: the difference of two graphs' outputs on frames without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.calibrate import Frames
from edgekd.detectors.generic_onnx import OutputError, output_errors


@dataclass(frozen=True)
class NamedError:
    """The error of an output.

    Args:
        name: Its name in the graph.
        relative_error: Root of noise power by signal power, over all frames.
        snr_db: The same as a signal-to-noise ratio in dB, at most 120.
    """

    name: str
    relative_error: float
    snr_db: float


@dataclass(frozen=True)
class CompareResult(StageResult):
    """The error of each output. kept: 1 - the largest relative error."""

    outputs: tuple[NamedError, ...]
    kept: float


COMPARE = StageKind("compare", 1, CompareResult, ("numpy", "onnxruntime", "opencv-python-headless"))


def run(context: StageContext, before: GraphStage, after: GraphStage, frames: Frames) -> Stage[CompareResult]:
    """Compare the outputs of two graphs."""

    def work(folder: Path) -> CompareResult:
        errors = output_errors(before.path / GRAPH, after.path / GRAPH, frames.read())
        named = tuple(NamedError(name, **asdict(error)) for name, error in errors.items())
        return CompareResult(named, kept_output(errors))

    return context.run(COMPARE, {"before": before.sha256, "after": after.sha256, "frames": frames.sha256}, work)


def kept_output(errors: Mapping[str, OutputError]) -> float:
    """Return 1 - the largest relative error of the outputs."""
    return 1 - max(error.relative_error for error in errors.values())
