"""The demo's ground: a map of street, pavement and grass seen from above, and its view through a camera.

Street axes: see `street`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from demo_scenes.geometry import Array, Camera, Colour, Image
from demo_scenes.houses import House, noise
from demo_scenes.street import Street, street_crossing

MAP_SCALE = 30
"""Pixels per metre of the map."""
MAP_X, MAP_Y = (-36.0, 36.0), (2.0, 62.0)
PAINT_WHITE: Colour = (214, 218, 220)


def on_map(points: Sequence[tuple[float, float]]) -> NDArray[np.int32]:
    """World x, y in metres -> map pixels."""
    return np.round((np.array(points) - (MAP_X[0], MAP_Y[0])) * MAP_SCALE).astype(np.int32)


def paint_map(rng: np.random.Generator, street: Street) -> Image:
    """The ground from above, uint8 [h, w, 3]."""
    shape = (round((MAP_Y[1] - MAP_Y[0]) * MAP_SCALE), round((MAP_X[1] - MAP_X[0]) * MAP_SCALE))
    grass = np.array([58, 104, 92]) + rng.normal(0, 8, 3)
    image = np.empty((*shape, 3), np.float32)
    image[:] = grass if not street.yard or rng.random() < 0.5 else (120, 138, 150)
    image += cv2.merge([(noise(rng, shape, (90, 30, 8, 3), (1, 1, 0.8, 0.8)) - 0.5) * 60] * 3)
    asphalt = float(rng.uniform(84, 122)) + noise(rng, shape, (300, 90, 2), (1.2, 0.8, 0.9)) * 34 - 17
    slabs = float(rng.uniform(140, 172)) + noise(rng, shape, (120, 24, 2), (1, 0.6, 0.8)) * 26 - 13
    edge, kerb = street.half_road + street.pavement, street.half_road + 0.16
    _fill(image, _band(shape, street, -edge, edge), slabs, (0.97, 1.0, 1.02))
    _joints(image, street, edge)
    _fill(image, _band(shape, street, -kerb, kerb), slabs * 1.12, (1, 1, 1))
    _fill(image, _band(shape, street, -street.half_road, street.half_road), asphalt, (1.02, 1.0, 0.98))
    if street.side_road is not None:
        _fill(image, _side(shape, street, street.side_road, 3.0 + street.pavement * 0.7), slabs, (0.97, 1, 1.02))
        _fill(image, _side(shape, street, street.side_road, 3.0), asphalt, (1.02, 1.0, 0.98))
    _wear(image, rng, street)
    _markings(image, rng, street)
    return np.clip(image, 0, 255).astype(np.uint8)


def _fill(image: NDArray[np.float32], mask: Image, grey: NDArray[np.float32], tint: Colour) -> None:
    cv2.copyTo(cv2.merge([grey * np.float32(share) for share in tint]), mask, image)


def _band(shape: tuple[int, int], street: Street, low: float, high: float) -> Image:
    mask = np.zeros(shape, np.uint8)
    corners = [street.to_world(s, t) for s, t in ((-90, low), (90, low), (90, high), (-90, high))]
    cv2.fillConvexPoly(mask, on_map(corners), 255)
    return mask


def _side(shape: tuple[int, int], street: Street, middle: float, half: float) -> Image:
    mask = np.zeros(shape, np.uint8)
    low, high, near = middle - half, middle + half, street.half_road - 0.1
    corners = [street.to_world(s, t) for s, t in ((low - 1.2, near), (high + 1.2, near), (high, near + 1.6), (high, 80),
                                                  (low, 80), (low, near + 1.6))]  # fmt: skip
    cv2.fillPoly(mask, [on_map(corners)], 255)
    return mask


def _joints(image: NDArray[np.float32], street: Street, edge: float) -> None:
    """Gaps between paving slabs."""
    lines = [((s, -edge), (s, edge)) for s in np.arange(-45, 45, 0.9)]
    lines += [((-90, t), (90, t)) for t in np.arange(-edge, edge, 0.9)]
    shape = (image.shape[0], image.shape[1])
    joints = np.zeros(shape, np.uint8)
    for a, b in lines:
        p, q = on_map([street.to_world(*a), street.to_world(*b)])
        cv2.line(joints, p.tolist(), q.tolist(), 255, 1)
    joints &= _band(shape, street, -edge, edge)
    image[joints > 0] *= np.float32(0.82)


def _wear(image: NDArray[np.float32], rng: np.random.Generator, street: Street) -> None:
    """Tyre tracks, repaired patches, cracks, oil and manhole covers."""
    road = street.half_road
    tone = np.ones(image.shape[:2], np.float32)
    for t in (-0.72 * road, -0.3 * road, 0.3 * road, 0.72 * road):
        p, q = on_map([street.to_world(-90, t), street.to_world(90, t)])
        cv2.line(tone, p.tolist(), q.tolist(), 0.9, 14)
    tone = cv2.GaussianBlur(tone, (0, 0), 7)
    for _ in range(9):
        s, t = rng.uniform(-18, 22), rng.uniform(-road, road)
        long, wide = rng.uniform(0.6, 4), rng.uniform(0.5, 1.4)
        corners = [street.to_world(s + a * long, t + b * wide) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
        cv2.fillConvexPoly(tone, on_map(corners), float(rng.uniform(0.78, 1.1)))
    for _ in range(8):
        at = np.array([rng.uniform(-18, 22), rng.uniform(-road, road)])
        walk = at + np.cumsum(rng.normal(0, 0.35, (14, 2)), axis=0)
        cv2.polylines(tone, [on_map([street.to_world(*p) for p in walk])], False, 0.7, 1, cv2.LINE_AA)
    for _ in range(4):
        centre = on_map([street.to_world(rng.uniform(-12, 14), rng.uniform(-road, road))])[0].tolist()
        cv2.circle(tone, centre, 11, 0.62, -1, cv2.LINE_AA)
        cv2.circle(tone, centre, 11, 0.5, 2, cv2.LINE_AA)
    image *= cv2.merge([tone] * 3)


def _markings(image: NDArray[np.float32], rng: np.random.Generator, street: Street) -> None:
    """Lane lines and a zebra crossing, or the bays of a yard, in worn paint."""
    shape = (image.shape[0], image.shape[1])
    mask = np.zeros(shape, np.uint8)

    def block(s0: float, s1: float, t0: float, t1: float) -> None:
        corners = [street.to_world(s, t) for s, t in ((s0, t0), (s1, t0), (s1, t1), (s0, t1))]
        cv2.fillConvexPoly(mask, on_map(corners), 255, cv2.LINE_AA)

    road = street.half_road
    if street.yard:
        for s in np.arange(-20, 26, 2.7):
            block(s, s + 0.12, road - 5.2, road - 0.3)
        block(-20, 26, road - 5.2, road - 5.08)
    else:
        for s in np.arange(-60, 60, 4.5):
            block(s, s + 2.0, -0.07, 0.07)
        for t in (-road + 0.3, road - 0.3):
            block(-90, 90, t - 0.06, t + 0.06)
        crossing = street_crossing(street)
        clear = [street.to_world(crossing + s, t) for s, t in ((-1.6, -road), (1.6, -road), (1.6, road), (-1.6, road))]
        cv2.fillConvexPoly(mask, on_map(clear), 0)
        for t in np.arange(-road + 0.35, road - 0.3, 1.0):
            block(crossing - 1.4, crossing + 1.4, t, t + 0.5)
    painted = mask > 0
    worn = np.clip(noise(rng, shape, (40, 10, 3), (1, 1, 1))[painted] * 1.6 - 0.1, 0.25, 0.95)
    worn *= mask[painted] / np.float32(255)
    image[painted] += (np.array(PAINT_WHITE, np.float32) - image[painted]) * worn[:, None]


def shadow_map(row: Sequence[House], sun: Array) -> Image:
    """Shadows of the houses from above, uint8 [h, w]."""
    shape = (round((MAP_Y[1] - MAP_Y[0]) * MAP_SCALE), round((MAP_X[1] - MAP_X[0]) * MAP_SCALE))
    mask = np.zeros(shape, np.uint8)
    for house in row:
        foot = house.footprint
        fallen = foot - sun[:2] * house.high / sun[2]
        cv2.fillConvexPoly(mask, cv2.convexHull(on_map(np.concatenate([foot, fallen]).tolist())), 255)
    return mask


def draw_ground(canvas: Image, depth: NDArray[np.float32], camera: Camera, image: Image) -> None:
    """View a map of the ground, with one or three channels, through the camera, wherever the ground is in sight."""
    to_world = np.array([[1 / MAP_SCALE, 0, MAP_X[0]], [0, 1 / MAP_SCALE, MAP_Y[0]], [0, 0, 1]])
    view = camera.matrix[:, [0, 1, 3]] @ to_world
    seen = cv2.warpPerspective(image, view, camera.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    below = (depth < depth.max()).astype(np.uint8)
    if image.ndim == 3:
        seen = cv2.merge([*cv2.split(seen), np.zeros_like(below)])
    cv2.copyTo(seen, below, canvas)
