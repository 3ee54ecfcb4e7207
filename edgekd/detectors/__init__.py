"""Detectors: one folder per family, with the preparation of frames and the decoding of outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekd.core.errors import SpecError
from edgekd.core.input_files import is_file, shown_path

if TYPE_CHECKING:
    import numpy as np

    from edgekd.core.detection.types import DetectorSpec


class Detector(Protocol):
    """A trained detector on disk. The constructor reads nothing; `export` does the work."""

    family: str
    libraries: tuple[str, ...]
    """Packages, besides onnx, on whose version the exported graph may depend."""
    path: Path

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the detector as a float32 ONNX graph with batch 1; return its input and output contract."""
        ...

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the detector's own output, float32, for a batch float32 [1, 3, h, w]."""
        ...


def load(
    path: Path, head: str | None = None, classes: tuple[str, ...] = (), trust_checkpoint: bool = False
) -> Detector:
    """Open a detector: `.pt` by Ultralytics, `.tv.pt`, `.onnx`, `.pth`, a folder by transformers, or another family.

    head: for ONNX, a kind or description of the head, if it is not recognised; classes: class names, if the file has
    none; trust_checkpoint: allow code in a checkpoint to run. Raises SpecError for any other file.
    """
    from edgekd.detectors.family import detector_file, known_suffixes, require_family

    path = detector_file(path)
    if not is_file(path):
        expected = f"a trained detector, {known_suffixes()}"
        raise SpecError(f"{shown_path(path)}: no such file", expected=expected, fix="check the path")
    detector: Detector = require_family(path).load(path, head=head, classes=classes, trust=trust_checkpoint)
    return detector
