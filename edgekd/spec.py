"""What a user asks for: recipe and budget. TOML and text in, frozen dataclasses out. No I/O beyond the TOML."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edgekd.compress.plan import Form
from edgekd.errors import SpecError, did_you_mean
from edgekd.toml import parse_table, read_toml


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to Q/DQ.

    ranges: how far each activation reaches, by the rules of `edgekd.compress.ranges`; `best`: layer by layer the one
    that costs the layers which read it least. min_snr_db: a layer whose output would be noisier than this in INT8
    (signal-to-noise ratio on calibration frames) stays float. frames: calibration frames, the first ones, on which
    weights and biases are fitted to what is quantized before them; with feedback more, where a layer reads next to
    nothing of each. int8_rounding: `feedback` lets later weights make up for the rounding of earlier ones, as fp4x
    always does; in INT8 that is a hundredth of the noise, and `nearest` is quicker.

    formats: what weights may be stored as; `nvfp4` only those of matrix products. INT8 alone needs no plan; with more,
    a planner gives every layer one of them, under `max_size` (of the packed graph, such as `3MB`) or what the build's
    budget leaves for it. plan: a TOML file that an earlier planner wrote, or a hand edited, to be run as it is.
    """

    ranges: Literal["best", "mse", "entropy", "percentile", "max"] = "best"
    min_snr_db: float = 27.0
    frames: int = 12
    int8_rounding: Literal["nearest", "feedback"] = "nearest"
    formats: tuple[Form, ...] = ("int8",)
    max_size: str | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        if not self.formats:
            raise SpecError("quantize: formats", expected="at least one of float16, int8, fp4x and nvfp4", found="none")
        _ = self.max_bytes  # raises where it is no size

    @property
    def max_bytes(self) -> int | None:
        """`max_size` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size, "max_size")

    @property
    def planned(self) -> bool:
        """Whether a planner, or a plan from a file, chooses the formats."""
        return self.plan is not None or self.formats != ("int8",)


@dataclass(frozen=True)
class QuantAwareDistill:
    """Training of the quantized detector until it does again what the float detector does.

    epochs: passes over the training split; batch: images a step; learning_rate: how far a step moves a weight at most,
    as a share of its channel's range; image_size: side of the training images in pixels, the graph's own if None;
    ranges: whether scales stay as calibrated or are trained, too; labels: how much the labels count beside the float
    detector, 0 for not at all; seed: of the order of the images and how they are varied.
    """

    epochs: int = 10
    batch: int = 8
    learning_rate: float = 2e-4
    image_size: int | None = None
    ranges: Literal["fixed", "learned"] = "fixed"
    labels: float = 0.0
    seed: int = 0


Step = Quantize | QuantAwareDistill
"""The compression steps a recipe may hold."""

_STEPS: dict[str, type[Step]] = {"quantize": Quantize, "quant_aware_distill": QuantAwareDistill}


@dataclass(frozen=True)
class Recipe:
    """Compression steps in the order they run; the order is data."""

    name: str
    steps: tuple[Step, ...]
    description: str = ""

    @property
    def precision(self) -> str:
        """The precision of the layers in the graph that ships."""
        return "int8" if self.quantize else "fp32"

    @property
    def quantize(self) -> Quantize | None:
        """The step that quantizes; None in a recipe that ships the float graph."""
        return next((step for step in self.steps if isinstance(step, Quantize)), None)

    @property
    def trains(self) -> bool:
        """Whether a step needs a checkpoint and labelled training data."""
        return any(isinstance(step, QuantAwareDistill) for step in self.steps)

    def with_plan(self, plan: Path) -> Recipe:
        """The recipe with the plan in this file in place of its own choice. Raises SpecError where it has none."""
        if self.quantize is None:
            raise SpecError(f"--plan {plan}: recipe {self.name} quantizes nothing", fix="pass --recipe mixed or ptq")
        return replace(
            self, steps=tuple(replace(s, plan=str(plan)) if isinstance(s, Quantize) else s for s in self.steps)
        )


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
        recipe = recipe_from(read_toml(Path(name)), name)
        plan = recipe.quantize.plan if recipe.quantize else None
        return recipe.with_plan(Path(name).parent / plan) if plan else recipe
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
    found = tuple(_step(step, f"{source}: step {number}") for number, step in enumerate(steps, start=1))
    if [isinstance(step, Quantize) for step in found] != [True, *([False] * (len(found) - 1))][: len(found)]:
        kinds = ", ".join(str(step["kind"]) for step in steps)
        raise SpecError(f"{source}: steps", expected="quantize once and first, then quant_aware_distill", found=kinds)
    return Recipe(head.name, found, head.description)


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
