"""Static parts of the scenes: street, houses, trees and lamps of each of a few fixed cameras, painted once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from demo_scenes.geometry import SUPERSAMPLE, Array, Camera, Image, Placed, cast_shadow, paint, place
from demo_scenes.ground import draw_ground, paint_map, shadow_map
from demo_scenes.houses import draw_house, houses, noise
from demo_scenes.props import props
from demo_scenes.street import Street

WIDTH, HEIGHT = 640, 360
SWAY = 6
"""Largest shift of the picture by wind in pixels, which is the margin painted on every side."""
CAMERAS = 8
FIRST_PROP_ID = 200
"""Ids in the canvas's fourth channel: 0 is ground, house or sky, 1 to 199 are labelled objects."""
SKY_DEPTH = 220.0


@dataclass(frozen=True)
class Layer:
    """A static object among the moving ones: `patch` uint8 [h, w, 4] is pasted at `corner` where `mask` is 1."""

    distance: float
    corner: tuple[int, int]
    patch: Image
    mask: Image

    def paste(self, canvas: Image) -> None:
        x, y = self.corner
        height, width = self.mask.shape
        cv2.copyTo(self.patch, self.mask, canvas[y : y + height, x : x + width])


@dataclass(frozen=True)
class Backdrop:
    """The static part of one camera's view. Sizes include the sway on every side.

    canvas   uint8 [2 h, 2 w, 4]: the picture in plain daylight without `layers`; the fourth channel is 0
    layers   from far to near
    shadow   uint8 [h, w]: share of the sun that is blocked
    lamps    float32 [h, w]: light of the street lamps, 1 below a lamp
    depth    float32 [h, w]: metres to the visible surface
    ground   bool [h, w]: where the ground is visible
    windows  uint8 [h, w, 3]: light of windows at night
    bulbs    float64 [n, 2]: pixels of the street lamps
    """

    camera: Camera
    street: Street
    sun: Array
    canvas: Image
    layers: tuple[Layer, ...]
    shadow: Image
    lamps: NDArray[np.float32]
    depth: NDArray[np.float32]
    ground: NDArray[np.bool_]
    windows: Image
    bulbs: Array


@lru_cache(maxsize=CAMERAS)
def backdrop(index: int) -> Backdrop:
    """Paint the view of camera `index` (0 to CAMERAS - 1)."""
    rng = np.random.default_rng([977, index])
    camera, street, sun = _camera(rng), _street(rng, index), _sun(rng)
    width, height = camera.size
    canvas = np.zeros((height, width, 4), np.uint8)
    windows = np.zeros((height, width, 3), np.uint8)
    depth = _ground_depth(camera)
    bare = depth.copy()
    _draw_sky(canvas, depth, rng)
    row = houses(rng, street, camera)
    draw_ground(canvas, depth, camera, paint_map(rng, street))
    shadow = np.zeros((height, width), np.uint8)
    draw_ground(shadow, depth, camera, shadow_map(row, sun))
    for house in row:
        draw_house(canvas, windows, depth, camera, house, sun, rng)
    things, bulbs = props(rng, street)
    placed = sorted((place(mesh, pose, camera) for mesh, pose in things), key=lambda p: -p.distance)
    small_shadow: Image = _halve(shadow)
    small_depth: NDArray[np.float32] = _halve(depth)
    for thing in placed:
        cast_shadow(small_shadow, thing, camera, sun, 255)
    layers = [_layer(thing, camera, sun, FIRST_PROP_ID + k) for k, thing in enumerate(placed)]
    spots, _ = camera.project(bulbs)
    ground: NDArray[np.bool_] = _halve((depth == bare).astype(np.uint8) * 255) > 127
    return Backdrop(
        camera=camera, street=street, sun=sun, canvas=canvas, layers=tuple(x for x in layers if x is not None),
        shadow=cv2.GaussianBlur(small_shadow, (0, 0), 0.9), lamps=_lamp_light(camera, depth, bulbs),
        depth=small_depth, ground=ground & (small_depth < SKY_DEPTH), windows=_halve(windows),
        bulbs=spots / SUPERSAMPLE,
    )  # fmt: skip


def _camera(rng: np.random.Generator) -> Camera:
    size = ((WIDTH + 2 * SWAY) * SUPERSAMPLE, (HEIGHT + 2 * SWAY) * SUPERSAMPLE)
    view = math.radians(rng.uniform(60, 74))
    focal = WIDTH * SUPERSAMPLE / 2 / math.tan(view / 2)
    return Camera(rng.uniform(3.8, 5.6), math.radians(rng.uniform(13, 18)), rng.normal(0, 0.01), focal, size)


def _street(rng: np.random.Generator, index: int) -> Street:
    """Return the layout: every fourth is a yard, others a street along or across the view, half with a side road."""
    yard = index % 4 == 3
    return Street(
        angle=math.radians(rng.uniform(-32, 32)),
        distance=rng.uniform(15, 17) if yard else rng.uniform(12, 15.5),
        half_road=rng.uniform(6, 7) if yard else rng.uniform(3.2, 3.7),
        pavement=rng.uniform(2.4, 3.4),
        side_road=None if index % 2 else rng.uniform(-3, 9),
        yard=yard,
    )


def _sun(rng: np.random.Generator) -> Array:
    """A unit vector towards the sun, mostly behind the camera so that the fronts of the houses are lit."""
    turn = rng.uniform(-2.8, -0.35) if rng.random() < 0.75 else rng.uniform(0.5, 2.6)
    rise = rng.uniform(0.7, 1.05)
    return np.array([math.cos(turn) * math.cos(rise), math.sin(turn) * math.cos(rise), math.sin(rise)])


def _rays(camera: Camera) -> Array:
    """Unit vectors in the world through each canvas pixel, float64 [h, w, 3]."""
    width, height = camera.size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inverse = np.linalg.inv(camera.matrix[:, :3])
    ray = np.stack([u, v, np.ones_like(u)], axis=-1) @ inverse.T
    unit: Array = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    return unit


def _ground_depth(camera: Camera) -> NDArray[np.float32]:
    down = -_rays(camera)[..., 2]
    return np.where(down > camera.height / SKY_DEPTH, camera.height / np.maximum(down, 1e-6), SKY_DEPTH).astype(
        np.float32
    )


def _draw_sky(canvas: Image, depth: NDArray[np.float32], rng: np.random.Generator) -> None:
    height, width = depth.shape
    rise = np.linspace(0, 1, height)[:, None, None] * 3
    blue = np.array([232, 196, 150]) * (1 - np.minimum(rise, 1)) + np.array([236, 226, 214]) * np.minimum(rise, 1)
    clouds = np.clip(noise(rng, (height, width), (160, 60, 24), (1, 0.5, 0.25)) * 1.4 - 0.1, 0, 1)[..., None]
    canvas[..., :3] = blue * (1 - clouds) + 244 * clouds


def _layer(thing: Placed, camera: Camera, sun: Array, number: int) -> Layer | None:
    canvas = np.zeros((camera.size[1], camera.size[0], 4), np.uint8)
    paint(canvas, thing, camera, sun, (number,))
    x, y, width, height = cv2.boundingRect(canvas[..., 3])
    if not width:
        return None
    patch = np.ascontiguousarray(canvas[y : y + height, x : x + width])
    return Layer(thing.distance, (x, y), patch, (patch[..., 3] > 0).astype(np.uint8))


def _lamp_light(camera: Camera, depth: NDArray[np.float32], bulbs: Array) -> NDArray[np.float32]:
    """Return the inverse-square light of the lamps on visible surfaces, 1 at the foot of a lamp."""
    small = cv2.resize(_rays(camera), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    seen = camera.position + small * cv2.resize(depth, small.shape[1::-1], interpolation=cv2.INTER_AREA)[..., None]
    light = np.zeros(small.shape[:2])
    for bulb in bulbs:
        light += (bulb[2] ** 2 / np.maximum(((seen - bulb) ** 2).sum(axis=-1), 1.0)) ** 1.25
    size = (camera.size[0] // SUPERSAMPLE, camera.size[1] // SUPERSAMPLE)
    full: NDArray[np.float32] = cv2.resize(np.minimum(light, 1.4).astype(np.float32), size)
    return full


def _halve(image: NDArray[np.generic]) -> Any:
    """The same picture at the frame's size, same dtype."""
    return cv2.resize(image, None, fx=1 / SUPERSAMPLE, fy=1 / SUPERSAMPLE, interpolation=cv2.INTER_AREA)
