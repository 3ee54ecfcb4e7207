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
    """A candidate as it was tried.

    Args:
        kept: Share of the detector's accuracy; None where only noise was measured.
        noise: Of the outputs, as of `evaluation.output_noise`; None where the candidate was trained.
        latency_ms: Of a frame; None where it is not known.
        energy_mj: The same.
    """

    kept: float | None
    noise: float | None
    bytes: int
    latency_ms: float | None
    energy_mj: float | None


@dataclass(frozen=True)
class BoardResult(StageResult):
    """The times of a network on a board.

    Args:
        board: Its name.
        basis: `measured` or `rehearsed`.
        latency_ms: Mean of the engine.
        energy_mj: Of a frame, all that the sensor measures; None without a sensor.
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
