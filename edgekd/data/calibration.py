"""Calibration sets: images chosen from the training split by a rule, hashed, and stored as a small TOML.

Activation ranges are measured on these images, so they cover all classes, brightness levels and object sizes. Scoring
on them would bias the result: `refuse_overlap` compares the contents of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.core.atomic_files import write_file
from edgekd.core.detection.types import Preprocess
from edgekd.core.documents import to_plain
from edgekd.core.errors import DataError, SpecError, did_you_mean
from edgekd.core.progress import SILENT, Progress
from edgekd.core.toml import parse_table, read_toml, toml_text
from edgekd.data.images import ReadableImages, file_hashes, read_thumbnail
from edgekd.data.types import Dataset, Sample, Split

FORMAT = 1
BRIGHTNESS_BANDS = 8  # equal intervals of grey levels
SIZE_LIMITS = (0.05, 0.15)  # sides of COCO's small and medium objects, 32 and 96 pixels, in a frame of 640
POOLED_PER_CLASS = 8  # images of each class in the candidate pool, even if the draw misses them

Traits = NDArray[np.bool_]


@dataclass(frozen=True)
class TraitWeights:
    """Weight of each kind of trait in the choice of images."""

    classes: float
    brightness: float
    size: float


@dataclass(frozen=True)
class CalibrationRule:
    """The rule that chooses calibration images; `calibration/cover.toml` explains the fields.

    Raises SpecError for a value out of range.
    """

    name: str
    description: str
    count: int
    seed: int
    pool: int
    balance: float
    weights: TraitWeights

    def __post_init__(self) -> None:
        shares = (self.weights.classes, self.weights.brightness, self.weights.size)
        checks = (
            ("count", self.count, self.count >= 1, "at least 1"),
            ("seed", self.seed, self.seed >= 0, "at least 0"),
            ("pool", self.pool, self.pool >= 1, "at least 1"),
            ("balance", self.balance, 0 <= self.balance <= 1, "0 to 1"),
            ("weights", shares, min(shares) >= 0 < max(shares), "no negative one, and one above 0"),
        )
        for name, value, valid, expected in checks:
            if not valid:
                raise SpecError(f"calibration rule {self.name!r}: {name} is {value}", expected=expected)


@dataclass(frozen=True)
class CalibrationFile:
    """An image: its POSIX path relative to the data set's folder, and the SHA-256 (hex) of the file."""

    path: str
    sha256: str


@dataclass(frozen=True)
class CalibrationSet:
    """The images that activation ranges are measured on, best coverage first; source: folder of the data set."""

    files: tuple[CalibrationFile, ...]
    rule: CalibrationRule
    preprocess: Preprocess | None
    source: Path
    split: str

    @property
    def images(self) -> tuple[Path, ...]:
        """Paths of the image files on this machine."""
        return tuple(Path(os.path.normpath(self.source / file.path)) for file in self.files)

    @property
    def sha256(self) -> str:
        """Identity: hash of image contents and preprocessing, independent of paths."""
        preprocess = to_plain(self.preprocess) if self.preprocess else None
        identity = json.dumps([[file.sha256 for file in self.files], preprocess], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------- choosing


def load_rule(name: str = "cover") -> CalibrationRule:
    """Load a rule of the package by name, or one from a .toml file. Raises SpecError for an unknown one."""
    if name.endswith(".toml"):
        return parse_table(CalibrationRule, read_toml(Path(name)), name)
    shipped = {Path(file.name).stem: file for file in resources.files("edgekd.calibration").iterdir()}
    shipped = {stem: file for stem, file in shipped.items() if file.name.endswith(".toml")}
    if name not in shipped:
        fix = did_you_mean(name, shipped) or "or pass the path of a .toml"
        raise SpecError(f"no calibration rule {name!r}", expected=f"one of: {', '.join(sorted(shipped))}", fix=fix)
    with resources.as_file(shipped[name]) as path:
        return parse_table(CalibrationRule, read_toml(path), name)


def choose(
    dataset: Dataset,
    rule: CalibrationRule,
    split: str = "train",
    preprocess: Preprocess | None = None,
    progress: Progress = SILENT,
) -> CalibrationSet:
    """Choose `rule.count` images of `split`, or all of them if there are fewer.

    Deterministic; a smaller count gives a prefix (as long as the pool is the same). Raises DataError if the data set
    has no such split or too many of its images are unreadable.
    """
    if split not in dataset.splits:
        raise DataError(
            f"{dataset.source} has no split {split!r} to calibrate on",
            expected=f"{split!r} beside {', '.join(dataset.splits)}",
            fix=f"add `{split}:` with images that are not scored to the data set, or pass a calibration set",
        )
    samples = dataset.split(split).samples
    rng = np.random.default_rng(rule.seed)
    pool = _draw_pool(_class_traits(samples, len(dataset.classes)), max(rule.pool, rule.count), rng)
    candidates, brightness = _measure_brightness([samples[index] for index in pool], progress)
    if len(candidates) < rule.count:
        progress.note(f"calibrating on all {len(candidates)} images of {split!r}: fewer than {rule.count}")
    traits = (
        (rule.weights.classes, _class_traits(candidates, len(dataset.classes))),
        (rule.weights.brightness, brightness),
        (rule.weights.size, _size_traits(candidates)),
    )
    chosen = [candidates[index] for index in _pick(traits, rule.count, rule.balance)]
    hashes = file_hashes([sample.image for sample in chosen], progress)
    files = (
        CalibrationFile(Path(os.path.relpath(sample.image, dataset.folder)).as_posix(), hashes[sample.image])
        for sample in chosen
    )
    return CalibrationSet(tuple(files), rule, preprocess, dataset.folder, split)


def _draw_pool(classes: Traits, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw indices of candidate images in random order: `size` of them, and more of each rare class."""
    order = rng.permutation(len(classes))
    present = classes[order]
    keep: Traits = np.any(present & (np.cumsum(present, axis=0) <= POOLED_PER_CLASS), axis=1)
    keep[:size] = True
    return order[keep]


def _measure_brightness(samples: Sequence[Sample], progress: Progress) -> tuple[list[Sample], Traits]:
    """Return the readable samples and their bands of mean brightness, one-hot bool [n, bands]."""
    images = ReadableImages(samples, progress, label="measure brightness", read=read_thumbnail)
    means = [(sample, image.mean()) for sample, image in images]
    for file, reason in images.skipped:
        progress.note(f"not calibrating on {file}: {reason}")
    bands = (np.array([mean for _, mean in means]) * BRIGHTNESS_BANDS // 256).astype(np.int64)
    return [sample for sample, _ in means], np.eye(BRIGHTNESS_BANDS, dtype=bool)[bands]


def _class_traits(samples: Sequence[Sample], class_count: int) -> Traits:
    """Return the classes in each image, bool [n, classes + 1]; the last column means no object."""
    return _presence(samples, [sample.truth.classes for sample in samples], class_count)


def _size_traits(samples: Sequence[Sample]) -> Traits:
    """Return the object sizes in each image, bool [n, 4]: small, medium, large, no object."""
    areas = [np.prod(sample.truth.boxes[:, 2:] - sample.truth.boxes[:, :2], axis=1) for sample in samples]
    limits = np.square(SIZE_LIMITS)
    return _presence(samples, [np.searchsorted(limits, area) for area in areas], len(SIZE_LIMITS) + 1)


def _presence(samples: Sequence[Sample], labels: Sequence[NDArray[Any]], count: int) -> Traits:
    """Return the labels of each image as bool [n, count + 1]; the last column means none."""
    present = np.zeros((len(samples), count + 1), bool)
    owners = np.repeat(np.arange(len(samples)), [len(each) for each in labels])
    present[owners, np.concatenate([np.zeros(0, np.int64), *labels])] = True
    present[:, count] = ~present.any(axis=1)
    return present


def _pick(groups: Sequence[tuple[float, Traits]], count: int, balance: float) -> list[int]:
    """Choose `count` rows greedily, best first.

    First choose the image with the most traits that no chosen image has. With none left, choose the image that moves
    the trait shares of the chosen set closest to the target: the share among all candidates to the power of
    1 - balance. In each group an image has one vote, split among its traits, so that crowded scenes have no advantage.
    """
    traits = np.concatenate([present for _, present in groups], axis=1)
    votes = np.concatenate([present / present.sum(axis=1, keepdims=True) for _, present in groups], axis=1)
    weights = np.concatenate([np.full(present.shape[1], weight) for weight, present in groups])
    targets = np.concatenate([_target(present, balance) for _, present in groups])
    covered = np.zeros(traits.shape[1], bool)
    shares = np.zeros(traits.shape[1])
    free = np.ones(len(traits), bool)
    chosen: list[int] = []
    while len(chosen) < min(count, len(traits)):
        new_traits = traits @ (weights * ~covered)
        gain = votes @ (weights * (targets - shares / max(len(chosen), 1)))
        # Rounded: the last bits of a matrix product vary between CPUs.
        value = np.round(np.where(free, 1000 * new_traits + gain, -np.inf), 9)
        best = int(value.argmax())
        chosen.append(best)
        free[best] = False
        covered |= traits[best]
        shares += votes[best]
    return chosen


def _target(present: Traits, balance: float) -> NDArray[np.float64]:
    share = (present / present.sum(axis=1, keepdims=True)).mean(axis=0)
    tempered = np.where(share > 0, share ** (1 - balance), 0.0)
    return np.asarray(tempered / tempered.sum(), np.float64)


# ------------------------------------------------------------------------------------------------- keeping, checking


def refuse_overlap(calibration: CalibrationSet, split: Split, progress: Progress = SILENT) -> None:
    """Raise DataError if the scored split and the calibration set share an image, compared by content."""
    calibrated = {file.sha256: image for file, image in zip(calibration.files, calibration.images, strict=True)}
    for scored, sha256 in file_hashes(split.images, progress).items():
        if sha256 in calibrated:
            raise DataError(
                f"{calibrated[sha256]} is in the calibration set and, as {scored}, in the scored split {split.name!r}",
                expected="calibration and scoring to share no image",
                fix="take the image out of one of the splits, or score another split",
            )


def write_calibration(calibration: CalibrationSet, path: Path) -> None:
    """Write the set as deterministic TOML. Raises SpecError if it cannot be written."""
    table = {
        "format": FORMAT,
        "sha256": calibration.sha256,
        "split": calibration.split,
        "rule": asdict(calibration.rule),
    }
    if calibration.preprocess:
        table["preprocess"] = to_plain(calibration.preprocess)
    table["files"] = {file.path: file.sha256 for file in calibration.files}
    comment = "# Calibration set: images, by path from the data set's folder, and their SHA-256.\n"
    write_file(path, (comment + toml_text(table)).encode("utf-8", "surrogateescape"))


def read_calibration(path: Path, dataset: Dataset, progress: Progress = SILENT) -> CalibrationSet:
    """Read a set written by `write_calibration`, and check its images in the folder of `dataset`.

    Raises SpecError for a malformed file, DataError for a missing or changed image.
    """
    document = read_toml(path)
    if document.get("format") != FORMAT:
        raise SpecError(f"{path} is no calibration set", expected=f"format = {FORMAT}")
    keys = {"format", "sha256", "split", "rule", "files"}
    if not keys <= set(document) <= keys | {"preprocess"} or not isinstance(document["files"], dict):
        raise SpecError(f"{path} is no calibration set", expected=", ".join(sorted(keys)), found=", ".join(document))
    preprocess = (
        parse_table(Preprocess, document["preprocess"], f"{path}: preprocess") if "preprocess" in document else None
    )
    files = tuple(CalibrationFile(str(name), str(sha256)) for name, sha256 in document["files"].items())
    rule = parse_table(CalibrationRule, document["rule"], f"{path}: rule")
    calibration = CalibrationSet(files, rule, preprocess, dataset.folder, str(document["split"]))
    if calibration.sha256 != document["sha256"]:
        raise SpecError(f"{path} was changed after it was written", expected=f"sha256 {calibration.sha256}")
    hashes = file_hashes(calibration.images, progress)
    for file, image in zip(files, calibration.images, strict=True):
        if hashes[image] != file.sha256:
            raise DataError(
                f"{image} is not the image that {path} names",
                expected=f"sha256 {file.sha256}",
                found=hashes[image],
                fix="restore the image, or choose a new calibration set",
            )
    return calibration
