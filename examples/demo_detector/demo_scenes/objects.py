"""Meshes of the demo's moving objects: people, bicycles, cars, trucks and dogs, varied by a random generator.

Colours are BGR, lengths metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from demo_scenes.geometry import Colour, Mesh, Point, inset

RUBBER, GLASS, STEEL, PLATE = (34, 32, 32), (74, 62, 50), (150, 148, 146), (205, 222, 224)
HEADLIGHT, TAILLIGHT = (235, 242, 245), (38, 34, 190)
SKIN = ((132, 168, 214), (98, 134, 186), (70, 100, 150), (44, 64, 104), (150, 184, 226))
HAIR = ((24, 26, 30), (34, 46, 66), (60, 90, 124), (110, 150, 176), (150, 150, 152))
CLOTHES = (
    (40, 38, 42), (96, 62, 44), (44, 50, 150), (160, 150, 140), (70, 84, 96), (60, 96, 60), (206, 204, 198),
    (132, 90, 52), (62, 120, 190), (110, 54, 96), (58, 190, 206), (190, 164, 118), (84, 84, 178),
)  # fmt: skip
TROUSERS = ((46, 40, 36), (104, 74, 52), (70, 66, 62), (70, 88, 104), (140, 150, 160), (36, 38, 44))
PAINT = (
    (222, 220, 216), (40, 38, 38), (150, 146, 142), (96, 92, 90), (44, 40, 140), (126, 72, 36), (176, 172, 168),
    (70, 84, 60), (60, 130, 170), (150, 106, 60), (36, 52, 92), (228, 226, 224),
)  # fmt: skip
FUR = ((52, 82, 122), (36, 38, 40), (90, 130, 170), (200, 208, 214), (60, 66, 90), (110, 150, 196))


def pick(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 14.0) -> Colour:
    """One of the colours, moved a little."""
    b, g, r = np.clip(np.array(colours[int(rng.integers(len(colours)))]) + rng.normal(0, spread / 2, 3), 12, 240)
    return float(b), float(g), float(r)


def darker(colour: Colour, share: float) -> Colour:
    b, g, r = colour
    return b * share, g * share, r * share


def person(rng: np.random.Generator, umbrella: bool = False) -> Mesh:
    """Return a person who stands or walks; adults and children, with bags, hats, skirts and hoods now and then."""
    mesh = Mesh()
    tall = float(rng.uniform(1.05, 1.4) if rng.random() < 0.15 else rng.normal(1.72, 0.08))
    stride = float(rng.choice([0.12, rng.uniform(0.25, 0.5)]))
    phase = float(rng.uniform(0, 2 * math.pi))
    broad = float(rng.uniform(0.9, 1.2)) * tall
    shirt, legs, skin = pick(rng, CLOTHES), pick(rng, TROUSERS), pick(rng, SKIN)
    hip, neck = 0.53 * tall, 0.82 * tall
    for side, swing in ((-1, math.sin(phase)), (1, -math.sin(phase))):
        _leg(mesh, side, swing * stride, tall, broad, legs, skin if rng.random() < 0.12 else legs)
        sleeve = skin if rng.random() < 0.15 else shirt
        _arm(mesh, side, -swing * stride * 0.8, tall, broad, shirt, sleeve, skin)
    mesh.limb((0, 0, hip), (0.02, 0, 0.66 * tall), 0.088 * broad, 0.085 * broad, shirt)
    mesh.limb(
        (0.02, -0.045 * broad, 0.66 * tall), (0.02, -0.06 * broad, 0.78 * tall), 0.07 * broad, 0.062 * broad, shirt
    )
    mesh.limb((0.02, 0.045 * broad, 0.66 * tall), (0.02, 0.06 * broad, 0.78 * tall), 0.07 * broad, 0.062 * broad, shirt)
    if rng.random() < 0.18:
        mesh.limb((0, 0, hip), (0, 0, 0.36 * tall), 0.09 * broad, 0.13 * broad, legs)
    if rng.random() < 0.22:
        mesh.limb((-0.11, 0, 0.62 * tall), (-0.11, 0, 0.77 * tall), 0.09 * tall, 0.08 * tall, pick(rng, CLOTHES))
    _head(mesh, rng, (0.03, 0.0, neck), tall, skin)
    if umbrella:
        _umbrella(mesh, pick(rng, CLOTHES), tall)
    return mesh


def _leg(mesh: Mesh, side: int, step: float, tall: float, broad: float, thigh: Colour, shin: Colour) -> None:
    hip = (0.0, side * 0.05 * broad, 0.51 * tall)
    knee = (step * 0.55 + 0.04, side * 0.052 * broad, 0.285 * tall)
    ankle = (step - (0.10 if step < 0 else 0.0), side * 0.05 * broad, 0.05 * tall + (0.05 if step < -0.15 else 0.0))
    mesh.limb(hip, knee, 0.052 * broad, 0.038 * broad, thigh)
    mesh.limb(knee, ankle, 0.036 * broad, 0.027 * broad, shin)
    mesh.limb(
        ankle, (ankle[0] + 0.09 * tall, ankle[1], ankle[2] - 0.025 * tall), 0.026 * tall, 0.02 * tall, (40, 40, 44)
    )


def _arm(
    mesh: Mesh, side: int, swing: float, tall: float, broad: float, upper: Colour, lower: Colour, skin: Colour
) -> None:
    shoulder = (0.02, side * 0.125 * broad, 0.8 * tall)
    elbow = (swing * 0.4, side * 0.15 * broad, 0.645 * tall)
    wrist = (swing * 0.8 + 0.07, side * 0.14 * broad, 0.52 * tall)
    mesh.limb(shoulder, elbow, 0.036 * broad, 0.03 * broad, upper)
    mesh.limb(elbow, wrist, 0.028 * broad, 0.022 * broad, lower)
    mesh.limb(wrist, (wrist[0] + 0.02, wrist[1], wrist[2] - 0.04 * tall), 0.024 * tall, 0.02 * tall, skin)


def _head(mesh: Mesh, rng: np.random.Generator, neck: Point, tall: float, skin: Colour) -> None:
    x, y, z = neck
    size = 0.056 * tall
    mesh.limb(neck, (x + 0.01, y, z + 0.06 * tall), 0.032 * tall, 0.03 * tall, skin)
    mesh.limb((x + 0.03, y, z + 0.085 * tall), (x + 0.03, y, z + 0.115 * tall), size * 0.9, size, skin)
    cap = pick(rng, CLOTHES) if rng.random() < 0.25 else pick(rng, HAIR)
    mesh.limb((x - 0.025, y, z + 0.1 * tall), (x - 0.005, y, z + 0.14 * tall), size * 0.98, size * 0.95, cap)


def _umbrella(mesh: Mesh, colour: Colour, tall: float) -> None:
    top = 1.28 * tall
    mesh.limb((0.15, 0.1, 0.6 * tall), (0.1, 0.05, top), 0.012, 0.012, STEEL)
    mesh.start(1)
    rim = [(0.1 + 0.55 * math.cos(t), 0.05 + 0.55 * math.sin(t), top - 0.16) for t in np.linspace(0, 2 * math.pi, 9)]
    for k in range(8):
        mesh.face((rim[k], rim[k + 1], (0.1, 0.05, top + 0.06)), darker(colour, 1.0 if k % 2 else 0.88))


def dog(rng: np.random.Generator) -> Mesh:
    """A dog that stands, walks or trots; the breeds differ in size, build, ears and coat."""
    mesh = Mesh()
    size = float(rng.uniform(0.42, 0.72))
    long = size * float(rng.uniform(1.0, 1.3))
    fur = pick(rng, FUR)
    second = pick(rng, FUR) if rng.random() < 0.4 else darker(fur, 0.8)
    stout = size * float(rng.uniform(0.17, 0.23))
    phase, stride = float(rng.uniform(0, 2 * math.pi)), size * float(rng.uniform(0.05, 0.3))
    for x, side, lag in ((0.4, 1, 0.0), (0.4, -1, math.pi), (-0.42, 1, math.pi), (-0.42, -1, 0.0)):
        step = stride * math.sin(phase + lag)
        hip = (x * long, side * stout * 0.55, size * 0.66)
        knee = (x * long + step * 0.4 + (-0.04 if x < 0 else 0.02), side * stout * 0.6, size * 0.32)
        foot = (x * long + step, side * stout * 0.6, 0.03)
        mesh.limb(hip, knee, stout * 0.48, stout * 0.27, fur)
        mesh.limb(knee, foot, stout * 0.25, stout * 0.2, second)
        mesh.limb(foot, (foot[0] + 0.05, foot[1], 0.025), stout * 0.2, stout * 0.17, second)
    mesh.limb((0.4 * long, 0, size * 0.74), (0.0, 0, size * 0.76), stout, stout * 0.86, fur)
    mesh.limb((0.0, 0, size * 0.76), (-0.44 * long, 0, size * 0.74), stout * 0.86, stout * 0.84, second)
    low = float(rng.choice([0.0, 0.0, -0.3]))
    head = (0.72 * long, 0.0, size * (1.12 + low))
    mesh.limb((0.42 * long, 0, size * 0.84), head, stout * 0.72, stout * 0.6, fur)
    mesh.limb(head, (head[0] + 0.1 * long, 0, head[2]), stout * 0.68, stout * 0.55, fur)
    mesh.limb((head[0] + 0.1 * long, 0, head[2] - 0.03), (head[0] + 0.26 * long, 0, head[2] - 0.05), stout * 0.4,
              stout * 0.26, second)  # fmt: skip
    droop = float(rng.choice([-0.12, 0.1]))
    for side in (-1, 1):
        ear = (head[0], side * stout * 0.5, head[2] + stout * 0.5)
        mesh.limb(ear, (ear[0] - 0.03, ear[1] * 1.25, ear[2] + droop), stout * 0.26, stout * 0.14, darker(second, 0.7))
    tip = (-0.72 * long, float(rng.uniform(-0.1, 0.1)), size * float(rng.uniform(0.55, 1.3)))
    mesh.limb((-0.48 * long, 0, size * 0.84), tip, stout * 0.26, stout * 0.12, fur)
    return mesh


def bicycle(rng: np.random.Generator, ridden: bool) -> Mesh:
    """A bicycle (tag 0), and its rider (tag 1) when ridden."""
    mesh = Mesh()
    frame = pick(rng, PAINT)
    wheel = float(rng.uniform(0.3, 0.35))
    for x in (-0.52, 0.52):
        ring = [(x + wheel * math.cos(t), 0.0, wheel + wheel * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 19)]
        mesh.start(0)
        for k in range(0, 9, 3):
            mesh.wire((ring[k], ring[k + 9]), 0.003, (120, 120, 120))
        mesh.wire(ring, 0.026, RUBBER)
    crank, seat, bars = (-0.06, 0.0, 0.3), (-0.2, 0.0, 0.82), (0.36, 0.0, 0.86)
    tubes: list[tuple[Point, Point]] = [(crank, seat), (crank, (0.34, 0, 0.7)), ((-0.17, 0, 0.72), (0.35, 0, 0.76)),
        (bars, (0.52, 0, wheel)), (crank, (-0.52, 0, wheel)), ((-0.17, 0, 0.7), (-0.52, 0, wheel))]  # fmt: skip
    for a, b in tubes:
        mesh.limb(a, b, 0.024, 0.022, frame)
    mesh.limb((-0.3, 0, 0.87), (-0.12, 0, 0.87), 0.055, 0.035, (30, 30, 34))
    mesh.limb((0.34, -0.26, 0.95), (0.34, 0.26, 0.95), 0.02, 0.02, (50, 50, 52))
    mesh.limb(bars, (0.34, 0, 0.96), 0.02, 0.02, STEEL)
    pedal = float(rng.uniform(0, 2 * math.pi))
    if rng.random() < 0.3:
        mesh.limb((0.55, 0, 0.82), (0.72, 0, 0.82), 0.13, 0.13, (70, 90, 110))
    if rng.random() < 0.3:
        mesh.limb((-0.5, 0, 0.78), (-0.72, 0, 0.78), 0.1, 0.1, pick(rng, CLOTHES))
    if ridden:
        mesh.tag = 1
        _rider(mesh, rng, pedal)
    return mesh


def _rider(mesh: Mesh, rng: np.random.Generator, pedal: float) -> None:
    shirt, legs, skin = pick(rng, CLOTHES), pick(rng, TROUSERS), pick(rng, SKIN)
    lean = float(rng.uniform(0.05, 0.28))
    for side, turn in ((-1, pedal), (1, pedal + math.pi)):
        foot = (-0.06 + 0.17 * math.cos(turn), side * 0.12, 0.33 + 0.17 * math.sin(turn))
        knee = ((foot[0] - 0.2) / 2 + 0.26, side * 0.11, (foot[2] + 0.95) / 2 + 0.05)
        mesh.limb((-0.2, side * 0.09, 0.95), knee, 0.085, 0.062, legs)
        mesh.limb(knee, foot, 0.058, 0.042, legs)
        mesh.limb(foot, (foot[0] + 0.13, foot[1], foot[2] - 0.02), 0.042, 0.034, (44, 44, 48))
        shoulder = (lean, side * 0.2, 1.42)
        elbow = ((lean + 0.34) / 2 - 0.02, side * 0.27, 1.16)
        mesh.limb(shoulder, elbow, 0.058, 0.048, shirt)
        mesh.limb(elbow, (0.34, side * 0.24, 0.98), 0.044, 0.036, skin if rng.random() < 0.4 else shirt)
        mesh.limb((-0.2, side * 0.05, 0.98), (lean, side * 0.1, 1.38), 0.12, 0.11, shirt)
    _head(mesh, rng, (lean + 0.05, 0.0, 1.46), 1.72, skin)


def car(rng: np.random.Generator) -> Mesh:
    """A saloon, hatchback, estate or off-roader."""
    mesh = Mesh()
    long, wide, high, bonnet, boot, slope = _CAR_SHAPES[rng.integers(len(_CAR_SHAPES))]
    long, wide, high = long * float(rng.uniform(0.96, 1.05)), wide / 2, high * float(rng.uniform(0.97, 1.04))
    paint = pick(rng, PAINT)
    clearance = 0.3 + 0.12 * (high > 1.6)
    belt = 0.6 * high + 0.06
    half = long / 2
    mesh.start(0)
    mesh.box((-half * 0.94, -wide * 0.88, 0.14), (half * 0.94, wide * 0.88, clearance + 0.1), (30, 30, 30))
    mesh.start(1)
    rings = _body_rings(half, wide, clearance, belt, bonnet, boot)
    mesh.loft(rings, paint, 0.25)
    _car_details(mesh, rings, rng, paint)
    mesh.start(2)
    radius = 0.215 * high
    for x in (half * 0.64, -half * 0.62):
        for y in (-wide * 1.005, wide * 1.005):
            _wheel(mesh, (x, y, radius), radius)
    mesh.start(3)
    cowl, tail = half - bonnet, -half + boot
    _cabin(mesh, cowl, tail, wide, belt, high, slope, paint, rng)
    return mesh


_CAR_SHAPES = (
    # length, width, height, bonnet, boot, slope of the rear window (metres)
    (4.55, 1.80, 1.45, 1.15, 0.55, 0.70),
    (4.05, 1.75, 1.48, 0.95, 0.12, 0.35),
    (4.65, 1.82, 1.48, 1.15, 0.10, 0.30),
    (4.45, 1.88, 1.70, 1.05, 0.10, 0.28),
    (3.65, 1.66, 1.52, 0.70, 0.08, 0.22),
    (4.75, 1.92, 1.82, 0.85, 0.06, 0.12),
)


def _body_rings(half: float, wide: float, low: float, belt: float, bonnet: float, boot: float) -> list[list[Point]]:
    """Cross-sections from the front bumper to the rear one."""
    stations = (
        (half, 0.80, belt * 0.72), (half - 0.16, 0.92, belt * 0.84), (half - bonnet, 1.0, belt * 0.99),
        (-half + boot + 0.1, 1.0, belt), (-half + 0.12, 0.95, belt * 0.98), (-half, 0.86, belt * 0.84),
    )  # fmt: skip
    rings = []
    for x, share, top in stations:
        y, middle = wide * share, (low + top) / 2
        rings.append([(x, -y * 0.96, low), (x, -y, middle), (x, -y * 0.95, top),
                      (x, y * 0.95, top), (x, y, middle), (x, y * 0.96, low)])  # fmt: skip
    return rings


def _car_details(mesh: Mesh, rings: Sequence[Sequence[Point]], rng: np.random.Generator, paint: Colour) -> None:
    """Lights, grille, plates, sills and door seams, on top of the body."""
    front, rear = rings[0], rings[-1]
    for ring, lamp, store, sign in ((front, HEADLIGHT, mesh.headlights, 1), (rear, TAILLIGHT, mesh.taillights, -1)):
        upper = [(x + 0.01 * sign, y, z) for x, y, z in (ring[1], ring[4], ring[3], ring[2])]
        lower = [(x + 0.01 * sign, y, z) for x, y, z in (ring[0], ring[5], ring[4], ring[1])]
        for u0, u1 in ((0.02, 0.24), (0.76, 0.98)):
            quad = inset(upper, u0, u1, 0.3, 0.95)
            mesh.face(quad, lamp)
            x, y, z = np.mean(quad, axis=0)
            store.append((float(x), float(y), float(z)))
        mesh.face(inset(upper, 0.3, 0.7, 0.35, 0.85), (38, 36, 36) if sign > 0 else darker(paint, 0.8))
        mesh.face(inset(lower, 0.03, 0.97, 0.0, 0.45), (46, 44, 44))
        mesh.face(inset(lower, 0.37, 0.63, 0.5, 0.95), PLATE)
    trim = bool(rng.random() < 0.4)
    for bottom, middle, top, lift in ((0, 1, 2, -0.006), (5, 4, 3, 0.006)):
        sill = [rings[2][bottom], rings[3][bottom], rings[3][middle], rings[2][middle]]
        door = [rings[2][middle], rings[3][middle], rings[3][top], rings[2][top]]
        mesh.face(inset(sill, 0, 1, 0, 0.35 if trim else 0.15, lift), (44, 42, 42))
        for u in (0.08, 0.5, 0.93):
            mesh.face(inset(door, u, u + 0.009, 0, 0.96, lift), darker(paint, 0.35))
            mesh.face(inset(sill, u, u + 0.009, 0.2, 1, lift), darker(paint, 0.35))
        for u in (0.42, 0.84):
            mesh.face(inset(door, u, u + 0.055, 0.74, 0.84, lift), darker(paint, 0.5))


def _wheel(mesh: Mesh, centre: Point, radius: float) -> None:
    x, y, z = centre
    out = math.copysign(0.012, y)
    mesh.disc((x, y, z + 0.02), radius * 1.16, (26, 25, 25))
    mesh.disc((x, y + out, z), radius, RUBBER)
    mesh.disc((x, y + 2 * out, z), radius * 0.66, (140, 138, 136), 10)
    mesh.disc((x, y + 3 * out, z), radius * 0.2, (70, 70, 70), 6)


def _cabin(
    mesh: Mesh, cowl: float, tail: float, wide: float, belt: float, high: float, slope: float, paint: Colour,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Windows, pillars and roof."""
    y, roof_y = wide * 0.93, wide * 0.74
    front, back = cowl - 0.62 * (high - 0.4 * high) / 0.9, tail + slope
    base = [(cowl, -y, belt), (tail, -y, belt), (tail, y, belt), (cowl, y, belt)]
    roof = [(front, -roof_y, high), (back, -roof_y, high), (back, roof_y, high), (front, roof_y, high)]
    glass = pick(rng, (GLASS, (60, 50, 42), (96, 84, 70)), 8)
    mesh.face(roof, paint, 0.35)
    shield = [base[0], base[3], roof[3], roof[0]]
    window = [base[2], base[1], roof[1], roof[2]]
    for quad in (shield, window):
        mesh.face(quad, paint, 0.1)
        mesh.face(inset(quad, 0.05, 0.95, 0.06, 0.92), glass, 0.3)
    mesh.face(inset(shield, 0.3, 0.62, 0.06, 0.92), tuple(c * 1.25 for c in glass), 0.3)  # type: ignore[arg-type]
    for side in ([base[0], base[1], roof[1], roof[0]], [base[3], base[2], roof[2], roof[3]]):
        mesh.face(side, paint, 0.1)
        for u0, u1 in ((0.1, 0.47), (0.51, 0.92)):
            mesh.face(inset(side, u0, u1, 0.08, 0.88), glass, 0.3)
    if rng.random() < 0.12:
        mesh.box((front * 0.5 + back * 0.5 - 0.12, -0.3, high), (front * 0.5 + back * 0.5 + 0.12, 0.3, high + 0.16),
                 (40, 190, 220))  # fmt: skip


def truck(rng: np.random.Generator) -> Mesh:
    """A lorry: a box body, a tarpaulin, or an open bed with a load."""
    mesh = Mesh()
    long, wide = float(rng.uniform(6.0, 8.8)), float(rng.uniform(1.12, 1.24))
    half, cab = long / 2, float(rng.uniform(1.6, 2.1))
    paint = pick(rng, PAINT)
    mesh.start(0)
    mesh.box((-half, -wide * 0.7, 0.5), (half - 0.2, wide * 0.7, 0.95), (44, 42, 42))
    mesh.start(1)
    radius = 0.47
    axles = [half - cab * 0.55, -half + 1.5] + ([-half + 2.6] if long > 7.4 else [])
    for x in axles:
        for y in (-wide * 0.99, wide * 0.99):
            _wheel(mesh, (x, y, radius), radius)
    _truck_cab(mesh, half, cab, wide, paint)
    _truck_bed(mesh, half, cab, wide, rng)
    for y in (-wide * 0.8, wide * 0.8):
        mesh.taillights.append((-half - 0.02, y, 0.85))
    return mesh


def _truck_cab(mesh: Mesh, half: float, cab: float, wide: float, paint: Colour) -> None:
    mesh.start(2)
    high, rear, nose = 2.65, half - cab, 0.1
    rings = []
    for x, top in ((half, 0.0), (rear, 0.0)):
        lean = nose if x == half else 0.0
        rings.append([(x, -wide, 0.55 + top), (x, -wide, 1.55), (x - 2.5 * lean, -wide * 0.93, high),
                      (x - 2.5 * lean, wide * 0.93, high), (x, wide, 1.55), (x, wide, 0.55 + top)])  # fmt: skip
    mesh.loft(rings, paint, 0.15)
    f = [(x + 0.01, y, z) for x, y, z in rings[0]]
    shield, lower = [f[1], f[4], f[3], f[2]], [f[0], f[5], f[4], f[1]]
    mesh.face(inset(shield, 0.05, 0.95, 0.08, 0.82), GLASS, 0.3)
    mesh.face(inset(shield, 0.3, 0.55, 0.08, 0.82), (92, 78, 64), 0.3)
    mesh.face(inset(lower, 0.22, 0.78, 0.42, 0.9), darker(paint, 0.45))
    mesh.face(inset(lower, 0.0, 1.0, 0.0, 0.3), (58, 56, 56))
    for u0, u1 in ((0.04, 0.2), (0.8, 0.96)):
        quad = inset(lower, u0, u1, 0.32, 0.52)
        mesh.face(quad, HEADLIGHT)
        x, y, z = np.mean(quad, axis=0)
        mesh.headlights.append((float(x), float(y), float(z)))
    for low, high_point, lift in ((1, 2, -0.01), (4, 3, 0.01)):
        side = [rings[0][low], rings[1][low], rings[1][high_point], rings[0][high_point]]
        mesh.face(inset(side, 0.14, 0.62, 0.08, 0.8, lift), GLASS, 0.3)
        step = [rings[0][5 if low == 4 else 0], rings[1][5 if low == 4 else 0], rings[1][low], rings[0][low]]
        mesh.face(inset(step, 0.66, 0.675, 0.1, 1, lift), darker(paint, 0.4))


def _truck_bed(mesh: Mesh, half: float, cab: float, wide: float, rng: np.random.Generator) -> None:
    mesh.start(2)
    front, rear = half - cab - 0.15, -half
    kind = rng.integers(3)
    tint = pick(rng, ((226, 226, 222), (196, 196, 190), (120, 80, 50), (60, 70, 150), (80, 110, 70), (190, 160, 90)))
    high = float(rng.uniform(2.75, 3.5)) if kind < 2 else 1.75
    mesh.box((rear, -wide, 0.98), (front, wide, high), tint)
    for y in (-wide - 0.01, wide + 0.01):
        side = [(rear, y, 1.0), (front, y, 1.0), (front, y, high), (rear, y, high)]
        if kind == 0:
            stripe = pick(rng, PAINT)
            mesh.face(inset(side, 0.12, 0.88, 0.42, 0.62), stripe)
            mesh.face(inset(side, 0.2, 0.55, 0.47, 0.57), (236, 236, 236))
        else:
            for u in np.linspace(0.02, 0.96, 8):
                mesh.face(inset(side, float(u), float(u) + 0.012, 0, 1), darker(tint, 0.72))
        mesh.face(inset(side, 0, 1, 0, 0.05), (60, 58, 56))
    back = [(rear - 0.01, -wide, 1.0), (rear - 0.01, wide, 1.0), (rear - 0.01, wide, high), (rear - 0.01, -wide, high)]
    mesh.face(inset(back, 0.49, 0.505, 0, 1), darker(tint, 0.5))
    for u0, u1 in ((0.02, 0.12), (0.88, 0.98)):
        mesh.face(inset(back, u0, u1, 0.01, 0.07), TAILLIGHT)
    if kind == 2:
        load = pick(rng, ((70, 100, 130), (100, 104, 110), (60, 80, 60)))
        mesh.loft([[(rear + 0.3, -wide * 0.8, high), (rear + 0.9, 0, high + 0.7), (rear + 0.3, wide * 0.8, high)],
                   [(front - 0.3, -wide * 0.8, high), (front - 0.9, 0, high + 0.6), (front - 0.3, wide * 0.8, high)]],
                  load)  # fmt: skip
