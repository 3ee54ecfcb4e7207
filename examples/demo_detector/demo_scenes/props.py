"""Props on the pavements: lamps, trees, hedges, bins, posts, benches and signs. They have no labels."""

from __future__ import annotations

import math

import numpy as np

from demo_scenes.geometry import Array, Colour, Mesh, Pose
from demo_scenes.objects import darker, pick
from demo_scenes.street import Street, street_crossing

Thing = tuple[Mesh, Pose]
LEAVES = ((44, 96, 70), (50, 110, 88), (40, 84, 76), (60, 120, 110), (56, 104, 60))
METAL = ((92, 92, 90), (60, 70, 60), (56, 56, 58), (120, 122, 122))


def props(rng: np.random.Generator, street: Street) -> tuple[list[Thing], Array]:
    """Return props with their positions, and the positions of lamp bulbs, float64 [n, 3] in world metres."""
    things: list[Thing] = []
    bulbs = []
    kerb = street.half_road + 0.5
    for s in np.arange(-16 + rng.uniform(-3, 3), 30, rng.uniform(10, 13)):
        side = 1 if street.yard or rng.random() < 0.7 else -1
        x, y = street.to_world(float(s), side * kerb)
        if y < 5:
            continue
        things.append((_lamp(), Pose(x, y, street.angle + side * math.pi / 2)))
        over = street.to_world(float(s), side * (kerb - 1.25))
        bulbs.append((*over, 5.66))
    places = _places(rng, street)
    for make, count in ((_tree, 4), (_hedge, 3), (_bin, 2), (_bollard, 4), (_sign, 2), (_bench, 1), (_cabinet, 1)):
        for _ in range(int(rng.integers(count // 2, count + 1))):
            s, t = next(places)
            x, y = street.to_world(s, t)
            tall = make is _tree
            if y < (8.5 if tall else 5.5) or abs(x) > 0.62 * y + 2:
                continue
            things.append((make(rng), Pose(x, y, street.angle + (0.0 if t > 0 else math.pi))))
    return things, np.array(bulbs).reshape(-1, 3)


def _places(rng: np.random.Generator, street: Street):  # type: ignore[no-untyped-def]
    """Spots on the pavements' outer edges and behind them that leave roads and the crossing free."""
    while True:
        s = float(rng.uniform(-14, 18))
        side = 1 if rng.random() < 0.72 else -1
        t = side * (street.half_road + float(rng.choice([0.45, street.pavement - 0.3, street.pavement + 0.8])))
        near_crossing = not street.yard and abs(s - street_crossing(street)) < 2.4
        near_side_road = street.side_road is not None and abs(s - street.side_road) < 5 and t > 0
        if not near_crossing and not near_side_road:
            yield s, t


def _lamp() -> Mesh:
    mesh = Mesh()
    steel: Colour = (104, 106, 104)
    mesh.limb((0, 0, 0), (0, 0, 1.1), 0.1, 0.085, steel)
    mesh.limb((0, 0, 1.1), (0, 0, 5.6), 0.06, 0.045, steel)
    mesh.limb((0, 0, 5.6), (-1.1, 0, 5.75), 0.04, 0.035, steel)
    mesh.limb((-1.0, 0, 5.72), (-1.5, 0, 5.74), 0.09, 0.07, (150, 154, 156))
    return mesh


def _foliage(mesh: Mesh, rng: np.random.Generator, centre: Array, radii: Array, count: int, leaf: float) -> None:
    """Balls of leaves through an ellipsoid, lighter towards its top."""
    colour = pick(rng, LEAVES)
    spots = rng.normal(0, 1, (count, 3))
    spots *= (rng.uniform(0.3, 1, count) ** 0.4 / np.linalg.norm(spots, axis=1))[:, None]
    for spot in spots:
        x, y, z = centre + spot * radii
        size = leaf * float(rng.uniform(0.5, 1.3))
        shade = float(0.72 + 0.28 * spot[2] + rng.normal(0, 0.09))
        mesh.limb((x, y, z), (x + size * rng.normal(), y, z + size * 0.5), size, size * 0.7, darker(colour, shade))


def _tree(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    trunk = float(rng.uniform(1.7, 2.4))
    bark: Colour = (56, 74, 92)
    mesh.limb((0, 0, 0), (0, 0, trunk + 1.2), 0.17, 0.1, bark)
    mesh.limb((0, 0, trunk), (0.7, 0.3, trunk + 1.4), 0.07, 0.05, bark)
    mesh.limb((0, 0, trunk), (-0.6, -0.3, trunk + 1.3), 0.07, 0.05, bark)
    for _ in range(4):
        centre = np.array([rng.normal(0, 0.6), rng.normal(0, 0.6), trunk + rng.uniform(1.0, 2.4)])
        _foliage(mesh, rng, centre, np.array([1.15, 1.15, 0.9]), 150, 0.12)
    return mesh


def _hedge(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    half = float(rng.uniform(0.8, 2.2))
    for x in np.arange(-half, half, 0.5):
        _foliage(mesh, rng, np.array([x, 0, 0.45]), np.array([0.45, 0.35, 0.45]), 70, 0.075)
    return mesh


def _bin(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    colour = pick(rng, ((60, 90, 60), (60, 60, 64), (110, 80, 50), (50, 130, 160)))
    mesh.start(0)
    mesh.box((-0.28, -0.3, 0.08), (0.28, 0.3, 0.95), colour)
    mesh.start(1)
    mesh.box((-0.32, -0.33, 0.95), (0.32, 0.33, 1.05), darker(colour, 0.8))
    return mesh


def _bollard(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    mesh.limb((0, 0, 0), (0, 0, 0.85), 0.07, 0.06, pick(rng, METAL))
    mesh.limb((0, 0, 0.66), (0, 0, 0.74), 0.072, 0.072, (200, 204, 206))
    return mesh


def _sign(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    mesh.limb((0, 0, 0), (0, 0, 2.7), 0.035, 0.03, (140, 142, 142))
    face = pick(rng, ((50, 46, 180), (170, 110, 50), (210, 214, 216)))
    mesh.start(1)
    for radius, colour, y in ((0.32, (110, 110, 110), 0.04), (0.32, (214, 216, 218), -0.05), (0.26, face, -0.06)):
        mesh.disc((0, y, 2.4), radius, colour)
    return mesh


def _bench(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    wood = pick(rng, ((60, 96, 140), (70, 80, 96)))
    for x in (-0.7, 0.7):
        mesh.limb((x, -0.18, 0), (x, -0.18, 0.45), 0.03, 0.03, (60, 60, 62))
        mesh.limb((x, 0.2, 0), (x, 0.26, 0.9), 0.03, 0.03, (60, 60, 62))
    for y, z in ((-0.18, 0.46), (-0.04, 0.46), (0.1, 0.46), (0.22, 0.66), (0.25, 0.84)):
        mesh.limb((-0.85, y, z), (0.85, y, z), 0.045, 0.045, wood)
    return mesh


def _cabinet(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    mesh.start(0)
    colour = pick(rng, ((120, 130, 124), (96, 110, 96), (150, 152, 150)))
    mesh.box((-0.55, -0.22, 0.05), (0.55, 0.22, 1.25), colour)
    mesh.face([(0.0, -0.23, 0.1), (0.012, -0.23, 0.1), (0.012, -0.23, 1.2), (0.0, -0.23, 1.2)], darker(colour, 0.5))
    return mesh
