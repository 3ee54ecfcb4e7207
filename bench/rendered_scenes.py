"""A data set of rendered scenes for training: any number of square crops, with one class rare in training.

It uses the renderer of the demo's scenes. No scene is in two splits, or in the demo's data.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from common import HERE

sys.path.insert(0, str(HERE.parent / "examples" / "demo_detector"))
from demo_scenes.scenes import Scene, render, split_seeds
from demo_scenes.traffic import CLASSES, DOG, MEAN_COUNTS

CROP = 320  # side in pixels of the crop from a scene of 640 x 360; objects stay visible at a training size of 160
MIN_INSIDE = 0.35  # share of a box inside the crop for a label, like the renderer's visible share
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95)
RARE_MEAN_COUNT = 0.3  # expected number of dogs in a training scene; 1.1 in val and test


def crop(scene: Scene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a random crop of a scene, uint8 [CROP, CROP, 3], and labels [n, 5]: class, centre and size from 0 to 1."""
    height, width = scene.image.shape[:2]
    left, top = np.random.default_rng(seed).integers(0, [width - CROP + 1, height - CROP + 1])
    moved = scene.boxes - np.array([left, top, left, top], np.float32)
    inside = moved.clip(0, CROP)
    sizes, whole = (each[:, 2:] - each[:, :2] for each in (inside, moved))
    kept = sizes.prod(1) >= MIN_INSIDE * whole.prod(1)
    centres = (inside[:, :2] + inside[:, 2:]) / 2
    labels = np.column_stack([scene.classes, centres / CROP, sizes / CROP])[kept]
    return scene.image[top : top + CROP, left : left + CROP], labels


def seeds_of(train: int, val: int, test: int) -> Iterator[tuple[str, range]]:
    """Yield each split and its scene seeds, from ranges that the demo's own data do not use."""
    scored = split_seeds("detector-val", val + test)
    yield from (("train", split_seeds("detector-train", train)), ("val", scored[:val]), ("test", scored[val:]))


def write_scenes(target: Path, side: int, *, train: int, val: int, test: int) -> None:
    """Write a data set in YOLO layout with this number of scenes per split. side: width and height in pixels."""
    shutil.rmtree(target, ignore_errors=True)
    splits = dict(seeds_of(train, val, test))
    for split, seeds in splits.items():
        images, labels = target / "images" / split, target / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        means = MEAN_COUNTS | {DOG: RARE_MEAN_COUNT} if split == "train" else MEAN_COUNTS
        for seed in seeds:
            image, rows = crop(render(seed, means), seed)
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            (images / f"{seed:08d}.jpg").write_bytes(cv2.imencode(".jpg", image, JPEG)[1].tobytes())
            lines = (f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in rows)
            (labels / f"{seed:08d}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    folders = "".join(f"{split}: images/{split}\n" for split in splits)
    (target / "data.yaml").write_text(f"path: .\n{folders}names:\n{names}", "utf-8")  # last: marks a complete data set
