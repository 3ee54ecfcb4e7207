"""The stage that chooses calibration images."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekd.builds.stages import calibrate
from edgekd.builds.stages.base import StageContext
from edgekd.builds.stages.calibrate import Calibrated, calibration_source
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset

SPEC = DetectorSpec(("red", "green"), Preprocess(64, 64), Head("yolo"))


def chosen(data: Path, out: Path) -> Calibrated:
    """Choose four images, as a build in a process of its own does."""
    context, dataset = StageContext.within(out, False, SILENT), load_dataset(data)
    scored = dataset.split("val")
    return calibrate.run(context, calibration_source("4", dataset), dataset, scored, context.fingerprint(scored), SPEC)


def test_images_that_were_renamed_are_found_again(tiny_data: Path, tmp_path: Path) -> None:
    """The fingerprint of a split is that of contents, and so is the key of the stage: its files have names."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    first = chosen(data, tmp_path / "out")
    assert chosen(data, tmp_path / "out").stage.cached
    for file in [*data.glob("images/train/*"), *data.glob("labels/train/*")]:
        file.rename(file.with_name(f"street-{file.name}"))
    again = chosen(data, tmp_path / "out")
    assert (again.stage.key, again.images.sha256) == (first.stage.key, first.images.sha256)
    assert [image.name for image in again.images.images] == [f"street-{image.name}" for image in first.images.images]
    assert chosen(data, tmp_path / "out").stage.cached
