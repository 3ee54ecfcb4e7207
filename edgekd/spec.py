"""What a user asks for: recipe and budget. TOML and text in, frozen dataclasses out. No I/O beyond the TOML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edgekd.errors import SpecError, did_you_mean
from edgekd.toml import parse_table, read_toml


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to INT8 Q/DQ.

    ranges: how far each activation reaches, by the rules of `edgekd.compress.ranges`. min_snr_db: a convolution whose
    output would be noisier than this in INT8 (signal-to-noise ratio on calibration frames) stays float.
    """

    ranges: Literal["mse", "entropy", "max"] = "mse"
    min_snr_db: float = 25.0


Step = Quantize
"""The compression steps a recipe may hold."""

_STEPS: dict[str, type[Step]] = {"quantize": Quantize}


@dataclass(frozen=True)
class Recipe:
    """Compression steps in the order they run; the order is data."""

    name: str
    steps: tuple[Step, ...]
    description: str = ""

    @property
    def precision(self) -> str:
        """The precision of the convolutions in the graph that ships."""
        return "int8" if any(isinstance(step, Quantize) for step in self.steps) else "fp32"


@dataclass(frozen=True)
class Budget:
    """What a build must reach; None where anything goes.

    max_bytes: of the bundle; min_retention: share of the detector's own mAP50-95, 0 to 1; min_fps: frames a second,
    one after the other, from frame to detections.
    """

    max_bytes: int | None = None
    min_retention: float | None = None
    min_fps: float | None = None


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or one from a `.toml` file. Raises SpecError naming what is wrong and where."""
    if name.endswith(".toml"):
        return recipe_from(read_toml(Path(name)), name)
    names = recipe_names()
    if name not in names:
        raise SpecError(
            f"--recipe {name}: no such recipe",
            expected=", ".join(names) + ", or a .toml file",
            fix=did_you_mean(name, names),
        )
    with resources.as_file(resources.files("edgekd.recipes") / f"{name}.toml") as path:
        return recipe_from(read_toml(path), name)


def recipe_names() -> tuple[str, ...]:
    """The names of the shipped recipes."""
    files = resources.files("edgekd.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@dataclass(frozen=True)
class _Head:
    name: str
    description: str = ""


def recipe_from(table: dict[str, Any], source: str) -> Recipe:
    """The recipe in a TOML table. Raises SpecError naming the key."""
    steps = table.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise SpecError(f"{source}: not a recipe", expected="`name` and [[steps]]", found=", ".join(table) or "nothing")
    head = parse_table(_Head, {key: value for key, value in table.items() if key != "steps"}, source)
    found = (_step(step, f"{source}: step {number}") for number, step in enumerate(steps, start=1))
    return Recipe(head.name, tuple(found), head.description)


def _step(table: dict[str, Any], where: str) -> Step:
    kind = table.get("kind")
    if kind not in _STEPS:
        raise SpecError(f"{where}: `kind`", expected=" or ".join(_STEPS), found=str(kind))
    return parse_table(_STEPS[kind], {key: value for key, value in table.items() if key != "kind"}, where)


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str, name: str) -> int:
    """Bytes in a size such as `12MB` (10^6), `12MiB` (2^20) or `12000000`. Raises SpecError about the flag `name`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise SpecError(f"{name} {text}: no size", expected="a number and kB, MB, GB, KiB, MiB or GiB, such as 12MB")
    return round(float(match[1]) * _UNITS[match[2]])


def parse_share(text: str, name: str) -> float:
    """A share from 0 to 1 in `98%` or `0.98`. Raises SpecError about the flag `name`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise SpecError(f"{name} {text}: no share", expected="a percentage such as 98%, or a number from 0 to 1")
    return share
