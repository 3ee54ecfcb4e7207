"""Stage `calibrate`: the calibration set, chosen from the training split by a rule or read from a TOML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import StageContext
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import to_plain
from edgekd.core.errors import DataError, SpecError
from edgekd.data.calibration import (
    CalibrationRule,
    CalibrationSet,
    choose,
    load_rule,
    read_calibration,
    refuse_overlap,
    write_calibration,
)
from edgekd.data.images import read_image
from edgekd.data.long_tail import rare_classes
from edgekd.data.types import Dataset, Split

if TYPE_CHECKING:
    import numpy as np

CALIBRATION = "calibration.toml"


@dataclass(frozen=True)
class CalibrateResult(StageResult):
    """A calibration set, in the file CALIBRATION.

    Args:
        sha256: SHA-256 of the set.
        images: Number of images.
        rare: Classes that are rare in the training split; empty for a set from a file.
    """

    sha256: str
    images: int
    rare: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The number of images."""
        return f"{self.images} images"


CALIBRATE = StageKind("calibrate", 2, CalibrateResult, ("numpy", "opencv-python-headless"))


@dataclass(frozen=True)
class Frames:
    """The inputs on which a network is calibrated.

    Args:
        sha256: SHA-256 of the images and of their preprocessing.
        read: Yields the inputs, float32 [1, 3, h, w], one at a time.
    """

    sha256: str
    read: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Calibrated:
    """The stage that chose the calibration images, the images, and the inputs that they become."""

    stage: Stage[CalibrateResult]
    images: CalibrationSet
    frames: Frames


def run(
    context: StageContext,
    source: CalibrationRule | Path,
    dataset: Dataset,
    scored: Split,
    data: str,
    spec: DetectorSpec,
) -> Calibrated:
    """Choose calibration images, of which none is scored; data: the fingerprint of the scored split.

    They are chosen again if files were renamed, because the fingerprint of a split does not depend on names. Raises
    DataError, SpecError.
    """

    def work(folder: Path) -> CalibrateResult:
        if isinstance(source, Path):
            images = read_calibration(source, dataset, context.progress)
        else:
            images = choose(dataset, source, preprocess=spec.preprocess, progress=context.progress)
        refuse_overlap(images, scored, context.progress)
        write_calibration(images, folder / CALIBRATION)
        rare = () if isinstance(source, Path) else rare_classes(dataset.split("train"), dataset.classes)
        return CalibrateResult(images.sha256, len(images.files), tuple(rare))

    def read() -> Iterator[np.ndarray]:
        for image in context.progress.items(images.images, "calibrate"):
            yield letterbox(read_image(image), spec.preprocess)[0]

    def in_place(folder: Path) -> bool:
        """Return whether the images of a set that was chosen by the rule still have their names."""
        try:
            read_calibration(folder / CALIBRATION, dataset)
        except DataError:
            return isinstance(source, Path)  # for a user's set, the error is raised below
        return True

    chosen_from: dict[str, Any]
    if isinstance(source, Path):
        chosen_from = {"set": context.sha256(source)}
    else:
        chosen_from = {"rule": asdict(source), "train": context.fingerprint(dataset.split("train"))}
    inputs = {**chosen_from, "scored": data, "preprocess": to_plain(spec.preprocess)}
    stage = context.run(CALIBRATE, inputs, work, fits=in_place)
    images = read_calibration(stage.path / CALIBRATION, dataset)
    return Calibrated(stage, images, Frames(images.sha256, read))


def calibration_source(calibration: str | None, dataset: Dataset, *, searching: bool = False) -> CalibrationRule | Path:
    """Return the shipped rule, with N images if `calibration` is a number, or the path of the set that it names.

    Args:
        searching: Leave at least half of the training split to judge plans on, unless a number is given.

    Raises SpecError if it is neither, DataError if there is no training split to choose from.
    """
    if calibration is None or (calibration.isdigit() and int(calibration) > 0):
        if "train" not in dataset.splits:
            raise DataError(
                f"{dataset.source} has no training split to calibrate on",
                expected="train",
                found=", ".join(dataset.splits),
                fix="add `train:` with images that are not scored, or pass --calibration SET.toml",
            )
        rule = load_rule()
        if calibration:
            return replace(rule, count=int(calibration))
        most = max(len(dataset.split("train")) // 2, 1) if searching else rule.count
        return replace(rule, count=min(rule.count, most))
    if not Path(calibration).is_file():
        raise SpecError(
            f"--calibration {calibration}",
            expected="a number of images, or a calibration set written by an earlier build (calibration.toml)",
            found="neither",
        )
    return Path(calibration)
