"""A rendered street, and a small detector trained on it: something real to run without downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

CALIBRATION_SCENES, SCORED_SCENES = 96, 160


@contextmanager
def demo_model() -> Iterator[Path]:
    """The small detector that ships with the package, as a file while the block lasts."""
    with resources.as_file(resources.files("edgekd.data.demo") / "detector.onnx") as path:
        yield path
