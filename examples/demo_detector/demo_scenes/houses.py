"""The demo's houses: a row of boxes with painted fronts along the far side of the street."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from demo_scenes.geometry import AMBIENT, SUN, Array, Camera, Colour, Image
from demo_scenes.objects import darker, pick
from demo_scenes.street import Street

FACADE_SCALE = 36
"""Pixels per metre of a painted wall."""
WALLS = (
    (150, 168, 186), (88, 104, 148), (176, 188, 196), (120, 140, 160), (160, 160, 156), (96, 120, 150),
    (180, 196, 214), (130, 134, 138),
)  # fmt: skip
LIT_WINDOWS = ((120, 190, 240), (150, 210, 235), (210, 220, 225), (90, 150, 220))


@dataclass(frozen=True)
class House:
    """A box on four ground corners, float64 [4, 2]: front left, front right, back right, back left (world metres)."""

    footprint: Array
    high: float
    gable: bool
    shed: bool


def noise(
    rng: np.random.Generator, shape: tuple[int, int], sizes: Sequence[float], weights: Sequence[float]
) -> NDArray[np.float32]:
    """Smooth noise in 0..1 with blobs of the given sizes in pixels, float32 [h, w]."""
    total = np.zeros(shape, np.float32)
    for size, weight in zip(sizes, weights, strict=True):
        grid = rng.random((max(2, math.ceil(shape[0] / size) + 1), max(2, math.ceil(shape[1] / size) + 1)), np.float32)
        total += weight * cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return total / np.float32(sum(weights))


def houses(rng: np.random.Generator, street: Street, camera: Camera) -> list[House]:
    """The row across the street, far ones first, with gaps for gardens and the side road."""
    row = []
    start = street.half_road + street.pavement
    s = -46.0
    while s < 70:
        wide, high = rng.uniform(7, 15), rng.uniform(5.0, 13.0)
        gable = bool(rng.random() < 0.4) and not street.yard
        setback = start + (rng.uniform(2.5, 6) if gable else rng.uniform(0.2, 2.0))
        high = rng.uniform(4.6, 6.4) if gable or street.yard else high
        blocked = street.side_road is not None and s < street.side_road + 5.5 and s + wide > street.side_road - 5.5
        corners = np.array([street.to_world(a, b) for a, b in (
            (s, setback), (s + wide, setback), (s + wide, setback + 9), (s, setback + 9))])  # fmt: skip
        if blocked and street.side_road is not None:
            s = max(s + 1.0, min(s + wide, street.side_road + 5.6))
            continue
        pixels, _ = camera.project(np.column_stack([corners, np.zeros(4)]))
        if corners[:, 1].min() > 4 and pixels[:, 0].max() > 0 and pixels[:, 0].min() < camera.size[0]:
            row.append(House(corners, high, gable, street.yard))
        s += wide + (rng.uniform(1.5, 5) if rng.random() < 0.45 else 0.0)
    if street.side_road is not None:
        far = [street.to_world(street.side_road + a, b) for a, b in ((-16, 52), (16, 52), (16, 60), (-16, 60))]
        row.append(House(np.array(far), 9.0, False, False))
    return sorted(row, key=lambda house: -float(np.linalg.norm(house.footprint[:2].mean(axis=0))))


def draw_house(
    canvas: Image, windows: Image, depth: NDArray[np.float32], camera: Camera, house: House, sun: Array,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Paint the walls that face the camera, the roof, and into `windows` what is lit at night."""
    wall = pick(rng, WALLS)
    foot = house.footprint
    for a, b, front in ((3, 0, False), (1, 2, False), (0, 1, True)):
        p, q = foot[a], foot[b]
        outward = np.array([(q - p)[1], -(q - p)[0], 0.0]) / np.linalg.norm(q - p)
        if outward[:2] @ (-p) <= 0:
            continue
        size = (float(np.linalg.norm(q - p)), house.high)
        picture, lit = _shed_wall(rng, size, wall) if house.shed else _facade(rng, size, wall, front)
        light = AMBIENT * 0.92 + SUN * max(0.0, float(outward @ sun))
        corners = [(*p, house.high), (*q, house.high), (*q, 0.0), (*p, 0.0)]
        _hang(canvas, windows, depth, camera, np.clip(picture * light, 0, 255).astype(np.uint8), lit, np.array(corners))
    if house.gable:
        _roof(canvas, depth, camera, house, sun, rng)


def _hang(
    canvas: Image,
    windows: Image,
    depth: NDArray[np.float32],
    camera: Camera,
    picture: Image,
    lit: Image,
    corners: Array,
) -> None:
    """Put a painted wall at four world corners: top left, top right, bottom right, bottom left."""
    height, width = picture.shape[:2]
    pixels, distance = camera.project(corners)
    flat = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    view = cv2.getPerspectiveTransform(flat, pixels.astype(np.float32))
    mask = np.zeros(depth.shape, np.uint8)
    cv2.fillConvexPoly(mask, np.round(np.clip(pixels, -9e3, 9e3)).astype(np.int32), 255)
    x, y, wide, high = cv2.boundingRect(mask)
    part = np.s_[y : y + high, x : x + wide]
    inside = mask[part] > 0
    view = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]]) @ view
    for image, target in ((picture, canvas[..., :3]), (lit, windows)):
        seen = cv2.warpPerspective(image, view, (wide, high), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        target[part][inside] = seen[inside]
    depth[part][inside] = float(distance.mean())


def _roof(
    canvas: Image, depth: NDArray[np.float32], camera: Camera, house: House, sun: Array, rng: np.random.Generator
) -> None:
    """A pitched roof: the slope towards the street, and the gable ends."""
    tiles = pick(rng, ((52, 62, 96), (70, 70, 74), (60, 84, 120), (48, 50, 56)))
    a, b, c, d = house.footprint
    over = 0.35 * (a - d) / np.linalg.norm(a - d)
    ridge = house.high + 3.0
    left, right = (a + d) / 2, (b + c) / 2
    corners = np.array(
        [(*left, ridge), (*right, ridge), (*(b + over), house.high - 0.2), (*(a + over), house.high - 0.2)]
    )
    width, height = round(float(np.linalg.norm(b - a)) * FACADE_SCALE), round(5 * FACADE_SCALE)
    picture = np.array(tiles, np.float32) * (0.8 + 0.4 * noise(rng, (height, width), (60, 12, 4), (1, 1, 1)))[..., None]
    picture[::9] *= 0.7
    normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
    normal *= np.sign(normal[2]) / np.linalg.norm(normal)
    shaded = np.clip(picture * (AMBIENT + SUN * max(0.0, float(normal @ sun))), 0, 255).astype(np.uint8)
    for end, near, far in ((left, a, d), (right, b, c)):
        triangle, _ = camera.project(np.array([(*near, house.high), (*far, house.high), (*end, ridge)]))
        cv2.fillConvexPoly(canvas, np.round(triangle).astype(np.int32), (*darker(tiles, 0.9), 0))
    _hang(canvas, np.zeros_like(canvas[..., :3]), depth, camera, shaded, np.zeros_like(shaded), corners)


def _wall(rng: np.random.Generator, size: tuple[float, float], colour: Colour, bricks: bool) -> NDArray[np.float32]:
    width, height = (max(8, round(x * FACADE_SCALE)) for x in size)
    grain = noise(rng, (height, width), (120, 30, 3), (1, 0.7, 0.8))
    image = np.array(colour, np.float32) * (0.82 + 0.36 * grain)[..., None]
    if bricks:
        image[::6] *= 0.86
        tone = rng.normal(1, 0.07, (height // 6 + 1, width // 14 + 1)).astype(np.float32)
        image *= cv2.resize(tone, (width, height), interpolation=cv2.INTER_NEAREST)[..., None]
    streaks = cv2.resize(rng.random((1, width // 10 + 2), np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    fade = np.linspace(1, 0.2, height, dtype=np.float32)[:, None]
    image *= (1 - 0.16 * streaks * fade)[..., None]
    image[-round(0.5 * FACADE_SCALE) :] *= 0.72
    return image


def _facade(
    rng: np.random.Generator, size: tuple[float, float], colour: Colour, front: bool
) -> tuple[NDArray[np.float32], Image]:
    """Return a wall of a dwelling house with windows, doors and perhaps a shop, and its light at night."""
    image = _wall(rng, size, colour, bool(rng.random() < 0.5))
    lit = np.zeros(image.shape, np.uint8)
    height, width = image.shape[:2]
    m = FACADE_SCALE
    image[: round(0.35 * m)] = np.array(darker(colour, 0.6))
    image[round(0.35 * m) : round(0.45 * m)] *= 0.55
    frame = pick(rng, ((224, 226, 226), (60, 70, 84), (190, 196, 200)))
    shop = front and rng.random() < 0.4 and size[1] > 6
    step = rng.uniform(2.2, 3.2) if front else rng.uniform(3.4, 4.5)
    tall, broad = rng.uniform(1.3, 1.7), rng.uniform(0.9, 1.5)
    door = rng.integers(max(1, int(size[0] / step)))
    for floor, sill in enumerate(np.arange(0.9, size[1] - 1.9, 2.9)):
        if floor == 0 and shop:
            _shop(image, lit, rng)
            continue
        for k, x in enumerate(np.arange(0.8, size[0] - broad - 0.5, step)):
            left, top = round(x * m), round(height - (sill + tall) * m)
            if floor == 0 and front and k == door:
                _door(image, rng, left, round(height - 2.15 * m), round(1.05 * m), height)
            else:
                _window(image, lit, rng, (left, top, round(broad * m), round(tall * m)), frame)
    if rng.random() < 0.6:
        x = round(rng.uniform(0.02, 0.98) * width)
        cv2.line(image, (x, 0), (x, height), darker(colour, 0.5), 4)
    return image, lit


def _window(
    image: NDArray[np.float32], lit: Image, rng: np.random.Generator, box: tuple[int, int, int, int], frame: Colour
) -> None:
    x, y, w, h = box
    cv2.rectangle(image, (x - 3, y - 3), (x + w + 3, y + h + 3), frame, -1)
    cv2.rectangle(image, (x - 6, y + h + 3), (x + w + 6, y + h + 8), darker(frame, 0.8), -1)
    pane = np.linspace(rng.uniform(90, 150), rng.uniform(36, 70), h, dtype=np.float32)[:, None, None]
    glass = pane * np.array([1.12, 1.0, 0.9], np.float32)
    shape = image[y : y + h, x : x + w].shape
    image[y : y + h, x : x + w] = np.broadcast_to(glass[: shape[0]], shape)
    if rng.random() < 0.55:
        drawn = round(w * rng.uniform(0.15, 0.45))
        cloth = pick(rng, ((190, 200, 206), (120, 130, 150), (150, 160, 150)))
        cv2.rectangle(image, (x, y), (x + drawn, y + h), cloth, -1)
        cv2.rectangle(image, (x + w - drawn, y), (x + w, y + h), darker(cloth, 0.93), -1)
    if rng.random() < 0.33:
        cv2.rectangle(lit, (x, y), (x + w, y + h), darker(pick(rng, LIT_WINDOWS), rng.uniform(0.4, 0.9)), -1)
    for target, tone in ((image, frame), (lit, (8.0, 10.0, 12.0))):
        cv2.line(target, (x + w // 2, y), (x + w // 2, y + h), tone, 3)
        cv2.line(target, (x, y + h // 3), (x + w, y + h // 3), tone, 2)


def _door(image: NDArray[np.float32], rng: np.random.Generator, x: int, y: int, w: int, bottom: int) -> None:
    colour = pick(rng, ((50, 60, 110), (70, 90, 60), (60, 50, 46), (120, 80, 50), (200, 204, 206)))
    cv2.rectangle(image, (x - 5, y - 6), (x + w + 5, bottom), (196, 200, 204), -1)
    cv2.rectangle(image, (x, y), (x + w, bottom), colour, -1)
    cv2.rectangle(image, (x + w // 5, y + 8), (x + 4 * w // 5, y + 26), (90, 84, 76), -1)
    cv2.circle(image, (x + w - 7, (y + bottom) // 2), 3, (190, 200, 205), -1)


def _shop(image: NDArray[np.float32], lit: Image, rng: np.random.Generator) -> None:
    """A ground floor of display windows below a sign."""
    height, width = image.shape[:2]
    m = FACADE_SCALE
    sign = pick(rng, ((60, 50, 150), (120, 80, 40), (60, 110, 60), (50, 50, 50), (60, 150, 190)))
    top = round(height - 3.2 * m)
    image[top:] = np.array(darker(sign, 0.5))
    image[top : top + round(0.6 * m)] = np.array(sign)
    for x in range(round(0.6 * m), width - round(1.6 * m), round(2.4 * m)):
        corner, far = (x, top + round(0.75 * m)), (x + round(2.1 * m), height - round(0.5 * m))
        cv2.rectangle(image, corner, far, (86, 76, 66), -1)
        cv2.rectangle(image, corner, (far[0], corner[1] + round(0.5 * m)), (128, 118, 104), -1)
        for _ in range(6):
            cx, cy = int(rng.integers(x + 10, x + 66)), int(rng.integers(corner[1] + 24, far[1] - 8))
            cv2.rectangle(image, (cx - 6, cy - 9), (cx + 6, cy + 9), pick(rng, WALLS), -1)
        cv2.rectangle(lit, corner, far, (150, 190, 210), -1)
    for x in range(round(0.8 * m), min(width - 12, round(5 * m)), 16):
        cv2.rectangle(image, (x, top + 6), (x + int(rng.integers(5, 12)), top + 15), (214, 218, 222), -1)


def _shed_wall(
    rng: np.random.Generator, size: tuple[float, float], colour: Colour
) -> tuple[NDArray[np.float32], Image]:
    """A warehouse: ribbed sheet metal, roller doors and a few lamps."""
    image = _wall(rng, size, pick(rng, ((160, 156, 150), (140, 150, 150), (150, 130, 110))), False)
    height, width = image.shape[:2]
    m = FACADE_SCALE
    image[:, ::10] *= 0.86
    image[:, 1::10] *= 1.06
    lit = np.zeros(image.shape, np.uint8)
    for x in range(round(1.2 * m), width - round(3.8 * m), round(5.5 * m)):
        top = height - round(3.1 * m)
        shutter = pick(rng, ((120, 124, 128), (150, 110, 60), (90, 96, 150)))
        cv2.rectangle(image, (x - 6, top - 8), (x + round(3.3 * m) + 6, height), darker(shutter, 0.5), -1)
        cv2.rectangle(image, (x, top), (x + round(3.3 * m), height), shutter, -1)
        for y in range(top, height, 7):
            cv2.line(image, (x, y), (x + round(3.3 * m), y), darker(shutter, 0.82), 1)
        cv2.circle(lit, (x + round(1.6 * m), top - 22), 9, (190, 220, 235), -1)
        cv2.circle(image, (x + round(1.6 * m), top - 22), 8, (190, 194, 196), -1)
    return image, lit
