"""Light and weather of the demo, and the lens and sensor of its cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from demo_scenes.backdrop import Backdrop
from demo_scenes.geometry import SUPERSAMPLE, Colour, Image
from demo_scenes.traffic import Actor, lights

Picture = NDArray[np.float32]
LAMP_LIGHT: Colour = (0.62, 0.86, 1.12)
BEAM_LIGHT: Colour = (1.0, 1.02, 1.0)


@dataclass(frozen=True)
class Weather:
    """One moment's light, air and camera settings.

    hour       of the clock
    sky        light from sun and sky per BGR channel, 1 at noon
    sun        share of it that a shadow takes away
    lamps      brightness of street lamps and windows; 0 by day
    haze       share of light lost per metre; haze_colour BGR 0..255
    rain       0 dry to 1 pouring
    infrared   a night camera's grey picture, lit by its own lamp
    noise, blur standard deviations in grey levels and in pixels
    contrast, saturation gains; quality of the JPEG stream 0..100
    """

    hour: int
    sky: Colour
    sun: float
    lamps: float
    haze: float
    haze_colour: Colour
    rain: float
    infrared: bool
    noise: float
    blur: float
    contrast: float
    saturation: float
    quality: int


def weather(rng: np.random.Generator) -> Weather:
    """Day, dusk or night; clear, overcast, rain or fog."""
    time = ("day", "dusk", "night")[int(rng.choice(3, p=(0.55, 0.17, 0.28)))]
    air = ("clear", "overcast", "rain", "fog")[int(rng.choice(4, p=(0.5, 0.2, 0.17, 0.13)))]
    infrared = time == "night" and rng.random() < 0.3
    level, tint, lamps, noise = {
        "day": (rng.uniform(0.82, 1.12), (1.0, 1.0, 1.0), 0.0, rng.uniform(1.2, 4)),
        "dusk": (rng.uniform(0.34, 0.55), (1.06, 0.94, 1.02), rng.uniform(0.35, 0.7), rng.uniform(3, 6)),
        "night": (rng.uniform(0.14, 0.24), (1.22, 1.0, 0.84), rng.uniform(0.75, 1.05), rng.uniform(4, 9)),
    }[time]
    hour = int(rng.choice({"day": range(8, 17), "dusk": (7, 18, 19), "night": (21, 22, 23, 0, 1, 2, 3, 4)}[time]))
    dull = air != "clear"
    warm = rng.normal(0, 0.04)
    haze = {"clear": 0.0012, "overcast": 0.003, "rain": rng.uniform(0.005, 0.012), "fog": rng.uniform(0.02, 0.045)}[air]
    grey = rng.uniform(186, 222) * (level if time == "day" else 0.42 * level**0.6)
    b, g, r = (level * t * (0.9 if dull else 1.0) * (1 + k * warm) for t, k in zip(tint, (-1, 0, 1), strict=True))
    return Weather(
        hour=hour,
        sky=(b, g, r),
        sun=0.0 if dull or time == "night" else (0.56 if time == "day" else 0.3),
        lamps=float(lamps),
        haze=float(haze),
        haze_colour=(grey * 1.03, grey, grey * 0.97),
        rain=float(rng.uniform(0.4, 1)) if air == "rain" else 0.0,
        infrared=bool(infrared),
        noise=float(noise),
        blur=float(rng.uniform(0.3, 0.75)),
        contrast=float(rng.uniform(0.9, 1.12)),
        saturation=float(rng.uniform(0.55, 0.8) if dull or time == "night" else rng.uniform(0.7, 1.05)),
        quality=int(rng.integers(38, 90)),
    )


def expose(
    canvas: Image, shadow: Image, contact: Image, view: Backdrop, actors: list[Actor], now: Weather,
    rng: np.random.Generator,
) -> Picture:  # fmt: skip
    """Light the drawn canvas: float32 [h, w, 3] in grey levels, sway margins included.

    `shadow` and `contact` are uint8 [h, w]: sun shadows, and the shade below things on the ground.
    """
    height, width = shadow.shape
    albedo = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)[..., :3].astype(np.float32)
    ids = np.ascontiguousarray(canvas[::SUPERSAMPLE, ::SUPERSAMPLE, 3])
    still = (ids == 0).astype(np.float32)
    dark = cv2.GaussianBlur(contact, (0, 0), 2.2).astype(np.float32) * (0.5 / 255)
    if now.sun:
        dark = np.maximum(dark, cv2.max(shadow, view.shadow).astype(np.float32) * (now.sun / 255))
    wet = view.ground * still * np.float32(0.28 if now.rain else 0.0)
    light = _light(1 - dark * still, view, actors, now)
    edges = _vignette(height, width) * (1 - wet)
    picture = albedo * cv2.merge([channel * edges for channel in light])
    if now.lamps:
        picture += _glow(canvas, ids, view, actors, now)
    if now.rain:
        picture = _mirror(picture, wet)
    picture = _blend_haze(picture, ids, view, actors, now)
    return _draw_rain(picture, now, rng) if now.rain else picture


def _light(open_sky: Picture, view: Backdrop, actors: list[Actor], now: Weather) -> list[Picture]:
    """Light per channel, float32 [h, w] each."""
    if now.infrared:
        height, width = open_sky.shape
        pool = 0.22 + 0.75 * _vignette(height, width) ** 3 * np.minimum(12 / view.depth, 1.15)
        return [pool.astype(np.float32)] * 3
    if not now.lamps:
        return [open_sky * np.float32(level) for level in now.sky]
    lamp = view.lamps * np.float32(now.lamps * 0.85)
    beam = _beams(open_sky.shape, view, actors) * np.float32(now.lamps)
    colours = zip(now.sky, LAMP_LIGHT, BEAM_LIGHT, strict=True)
    return [open_sky * np.float32(sky) + lamp * np.float32(a) + beam * np.float32(b) for sky, a, b in colours]


def _beams(shape: tuple[int, ...], view: Backdrop, actors: list[Actor]) -> Picture:
    """Return the light of headlights on the ground, float32 [h, w]."""
    height, width = shape[0] // 4, shape[1] // 4
    beam = np.zeros((height, width), np.float32)
    for actor in actors:
        if not actor.driving:
            continue
        nose = max(point[0] for point in actor.placed.mesh.headlights)
        for reach, spread, strength in ((10.0, 2.3, 0.3), (6.0, 1.6, 0.55)):
            corners = np.array([(nose, -0.7, 0), (nose + reach, -spread, 0), (nose + reach, spread, 0), (nose, 0.7, 0)])
            world = actor.pose.place(corners)
            if world[:, 1].min() < 2:
                continue
            pixels, _ = view.camera.project(world)
            cv2.fillConvexPoly(beam, np.round(pixels / (4 * SUPERSAMPLE)).astype(np.int32), strength)
    full: Picture = cv2.resize(cv2.GaussianBlur(beam, (0, 0), 2.5), shape[1::-1])
    return full


def _glow(canvas: Image, ids: Image, view: Backdrop, actors: list[Actor], now: Weather) -> Picture:
    """Light that shines into the lens: windows, street lamps, head- and tail-lights, with halos."""
    shine = view.windows * (ids == 0)[..., None]
    shine = cv2.convertScaleAbs(shine, alpha=now.lamps * 0.85)
    for u, v in view.bulbs:
        cv2.circle(shine, (round(u), round(v)), 3, (190, 232, 255), -1)
    for actor, point, front in lights(actors):
        facing = actor.pose.heading if front else actor.pose.heading + math.pi
        towards = -(point[0] * math.cos(facing) + point[1] * math.sin(facing)) / math.hypot(point[0], point[1])
        pixels, depth = view.camera.project(point[None])
        u, v = (round(x) for x in pixels[0])
        if towards < 0.05 or not (0 <= u < canvas.shape[1] and 0 <= v < canvas.shape[0]):
            continue
        if canvas[v, u, 3] != actor.ids[0]:
            continue
        radius = max(1, round(view.camera.focal / SUPERSAMPLE / depth[0] * (0.2 if front else 0.1) * (0.4 + towards)))
        colour = (255, 255, 252) if front else (40, 30, 215)
        cv2.circle(shine, (u // SUPERSAMPLE, v // SUPERSAMPLE), radius, colour, -1)
    small = cv2.resize(shine, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA).astype(np.float32)
    halo = cv2.GaussianBlur(small, (0, 0), 1.6) * 0.7 + cv2.GaussianBlur(small, (0, 0), 6) * 0.8
    glow: Picture = shine.astype(np.float32) + cv2.resize(halo, shine.shape[1::-1])
    return glow


def _mirror(picture: Picture, wet: Picture) -> Picture:
    """Return the reflection in wet ground: the picture above, smeared downwards."""
    smear = cv2.blur(picture, (5, 61), anchor=(2, 60), borderType=cv2.BORDER_REPLICATE)
    mixed: Picture = cv2.blendLinear(picture, smear, 1 - wet, wet * np.float32(1.3)) * np.float32(1.05)
    return mixed


def _blend_haze(picture: Picture, ids: Image, view: Backdrop, actors: list[Actor], now: Weather) -> Picture:
    """Fade into the haze's colour with distance."""
    distances = np.zeros(256, np.float32)
    for actor in actors:
        distances[list(actor.ids)] = actor.placed.distance
    for layer in view.layers:
        distances[int(layer.patch[..., 3].max())] = layer.distance
    depth = np.where(ids == 0, view.depth, cv2.LUT(ids, distances))
    clear = cv2.exp(depth * np.float32(-now.haze))
    hazy = cv2.merge([(1 - clear) * np.float32(colour) for colour in now.haze_colour])
    faded: Picture = picture * cv2.merge([clear] * 3) + hazy
    return faded


def _draw_rain(picture: Picture, now: Weather, rng: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    streaks = np.zeros((height, width), np.uint8)
    slant = float(rng.normal(0, 0.18))
    count = int(260 * now.rain)
    starts = rng.uniform((-20, -30), (width + 20, height), (count, 2))
    for (x, y), long in zip(starts, rng.uniform(6, 30, count), strict=True):
        end = (round(x + slant * long), round(y + long))
        cv2.line(streaks, (round(x), round(y)), end, int(rng.integers(40, 130)), 1, cv2.LINE_AA)
    streaks = cv2.convertScaleAbs(cv2.blur(streaks, (1, 5)), alpha=0.35 + 0.25 * sum(now.sky) / 3)
    wet: Picture = picture + cv2.merge([streaks] * 3)
    return wet


def develop(picture: Picture, now: Weather, rng: np.random.Generator) -> Image:
    """Lens, sensor and video stream: float32 [h, w, 3] -> uint8 [h, w, 3]."""
    height, width = picture.shape[:2]
    picture = cv2.GaussianBlur(picture, (0, 0), now.blur)
    # A night camera raises its gain, within limits, until the picture is bright enough.
    gain = min(1.7, max(1.0, 62 / float(picture.mean()))) if now.lamps else 1.0
    colour = 0.0 if now.infrared else now.saturation
    matrix = gain * now.contrast * (colour * np.eye(3) + (1 - colour) * np.array([[0.114, 0.587, 0.299]] * 3))
    picture = cv2.transform(picture, np.column_stack([matrix, np.full(3, 110 * (1 - now.contrast))]).astype(np.float32))
    frame = cv2.add(picture, _sensor_noise(height, width, now.infrared, rng) * np.float32(now.noise), dtype=cv2.CV_8U)
    _stamp(frame, now, rng)
    stream = cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, now.quality))[1]
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)


@lru_cache(maxsize=4)
def _vignette(height: int, width: int) -> Picture:
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (1 - 0.2 * (x * x * 0.75 + y * y * 0.45)).astype(np.float32)


@lru_cache(maxsize=2)
def _noise_field(grey: bool) -> Picture:
    """Noise of unit variance, slightly blurred as by a camera's denoising; float32 [720, 1200, 3]."""
    field = np.random.default_rng(5).standard_normal((720, 1200, 3), np.float32)
    common = np.repeat(field.mean(axis=2, keepdims=True), 3, axis=2) * np.float32(1.7)
    field = common if grey else 0.55 * field + 0.45 * common
    field = cv2.GaussianBlur(field, (0, 0), 0.55)
    unit: Picture = field / field.std()
    return unit


def _sensor_noise(height: int, width: int, grey: bool, rng: np.random.Generator) -> Picture:
    field = _noise_field(grey)
    y, x = int(rng.integers(field.shape[0] - height)), int(rng.integers(field.shape[1] - width))
    return field[y : y + height, x : x + width]


def _stamp(frame: Image, now: Weather, rng: np.random.Generator) -> None:
    """Draw the time stamp that cameras add to their picture."""
    minute, second = (int(part) for part in rng.integers(0, 60, 2))
    text = f"{now.hour:02d}:{minute:02d}:{second:02d}"
    for colour, thickness in (((0, 0, 0), 3), ((235, 235, 235), 1)):
        cv2.putText(frame, text, (10, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, thickness, cv2.LINE_AA)
