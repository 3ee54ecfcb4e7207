"""The stages of a search: a student before training, a trial, and its time on a board."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.builds.stage_store import StageKind, StageResult


@dataclass(frozen=True)
class Refusal(StageResult):
    """The reason why a candidate cannot be built or run."""

    error: str


@dataclass(frozen=True)
class TrialResult(StageResult):
    """The result of a trial.

    Args:
        kept: Share of the detector's accuracy; None if only noise was measured.
        noise: Output noise, see `evaluation.output_noise`; None if the candidate was tried in full.
        bytes: Estimated bytes of the bundle.
        latency_ms: Milliseconds of a frame; None if unknown.
        energy_mj: Millijoules of a frame; None if unknown.
    """

    kept: float | None
    noise: float | None
    bytes: int
    latency_ms: float | None
    energy_mj: float | None


@dataclass(frozen=True)
class BoardResult(StageResult):
    """Latency and energy of a network on a board.

    Args:
        board: Name of the board.
        basis: `measured` or `rehearsed`.
        latency_ms: Mean milliseconds of a run of the engine alone.
        energy_mj: Millijoules of a frame, without subtracting those at rest; None without a sensor.
    """

    board: str
    basis: str
    latency_ms: float
    energy_mj: float | None


STUDENT = StageKind("student", 1, StageResult, ("torch", "ultralytics"))
TRIAL: StageKind[TrialResult | Refusal] = StageKind(
    "trial",
    2,
    TrialResult | Refusal,
    (
        *("faster-coco-eval", "numpy", "onnx", "onnxruntime", "onnxslim", "opencv-python-headless", "scipy"),
        *("torch", "torch-pruning", "torchvision", "ultralytics"),
    ),
)
BOARD: StageKind[BoardResult | Refusal] = StageKind("board", 1, BoardResult | Refusal)
