"""Labelled pictures as other conditions would show them: what was labelled stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from edgekd.core.atomic_files import new_folder, writing
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Preprocess
from edgekd.core.progress import SILENT, Progress
from edgekd.data.domain_shift import Look
from edgekd.data.images import Image, ReadableImages
from edgekd.data.types import Dataset, Sample, Split


def as_seen(image: Image, how: Preprocess) -> Image:
    """A picture uint8 [h, w, 3] as large as it lies in the network's input."""
    import cv2

    at = place(image.shape[1], image.shape[0], how)
    if (at.across, at.down) == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(cv2.resize(image, (at.across, at.down), interpolation=cv2.INTER_LINEAR), np.uint8)


def write_twins(split: Split, look: Look, how: Preprocess, folder: Path, progress: Progress = SILENT) -> Split:
    """The readable pictures of a split as they would look, written to a folder as PNG, with the labels that they have.

    Raises DataError where too many cannot be read, SpecError where the folder cannot be written.
    """
    import cv2

    samples: list[Sample] = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (sample, image) in enumerate(ReadableImages(split.samples, progress, label=f"show {split.name}")):
            twin = look.put_on(as_seen(image, how), np.random.default_rng([number, len(split.name)]))
            file = folder / f"{number:06}.png"
            file.write_bytes(cv2.imencode(".png", twin)[1].tobytes())
            samples.append(replace(sample, image=file))
    return Split(split.name, tuple(samples))


def write_dataset(dataset: Dataset, look: Look, how: Preprocess, out: Path, progress: Progress = SILENT) -> None:
    """Write a data set in YOLO layout: every split as it would look, with its labels. Boxes around crowds are left out.

    `out` appears when all of it is there. Raises DataError, SpecError.
    """
    with new_folder(out) as folder, writing(out):
        for name in dataset.splits:
            shown = write_twins(dataset.split(name), look, how, folder / "images" / name, progress)
            (folder / "labels" / name).mkdir(parents=True)
            for sample in shown.samples:
                (folder / "labels" / name / f"{sample.image.stem}.txt").write_text(_labels(sample), "ascii")
        told = {"path": ".", **{name: f"images/{name}" for name in dataset.splits}, "names": _names(dataset.classes)}
        (folder / "data.yaml").write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), "utf-8")


def _names(classes: Sequence[str]) -> dict[int, str]:
    return dict(enumerate(classes))


def _labels(sample: Sample) -> str:
    """The labels of a picture, a line each."""
    truth = sample.truth
    rows = zip(truth.classes, truth.boxes.astype(np.float64), truth.crowd, strict=True)
    lines = [
        f"{label} {(x + r) / 2:.6f} {(y + b) / 2:.6f} {r - x:.6f} {b - y:.6f}\n"
        for label, (x, y, r, b), crowd in rows
        if not crowd
    ]
    return "".join(lines)
