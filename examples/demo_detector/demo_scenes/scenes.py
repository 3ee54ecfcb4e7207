"""Rendered pictures of security cameras over a street or a yard, with labels: real input that needs no download.

Scenes are determined by integer seeds: with the same versions of OpenCV and NumPy a seed always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from demo_scenes.backdrop import CAMERAS, HEIGHT, SWAY, WIDTH, Backdrop, backdrop
from demo_scenes.geometry import SUPERSAMPLE, Image, cast_shadow, paint
from demo_scenes.traffic import CLASSES, MEAN_COUNTS, Actor, traffic
from demo_scenes.weather import Weather, develop, expose, weather

MIN_VISIBLE = 0.35
"""Smallest visible share of an object with a label."""
MIN_SIDE, MIN_AREA = 5.0, 70.0
"""Smallest side (pixels) and area (square pixels) of the visible box of an object with a label."""
SPLITS = ("train", "val", "detector-train", "detector-val")
SPLIT_SIZE = 1_000_000
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95)


@dataclass(frozen=True)
class Scene:
    """image uint8 [360, 640, 3] BGR; boxes float32 [n, 4] x1, y1, x2, y2 in pixels; classes int64 [n]."""

    image: Image
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


def render(seed: int, mean_counts: Mapping[int, float] = MEAN_COUNTS) -> Scene:
    """Render the scene of this seed (0 or more). mean_counts: the expected number of objects of each class."""
    rng = np.random.default_rng(seed)
    view = backdrop(int(rng.integers(CAMERAS)))
    now = weather(rng)
    actors = traffic(rng, view, umbrellas=now.rain > 0, mean_counts=mean_counts)
    canvas, drawn = _draw(view, actors)
    shadow, contact = _shadows(view, actors, now)
    left, top = (int(offset) for offset in rng.integers(0, 2 * SWAY + 1, 2))
    picture = expose(canvas, shadow, contact, view, actors, now, rng)[top : top + HEIGHT, left : left + WIDTH]
    y, x = top * SUPERSAMPLE, left * SUPERSAMPLE
    ids = canvas[y : y + HEIGHT * SUPERSAMPLE, x : x + WIDTH * SUPERSAMPLE, 3]
    boxes, classes = _labels(ids, (x, y), actors, drawn)
    return Scene(develop(np.ascontiguousarray(picture), now, rng), boxes, classes)


def _draw(view: Backdrop, actors: list[Actor]) -> tuple[Image, dict[int, int]]:
    """Return the canvas, painted from far to near, and the number of pixels that each id covered when it was drawn."""
    canvas = view.canvas.copy()
    drawn: dict[int, int] = {}
    layers = list(view.layers)
    for actor in actors:
        while layers and layers[0].distance > actor.placed.distance:
            layers.pop(0).paste(canvas)
        paint(canvas, actor.placed, view.camera, view.sun, actor.ids)
        x0, y0, x1, y1 = _extent(actor, canvas.shape[1], canvas.shape[0])
        region = canvas[y0:y1, x0:x1, 3]
        drawn.update((number, int(np.count_nonzero(region == number))) for number in actor.ids)
    for layer in layers:
        layer.paste(canvas)
    return canvas, drawn


def _extent(actor: Actor, width: int, height: int) -> tuple[int, int, int, int]:
    """Return a box of canvas pixels around the actor, with room for the thickness of its limbs."""
    room = 0.35 * float(np.ptp(actor.placed.pixels[:, 1])) + 8
    low, high = actor.placed.pixels.min(axis=0) - room, actor.placed.pixels.max(axis=0) + room
    x0, y0 = np.clip(low, 0, (width, height)).astype(int)
    x1, y1 = np.clip(high, 0, (width, height)).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _shadows(view: Backdrop, actors: list[Actor], now: Weather) -> tuple[Image, Image]:
    shadow, contact = np.zeros_like(view.shadow), np.zeros_like(view.shadow)
    for actor in actors:
        cast_shadow(contact, actor.placed, view.camera, np.array([0.0, 0.0, 1.0]), 255)
        if now.sun:
            cast_shadow(shadow, actor.placed, view.camera, view.sun, 255)
    return cv2.GaussianBlur(shadow, (0, 0), 0.8), contact


def _labels(
    ids: Image, corner: tuple[int, int], actors: list[Actor], drawn: dict[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return boxes around the visible part of each object, and classes; ids: the canvas from `corner`."""
    boxes, classes = [], []
    for actor in actors:
        x0, y0, x1, y1 = _extent(actor, ids.shape[1] + corner[0], ids.shape[0] + corner[1])
        x0, y0 = max(x0 - corner[0], 0), max(y0 - corner[1], 0)
        region = ids[y0 : max(y1 - corner[1], 0), x0 : max(x1 - corner[0], 0)]
        for tag, (number, kind) in enumerate(zip(actor.ids, actor.classes, strict=True)):
            mask = (region == number).astype(np.uint8)
            seen = cv2.countNonZero(mask) if mask.size else 0
            if not seen or seen < MIN_VISIBLE * drawn[number] / _share_in_frame(actor, tag, ids.shape, corner):
                continue
            x, y, w, h = cv2.boundingRect(mask)
            box = np.array([x0 + x, y0 + y, x0 + x + w, y0 + y + h], np.float32) / SUPERSAMPLE
            wide, high = box[2] - box[0], box[3] - box[1]
            if min(wide, high) >= MIN_SIDE and wide * high >= MIN_AREA:
                boxes.append(box)
                classes.append(kind)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64)


def _share_in_frame(actor: Actor, tag: int, shape: tuple[int, ...], corner: tuple[int, int]) -> float:
    """Return the share of the object's extent that lies inside the frame."""
    points = [k for part in actor.placed.mesh.parts if part.tag == tag for k in part.points]
    pixels = actor.placed.pixels[points] - corner
    full = np.maximum(np.ptp(pixels, axis=0), 1.0)
    inside = np.ptp(np.clip(pixels, 0, (shape[1], shape[0])), axis=0)
    return float(max(np.prod(inside / full), 1e-6))


def split_seeds(split: str, count: int) -> range:
    """Return the scene seeds of the first `count` images (1 to SPLIT_SIZE) of one of SPLITS. Splits share no scene."""
    if not 0 < count <= SPLIT_SIZE:
        raise ValueError(f"cannot render {count} scenes: a split has 1 to {SPLIT_SIZE}")
    first = SPLITS.index(split) * SPLIT_SIZE
    return range(first, first + count)


def write_dataset(folder: Path, train: int, val: int, jpeg: Sequence[int] = JPEG) -> Path:
    """Render a data set in YOLO layout into a new folder and return its `data.yaml`; `jpeg` as `cv2.imencode` takes it.

    Raises FileExistsError where the folder exists.
    """
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for seed in split_seeds(split, count):
            scene = render(seed)
            (images / f"{seed:08d}.jpg").write_bytes(cv2.imencode(".jpg", scene.image, jpeg)[1].tobytes())
            (labels / f"{seed:08d}.txt").write_text(_yolo_labels(scene))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    comment = f"# Rendered scenes: {train} to train, {val} to validate."
    config = folder / "data.yaml"
    config.write_text(f"{comment}\npath: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return config


def _yolo_labels(scene: Scene) -> str:
    """Return a line per object: its class, then centre and size as shares of the frame."""
    size = np.array([WIDTH, HEIGHT], np.float32)
    low, high = scene.boxes[:, :2], scene.boxes[:, 2:]
    rows = np.concatenate([(low + high) / 2 / size, (high - low) / size], axis=1)
    lines = (
        f"{kind} " + " ".join(f"{value:.6f}" for value in box) for kind, box in zip(scene.classes, rows, strict=True)
    )
    return "".join(f"{line}\n" for line in lines)
