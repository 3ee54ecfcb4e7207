"""Detectors: one file per family, and the pure rules for feeding and decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekd.core.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.core.detection.types import DetectorSpec


class Detector(Protocol):
    """A trained detector on disk. Making one reads nothing; `export` does the work."""

    family: str
    libraries: tuple[str, ...]
    """Packages whose version what `export` writes may depend on, besides onnx."""
    path: Path

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the detector as a float32 ONNX graph with batch 1, and say what it takes and gives."""
        ...

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """What the detector itself computes, float32, for batch float32 [1, 3, h, w]."""
        ...


def load(
    path: Path, head: str | None = None, classes: tuple[str, ...] = (), trust_checkpoint: bool = False
) -> Detector:
    """The detector in a file: `.pt` by Ultralytics, `.tv.pt`, or `.onnx`. Raises SpecError for anything else.

    head, classes: for ONNX, how to read an output that is not recognised, and the names of unnamed classes.
    """
    if not path.is_file():
        raise SpecError(f"{path}: no such file", expected="a trained detector, .pt or .onnx", fix="check the path")
    if path.suffix == ".onnx":
        from edgekd.detectors.onnx import OnnxDetector

        return OnnxDetector(path, head, classes)
    if path.suffix == ".pt":
        from edgekd.detectors.torchvision import TorchvisionDetector
        from edgekd.detectors.torchvision_names import SUFFIX

        if path.name.endswith(SUFFIX):
            return TorchvisionDetector(path)
        from edgekd.detectors.ultralytics import UltralyticsDetector

        return UltralyticsDetector(path, trust_checkpoint)
    raise SpecError(f"{path}: unknown kind of model", expected=".pt or .onnx", found=path.suffix or "no suffix")
