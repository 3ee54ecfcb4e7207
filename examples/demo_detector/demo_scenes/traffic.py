"""Traffic of one moment: people, bicycles, cars, trucks and dogs at plausible places."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from demo_scenes.backdrop import Backdrop
from demo_scenes.geometry import Array, Mesh, Placed, Pose, place
from demo_scenes.objects import bicycle, car, dog, person, truck
from demo_scenes.street import Street, street_crossing

CLASSES = ("person", "bicycle", "car", "truck", "dog")
PERSON, BICYCLE, CAR, TRUCK, DOG = range(len(CLASSES))
MEAN_COUNTS = {PERSON: 3.0, BICYCLE: 1.3, CAR: 2.4, TRUCK: 0.8, DOG: 1.1}
NEAREST = {PERSON: 6.5, BICYCLE: 7.0, CAR: 8.0, TRUCK: 11.0, DOG: 6.0}
FARTHEST = {PERSON: 38.0, BICYCLE: 30.0, CAR: 55.0, TRUCK: 60.0, DOG: 22.0}
"""Largest distance from the camera in metres by class; farther objects would be too small for a label."""
FOOTPRINT = {PERSON: (0.4, 0.35), BICYCLE: (1.0, 0.5), CAR: (2.4, 1.1), TRUCK: (4.4, 1.4), DOG: (0.5, 0.3)}
"""Half length and half width in metres of the area that no other object may enter, by class."""
TRIES = 12


@dataclass(frozen=True)
class Actor:
    """One mesh in the street. `classes` has the class of each tag in the mesh, `ids` the canvas ids of the tags."""

    placed: Placed
    pose: Pose
    classes: tuple[int, ...]
    ids: tuple[int, ...]
    driving: bool


@dataclass(frozen=True)
class _Spot:
    s: float
    t: float
    heading: float
    moving: bool


def traffic(
    rng: np.random.Generator, view: Backdrop, *, umbrellas: bool, mean_counts: Mapping[int, float] = MEAN_COUNTS
) -> list[Actor]:
    """Fill the street; actors come from far to near, none inside another, their ids starting at 1.

    mean_counts: the expected number of objects of each class, before those without a place are dropped.
    """
    taken: list[Array] = []
    planned: list[tuple[int, _Spot, Pose]] = []
    busy = float(rng.uniform(0.5, 1.5))
    for kind in (TRUCK, CAR, BICYCLE, PERSON, DOG):
        for _ in range(min(int(rng.poisson(mean_counts[kind] * busy)), 9)):
            found = _find_place(rng, view, kind, taken)
            if found is not None:
                planned.append((kind, *found))
    planned.sort(key=lambda plan: -math.hypot(plan[2].x, plan[2].y))
    actors: list[Actor] = []
    number = 1
    for kind, spot, pose in planned:
        ridden = kind == BICYCLE and spot.moving
        mesh = _mesh(rng, kind, ridden, umbrellas)
        classes = (BICYCLE, PERSON) if ridden else (kind,)
        ids = tuple(range(number, number + len(classes)))
        number += len(classes)
        actors.append(Actor(place(mesh, pose, view.camera), pose, classes, ids, kind in (CAR, TRUCK) and spot.moving))
    return actors


def _mesh(rng: np.random.Generator, kind: int, ridden: bool, umbrellas: bool) -> Mesh:
    if kind == PERSON:
        return person(rng, umbrella=umbrellas and rng.random() < 0.4)
    if kind == BICYCLE:
        return bicycle(rng, ridden)
    makers: dict[int, Callable[[np.random.Generator], Mesh]] = {CAR: car, TRUCK: truck, DOG: dog}
    return makers[kind](rng)


def _find_place(rng: np.random.Generator, view: Backdrop, kind: int, taken: list[Array]) -> tuple[_Spot, Pose] | None:
    """A free spot in view, or None when a few tries find none."""
    half_long, half_wide = FOOTPRINT[kind]
    steps = np.linspace(-half_long + half_wide, half_long - half_wide, 5 if kind in (CAR, TRUCK) else 2)
    for _ in range(TRIES):
        spot = _spot(rng, view.street, kind)
        x, y = view.street.to_world(spot.s, spot.t)
        heading = view.street.angle + spot.heading
        distance = math.hypot(x, y)
        if not NEAREST[kind] < distance < FARTHEST[kind] or y < 4:
            continue
        pixels, _ = view.camera.project(np.array([[x, y, 0.5]]))
        width, height = view.camera.size
        if not (-0.01 * width < pixels[0, 0] < 1.01 * width and pixels[0, 1] < 1.02 * height):
            continue
        circles = np.stack(
            [x + steps * math.cos(heading), y + steps * math.sin(heading), np.full(len(steps), half_wide)], 1
        )
        if any(_touch(circles, other) for other in taken):
            continue
        taken.append(circles)
        return spot, Pose(x, y, heading)
    return None


def _touch(a: Array, b: Array) -> bool:
    gaps = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
    return bool((gaps < a[:, None, 2] + b[None, :, 2]).any())


def _spot(rng: np.random.Generator, street: Street, kind: int) -> _Spot:
    """A place and a heading (radians from the street's axis) that suit the class."""
    s = float(rng.uniform(-16, 24))
    way = int(rng.choice([-1, 1]))
    along = 0.0 if way > 0 else math.pi
    if kind in (CAR, TRUCK):
        return _vehicle_spot(rng, street, s, way, along)
    side = 1 if rng.random() < 0.6 else -1
    wobble = float(rng.normal(0, 0.15))
    pavement = side * (street.half_road + float(rng.uniform(0.4, street.pavement)))
    chance = rng.random()
    if kind == BICYCLE:
        if chance < 0.55:
            return _Spot(s, -way * street.half_road * float(rng.uniform(0.5, 0.85)), along + wobble * 0.4, True)
        if chance < 0.7 and street.side_road is not None:
            return _side_spot(rng, street, 1.8, True)
        parked = float(rng.uniform(0, 2 * math.pi))
        return _Spot(s, pavement, parked, False)
    turn = float(rng.uniform(0, 2 * math.pi)) if chance < 0.35 else along + wobble
    if chance > 0.8:
        across = float(rng.uniform(-street.half_road, street.half_road))
        start = float(rng.uniform(-12, 16)) if street.yard else street_crossing(street) + float(rng.uniform(-1.3, 1.3))
        return _Spot(start, across, way * math.pi / 2 + wobble, True)
    if chance > 0.7 and street.side_road is not None:
        return _side_spot(rng, street, 3.0 + street.pavement * 0.35, True)
    return _Spot(s, pavement, turn, True)


def _vehicle_spot(rng: np.random.Generator, street: Street, s: float, way: int, along: float) -> _Spot:
    chance = rng.random()
    if street.yard:
        if chance < 0.55:
            bay = -20 + 2.7 * int(rng.integers(0, 16)) + 1.35
            return _Spot(bay, street.half_road - 2.8, way * math.pi / 2, False)
        return _Spot(s, float(rng.uniform(-street.half_road + 1.5, 0.0)), float(rng.uniform(0, 2 * math.pi)), True)
    if street.side_road is not None and chance < 0.22:
        return _side_spot(rng, street, 1.5, True)
    if chance < 0.5:
        return _Spot(s, -way * (street.half_road - 0.9), along + float(rng.normal(0, 0.02)), False)
    return _Spot(s, -way * street.half_road * 0.5, along + float(rng.normal(0, 0.03)), True)


def _side_spot(rng: np.random.Generator, street: Street, offset: float, moving: bool) -> _Spot:
    """On the side road, `offset` metres from its middle, keeping to the right."""
    away = int(rng.choice([-1, 1]))
    middle = street.side_road if street.side_road is not None else 0.0
    t = street.half_road + float(rng.uniform(3, 38))
    return _Spot(middle + away * offset, t, away * math.pi / 2, moving)


def lights(actors: list[Actor]) -> Iterator[tuple[Actor, Array, bool]]:
    """Yield lamps of moving vehicles: the actor, the lamp's world position float64 [3], and whether it is in front."""
    for actor in actors:
        if not actor.driving:
            continue
        mesh = actor.placed.mesh
        for store, front in ((mesh.headlights, True), (mesh.taillights, False)):
            for point in actor.pose.place(np.array(store).reshape(-1, 3)):
                yield actor, point, front
