"""Copies of labelled images under a domain shift, with the same labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from edgekd.core.atomic_files import new_folder, writing
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Preprocess
from edgekd.core.progress import SILENT, Progress
from edgekd.data.domain_shift import DomainShift
from edgekd.data.images import Image, ReadableImages
from edgekd.data.types import Dataset, Sample, Split


def resized_to_input(image: Image, preprocess: Preprocess) -> Image:
    """Resize an image uint8 [h, w, 3] to its size in the network's input, without padding."""
    import cv2

    placement = place(image.shape[1], image.shape[0], preprocess)
    size = (placement.across, placement.down)
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def write_shifted(
    split: Split, shift: DomainShift, preprocess: Preprocess, folder: Path, progress: Progress = SILENT
) -> Split:
    """Write the readable images of a split under a shift to a folder, as PNG; return them with their labels.

    Raises DataError if too many cannot be read, SpecError if the folder cannot be written.
    """
    import cv2

    samples: list[Sample] = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (sample, image) in enumerate(ReadableImages(split.samples, progress, label=f"show {split.name}")):
            rng = np.random.default_rng([number, len(split.name)])
            shifted = shift.apply(resized_to_input(image, preprocess), rng)
            file = folder / f"{number:06}.png"
            file.write_bytes(cv2.imencode(".png", shifted)[1].tobytes())
            samples.append(replace(sample, image=file))
    return Split(split.name, tuple(samples))


def write_dataset(
    dataset: Dataset, shift: DomainShift, preprocess: Preprocess, out: Path, progress: Progress = SILENT
) -> None:
    """Write a data set under a shift, in YOLO layout, with its boxes except those of crowds; `out` appears atomically.

    Keypoints and outlines are left out. Raises DataError, SpecError.
    """
    with new_folder(out) as folder, writing(out):
        for name in dataset.splits:
            shifted = write_shifted(dataset.split(name), shift, preprocess, folder / "images" / name, progress)
            (folder / "labels" / name).mkdir(parents=True)
            for sample in shifted.samples:
                (folder / "labels" / name / f"{sample.image.stem}.txt").write_text(_labels(sample), "ascii")
        config = {
            "path": ".",
            **{name: f"images/{name}" for name in dataset.splits},
            "names": dict(enumerate(dataset.classes)),
        }
        (folder / "data.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")


def _labels(sample: Sample) -> str:
    truth = sample.truth
    rows = zip(truth.classes, truth.boxes.astype(np.float64), truth.crowd, strict=True)
    lines = [
        f"{label} {(x + r) / 2:.6f} {(y + b) / 2:.6f} {r - x:.6f} {b - y:.6f}\n"
        for label, (x, y, r, b), crowd in rows
        if not crowd
    ]
    return "".join(lines)
