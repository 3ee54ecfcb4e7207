"""The 3-D side of the demo: a pinhole camera, meshes of simple parts, and a painter that draws them with shading.

World axes in metres: x right, y away from the camera along the ground, z up. The camera stands at x = y = 0.
An object's own axes: x forward, y left, z up, origin on the ground below its middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]

SUPERSAMPLE = 2
"""Supersampling factor: everything is drawn at twice the frame's size and averaged down, for smooth edges."""
SUN, AMBIENT = 0.62, 0.58
FACE, LIMB, WIRE = range(3)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera `height` metres up, tilted down by `pitch` and rolled by `roll` radians.

    `focal` and `size` (width, height) are in pixels of the supersampled canvas.
    """

    height: float
    pitch: float
    roll: float
    focal: float
    size: tuple[int, int]

    @property
    def position(self) -> Array:
        return np.array([0.0, 0.0, self.height])

    @cached_property
    def matrix(self) -> Array:
        """float64 [3, 4]: world to homogeneous pixels; the third row gives the depth in metres."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        view = np.array([[1.0, 0.0, 0.0], [0.0, -s, -c], [0.0, c, -s]])
        cr, sr = math.cos(self.roll), math.sin(self.roll)
        view = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]]) @ view
        lens = np.array([[self.focal, 0.0, self.size[0] / 2], [0.0, self.focal, self.size[1] / 2], [0.0, 0.0, 1.0]])
        matrix: Array = lens @ np.column_stack([view, -view @ self.position])
        return matrix

    def project(self, points: Array) -> tuple[Array, Array]:
        """World points float64 [n, 3] -> pixels float64 [n, 2] and depths float64 [n] (at least 0.3 m)."""
        matrix = self.matrix
        homogeneous = points @ matrix[:, :3].T + matrix[:, 3]
        depth = np.maximum(homogeneous[:, 2], 0.3)
        return homogeneous[:, :2] / depth[:, None], depth


@dataclass(frozen=True)
class Part:
    """One primitive of a mesh: a flat face, a limb (two joined balls) or a wire (polyline).

    Parts are painted by `layer`, then group by group from far to near, then in the order they were added. A face is
    seen from the side that looks away from the middle of its group. `tag` tells apart objects that share a mesh.
    """

    kind: int
    points: tuple[int, ...]
    colour: Colour
    layer: int
    group: int
    tag: int = 0
    radii: tuple[float, float] = (0.0, 0.0)
    gloss: float = 0.0


@dataclass
class Mesh:
    """Vertices and parts of one object (or of two that touch, such as a bicycle and its rider)."""

    vertices: list[Point] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    headlights: list[Point] = field(default_factory=list)
    taillights: list[Point] = field(default_factory=list)
    layer: int = 0
    group: int = 0
    tag: int = 0

    def start(self, layer: int) -> None:
        """Parts added from here on form a new group in `layer`."""
        self.layer = layer
        self.group += 1

    def add(self, points: Iterable[Point]) -> tuple[int, ...]:
        first = len(self.vertices)
        self.vertices.extend(points)
        return tuple(range(first, len(self.vertices)))

    def face(self, points: Iterable[Point], colour: Colour, gloss: float = 0.0) -> None:
        index = self.add(points)
        self.parts.append(Part(FACE, index, colour, self.layer, self.group, self.tag, gloss=gloss))

    def limb(self, a: Point, b: Point, radius_a: float, radius_b: float, colour: Colour) -> None:
        """A tapered rod with round ends; each limb sorts by its own distance."""
        self.group += 1
        index = self.add((a, b))
        self.parts.append(Part(LIMB, index, colour, self.layer, self.group, self.tag, (radius_a, radius_b)))

    def wire(self, points: Iterable[Point], radius: float, colour: Colour) -> None:
        index = self.add(points)
        self.parts.append(Part(WIRE, index, colour, self.layer, self.group, self.tag, (radius, radius)))

    def box(self, low: Point, high: Point, colour: Colour, gloss: float = 0.0) -> None:
        """An upright box. It has no bottom face, which is never visible."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        self.loft([[(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)],
                   [(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)]], colour, gloss)  # fmt: skip

    def loft(self, rings: Sequence[Sequence[Point]], colour: Colour, gloss: float = 0.0) -> None:
        """A solid through open rings of equal length (bottom edge left out), closed at both ends."""
        for near, far in pairwise(rings):
            for k in range(len(near) - 1):
                self.face((near[k], near[k + 1], far[k + 1], far[k]), colour, gloss)
        for ring in (rings[0], rings[-1]):
            self.face(ring, colour, gloss)

    def disc(self, centre: Point, radius: float, colour: Colour, sides: int = 14) -> None:
        """A wheel's face: a disc in the object's x-z plane."""
        x, y, z = centre
        self.face([(x + radius * cosine, y, z + radius * sine) for cosine, sine in _circle(sides)], colour)


@lru_cache
def _circle(sides: int) -> list[tuple[float, float]]:
    turns = np.linspace(0, 2 * math.pi, sides, endpoint=False)
    return [(math.cos(turn), math.sin(turn)) for turn in turns]


def inset(quad: Sequence[Point], u0: float, u1: float, v0: float, v1: float, lift: float = 0.0) -> list[Point]:
    """The part of a quad between shares u of its first edge and v of its second, moved `lift` metres along y."""
    a, b, c, d = quad

    def at(u: float, v: float) -> Point:
        wa, wb, wc, wd = (1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v
        x, y, z = (wa * a[k] + wb * b[k] + wc * c[k] + wd * d[k] for k in range(3))
        return x, y + lift, z

    return [at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)]


@dataclass(frozen=True)
class Pose:
    """Pose of an object: ground position in metres and heading in radians from the world's x axis."""

    x: float
    y: float
    heading: float

    def place(self, points: Array) -> Array:
        """Points of the object float64 [n, 3] -> world float64 [n, 3]."""
        c, s = math.cos(self.heading), math.sin(self.heading)
        turned: Array = points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        turned[:, 0] += self.x
        turned[:, 1] += self.y
        return turned


@dataclass(frozen=True)
class Placed:
    """A mesh at its pose: world points, pixels and depths of its vertices."""

    mesh: Mesh
    world: Array
    pixels: Array
    depth: Array
    distance: float


def place(mesh: Mesh, pose: Pose, camera: Camera) -> Placed:
    """Put a mesh into the world and project it. `distance` of the result: metres along the ground to its origin."""
    world = pose.place(np.array(mesh.vertices))
    pixels, depth = camera.project(world)
    return Placed(mesh, world, pixels, depth, math.hypot(pose.x, pose.y))


def paint(canvas: Image, placed: Placed, camera: Camera, sun: Array, ids: Sequence[int]) -> None:
    """Draw a placed mesh on canvas uint8 [h, w, 4]: shaded BGR, and `ids[tag]` in the fourth channel.

    `sun` float64 [3] is the unit vector towards the sun.
    """
    parts = placed.mesh.parts
    centres = _group_centres(placed)
    distances = np.linalg.norm(centres - camera.position, axis=1)
    order = sorted(range(len(parts)), key=lambda i: (parts[i].layer, -distances[parts[i].group], i))
    shades = _face_shades(placed, centres, camera, sun)
    corners = np.round(placed.pixels).astype(np.int32)
    limbs = _limb_outlines(placed, camera, sun)
    for i in order:
        part = parts[i]
        number = ids[part.tag]
        if part.kind == FACE:
            if shades[i] > 0:
                cv2.fillConvexPoly(canvas, corners[list(part.points)], _ink(part.colour, shades[i], number))
        elif part.kind == LIMB:
            body, highlight = limbs[i]
            cv2.fillConvexPoly(canvas, body, _ink(part.colour, 0.74, number))
            cv2.fillConvexPoly(canvas, highlight, _ink(part.colour, 1.02, number))
        else:
            scale = camera.focal / placed.depth[part.points[0]]
            thickness = max(1, round(2 * part.radii[0] * scale))
            cv2.polylines(canvas, [corners[list(part.points)]], False, _ink(part.colour, 0.9, number), thickness)


def _ink(colour: Colour, shade: float, number: int) -> tuple[float, float, float, int]:
    b, g, r = (min(255.0, c * shade) for c in colour)
    return b, g, r, number


def _group_centres(placed: Placed) -> Array:
    groups = np.array([part.group for part in placed.mesh.parts for _ in part.points])
    points = placed.world[[point for part in placed.mesh.parts for point in part.points]]
    count = np.maximum(np.bincount(groups), 1)
    return np.stack([np.bincount(groups, points[:, k]) / count for k in range(3)], axis=1)


def _face_shades(placed: Placed, centres: Array, camera: Camera, sun: Array) -> Array:
    """Brightness of each part's face, float64 [parts]; 0 where it looks away from the camera or is no face."""
    parts = placed.mesh.parts
    shades = np.zeros(len(parts))
    which = [i for i, part in enumerate(parts) if part.kind == FACE]
    if not which:
        return shades
    corner = np.array([(p.points[0], p.points[1], p.points[2], p.points[-1]) for p in (parts[i] for i in which)])
    points = placed.world[corner]
    normal = np.cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    middle = points.mean(axis=1)
    normal[np.einsum("ij,ij->i", normal, middle - centres[[parts[i].group for i in which]]) < 0] *= -1
    to_camera = camera.position - middle
    seen = np.einsum("ij,ij->i", normal, to_camera) > 0
    gloss = np.array([parts[i].gloss for i in which])
    mirrored = 2 * (normal @ sun)[:, None] * normal - sun
    to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
    glint = np.maximum(np.einsum("ij,ij->i", mirrored, to_camera), 0) ** 12
    light = AMBIENT * (0.8 + 0.2 * normal[:, 2]) + SUN * np.maximum(normal @ sun, 0) + gloss * (
        glint + 0.35 * np.maximum(normal[:, 2], 0))  # fmt: skip
    shades[which] = np.where(seen, light, 0.0)
    return shades


def _limb_outlines(
    placed: Placed, camera: Camera, sun: Array
) -> dict[int, tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Outlines of each limb: the whole, and the narrower part that faces the sun."""
    parts = placed.mesh.parts
    which = [i for i, part in enumerate(parts) if part.kind == LIMB]
    if not which:
        return {}
    ends = np.array([parts[i].points for i in which])
    centre = placed.pixels[ends]
    radius = np.array([parts[i].radii for i in which]) * camera.focal / placed.depth[ends]
    along = centre[:, 1] - centre[:, 0]
    angle = np.arctan2(along[:, 1], along[:, 0])[:, None]
    arc = np.linspace(-math.pi / 2, math.pi / 2, 5)
    turn = np.stack([angle + math.pi + arc, angle + arc], axis=1)
    ray = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    towards = np.array([sun[0], -0.6])
    offset = 0.28 * radius[:, :, None] * towards / np.linalg.norm(towards)
    body = centre[:, :, None] + radius[:, :, None, None] * ray
    highlight = (centre + offset)[:, :, None] + 0.62 * radius[:, :, None, None] * ray
    outlines = np.round(np.stack([body, highlight])).astype(np.int32).reshape(2, len(which), 10, 2)
    return {i: (outlines[0, k], outlines[1, k]) for k, i in enumerate(which)}


def cast_shadow(mask: Image, placed: Placed, camera: Camera, sun: Array, value: int) -> None:
    """Draw the object's shadow on the ground into mask uint8 [h, w], which has the frame's (not the canvas's) size.

    `sun` straight overhead gives the contact shadow of an overcast day.
    """
    fallen = placed.world - sun * (placed.world[:, 2:] / sun[2])
    fallen[:, 2] = 0.0
    pixels, depth = camera.project(fallen)
    corners = np.round(pixels / SUPERSAMPLE).astype(np.int32)
    solids: dict[int, list[int]] = {}
    for part in placed.mesh.parts:
        if part.kind == FACE:
            solids.setdefault(part.group, []).extend(part.points)
            continue
        scale = camera.focal / SUPERSAMPLE / depth[part.points[0]]
        thickness = max(1, round(2 * part.radii[0] * scale * 0.8))
        cv2.polylines(mask, [corners[list(part.points)]], False, value, thickness)
    for points in solids.values():
        cv2.fillConvexPoly(mask, cv2.convexHull(corners[points]), value)
