"""What a user asks for: recipe and budget. TOML and text in, frozen dataclasses out. No I/O beyond the TOML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

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
    min_snr_db: float = 28.0
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


HALF = 0.5
"""The share of the multiply-adds that pruning removes where nothing says how much."""


@dataclass(frozen=True)
class Prune:
    """Removal of the channels that a detector can best do without.

    How much goes: `ratio`, a share of its multiply-adds; as much as it takes for `max_size` of the checkpoint, such as
    `3MB`, or for `min_fps` on the target; where all are None half of the multiply-adds.
    importance: of a channel, by the change of the loss on the labels that its weights stand for (`taylor`), by their
    gradients alone, or by their size alone, which needs no images; ranking: over all layers, or among layers built
    alike. multiple: what widths stay multiples of, if None what the target likes; most: the share of a layer's channels
    that may go; caps: the same for layers whose names match a pattern, such as `model.2.*`, 0 to leave them alone.
    rounds: in which as large a share goes each time; recovery: the training between two rounds, beside what it was.
    images: of the training split, for gradients, `batch` at a time; image_size: their side in pixels, the detector's
    own if None; seed: by which they are drawn.
    """

    ratio: float | None = None
    max_size: str | None = None
    min_fps: float | None = None
    importance: Literal["taylor", "gradient", "magnitude"] = "taylor"
    ranking: Literal["global", "isomorphic"] = "global"
    multiple: int | None = None
    most: float = 0.8
    caps: dict[str, float] = field(default_factory=dict)
    rounds: int = 1
    recovery: Distill | None = None
    images: int = 64
    batch: int = 8
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ratio", "most"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise SpecError(f"prune: {name}", expected="between 0 and 1", found=str(value))
        for name in ("min_fps", "multiple", "rounds", "images", "batch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SpecError(f"prune: {name}", expected="more than 0", found=str(value))
        for pattern, cap in self.caps.items():
            if not 0 <= cap < 1:
                raise SpecError(f"prune: caps: {pattern}", expected="0 or more, and less than 1", found=str(cap))
        if self.recovery is not None and self.recovery.student is not None:
            raise SpecError("prune: recovery", expected="no student: it trains what pruning has left")
        _ = self.max_bytes  # raises where it is no size

    @property
    def max_bytes(self) -> int | None:
        """`max_size` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size, "max_size")

    @property
    def share(self) -> float:
        """The share of the multiply-adds that goes in any case."""
        if self.ratio is not None:
            return self.ratio
        return HALF if self.max_size is None and self.min_fps is None else 0.0


@dataclass(frozen=True)
class LowRank:
    """Convolutions replaced by products of thinner ones, where those cost less.

    energy: the share of what varies in each one's output that its product keeps at least. channels: those with fewer,
    on either side, are left alone. images: of the training split, for what layers read; image_size: their side in
    pixels, the detector's own if None; seed: by which they are drawn.
    """

    energy: float = 0.97
    channels: int = 64
    images: int = 64
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.energy < 1:
            raise SpecError("factorize: energy", expected="between 0 and 1", found=str(self.energy))
        for name in ("channels", "images"):
            if not getattr(self, name) > 0:
                raise SpecError(f"factorize: {name}", expected="more than 0", found=str(getattr(self, name)))


@dataclass(frozen=True)
class Weights:
    """How much each level of distillation counts; 0 leaves it out. docs/distillation.md says what they are.

    With gradients in balance (`Distill.balance_every`) 1 pulls on the student's neck as hard as the labels do.
    """

    neurons: float = 0.0
    attention: float = 0.0
    features: float = 0.0
    classes: float = 0.0
    boxes: float = 0.0
    relations: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not getattr(self, entry.name) >= 0:
                raise SpecError(
                    f"distill: weight {entry.name}", expected="0 or more", found=str(vars(self)[entry.name])
                )

    @property
    def any(self) -> bool:
        """Whether a level counts at all."""
        return any(getattr(self, entry.name) for entry in fields(self))


@dataclass(frozen=True)
class DistillStage:
    """A part of a distillation. share: of the training, relative to the other stages' shares.

    adaptive: whether the weights are scaled by the teacher's share, which follows from how much the two disagree.
    """

    name: str
    share: float
    weights: Weights
    adaptive: bool = False


DISTILL_STAGES = (
    DistillStage("features", 0.1, Weights(features=0.25, attention=0.1, neurons=0.1, classes=1.0, boxes=1.0)),
    DistillStage("predictions", 0.6, Weights(classes=1.0, boxes=1.0, relations=0.1)),
    DistillStage("fusion", 0.3, Weights(features=0.25, classes=1.0, boxes=1.0, relations=0.1), adaptive=True),
)
"""What the teacher says all along: with what its maps hold, then how objects relate, then both as far as it fits."""


@dataclass(frozen=True)
class Distill:
    """Training of a smaller detector, the student, on labels and beside its teacher.

    student: a .pt checkpoint, a model description by Ultralytics such as `yolo11n.yaml`, or one in a file; width: of
    its channels, in place of the description's own factor. epochs: passes over the training split; minutes: train that
    long, with as many epochs as fit, the first of which assumes `epochs`; batch: images a step; image_size: side of the
    training images in pixels; learning_rate: of AdamW, None for Ultralytics' choice of optimizer and rate; final_rate:
    the share of it that is left at the end; warmup_epochs: in which it rises; mosaic: how often four images are shown
    as one; close_mosaic: last epochs without that; amp: bfloat16 where hardware has it; seed: of weights and images.

    stages: what is distilled, one after the other. features: how maps are compared: `weighted` by the teacher's
    certainty, `correlation` or `channels`. focus: how much more those classes count on which the two disagree.
    alpha: how the teacher's share in an adaptive stage follows from disagreement, and momentum, of its mean.
    temperature: softens classes; learn_temperature: learned within 1 and 4 instead. balance_every: steps between two
    measurements of each loss's gradient, by which all are brought to the size of the labels'; 0 for never.
    same_classes: classes that have another name in the teacher's list, as "teacher's name = name in the data".

    class_power: how much more rare classes count in the teacher's class loss, 0 for not at all, 1 for as much as all;
    repeat: images with a class that a smaller share of the images has are shown more often; 0 for each once.

    unlabelled: a folder of frames that the teacher labels; unlabelled_share: of each batch; keep: the share of the
    teacher's detections that is to be right where they count as labels.

    conflict: whether the labels' loss and the teacher's are reconciled where they meet, at the student's neck.

    text: how much it counts that what the student sees in an object's box lies where its class's words lie; prompts:
    by class, the words to take instead of its name.
    """

    student: str | None = None
    width: float | None = None
    epochs: int = 100
    minutes: float | None = None
    batch: int = 16
    image_size: int = 640
    learning_rate: float | None = None
    final_rate: float = 0.01
    warmup_epochs: float = 3.0
    mosaic: float = 1.0
    close_mosaic: int = 10
    amp: bool = True
    seed: int = 0
    stages: tuple[DistillStage, ...] = DISTILL_STAGES
    features: Literal["weighted", "correlation", "channels"] = "weighted"
    focus: float = 1.0
    alpha: Literal["agreement", "disagreement", "off"] = "agreement"
    momentum: float = 0.99
    temperature: float = 1.0
    learn_temperature: bool = False
    balance_every: int = 50
    same_classes: tuple[str, ...] = ()
    class_power: float = 0.0
    repeat: float = 0.0
    unlabelled: str | None = None
    unlabelled_share: float = 0.25
    keep: float = 0.9
    conflict: bool = False
    text: float = 0.0
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive = ("width", "epochs", "minutes", "batch", "image_size", "learning_rate", "temperature")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SpecError(f"distill: {name}", expected="more than 0", found=str(value))
        if not self.stages or not all(stage.share > 0 for stage in self.stages):
            raise SpecError("distill: stages", expected="at least one, each with a share above 0")
        for name in ("final_rate", "mosaic", "learning_rate", "class_power", "repeat"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise SpecError(f"distill: {name}", expected="0 to 1", found=str(getattr(self, name)))
        if not self.text >= 0:
            raise SpecError("distill: text", expected="0 or more", found=str(self.text))
        if not 0.5 <= self.keep <= 1:
            raise SpecError("distill: keep", expected="0.5 to 1", found=str(self.keep))
        if self.unlabelled is not None and not 0 < round(self.unlabelled_share * self.batch) < self.batch:
            raise SpecError(
                "distill: unlabelled_share",
                expected=f"both kinds of frames in a batch of {self.batch}",
                found=str(self.unlabelled_share),
                fix="use another share, or a larger batch",
            )
        if not 0 <= self.momentum < 1:
            raise SpecError("distill: momentum", expected="0 or more, and less than 1", found=str(self.momentum))

    def stage_at(self, progress: float) -> DistillStage:
        """The stage that a training is in; progress: share of it that is done, 0 to 1."""
        total, end = sum(stage.share for stage in self.stages), 0.0
        for stage in self.stages:
            end += stage.share / total
            if progress < end:
                return stage
        return self.stages[-1]


Step = Quantize | QuantAwareDistill | Distill | LowRank | Prune
"""The compression steps a recipe may hold."""
S = TypeVar("S", Distill, LowRank, Prune)

_STEPS: dict[str, type[Step]] = {
    "prune": Prune,
    "factorize": LowRank,
    "distill": Distill,
    "quantize": Quantize,
    "quant_aware_distill": QuantAwareDistill,
}


def _name_of(kind: type[Step]) -> str:
    return next(name for name, known in _STEPS.items() if known is kind)


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
        return any(isinstance(step, (Prune, LowRank, Distill, QuantAwareDistill)) for step in self.steps)

    @property
    def prune(self) -> Prune | None:
        """The step that removes channels; None in a recipe that keeps them all."""
        return next((step for step in self.steps if isinstance(step, Prune)), None)

    @property
    def factorize(self) -> LowRank | None:
        """The step that replaces convolutions by products; None in a recipe that keeps them."""
        return next((step for step in self.steps if isinstance(step, LowRank)), None)

    @property
    def quant_aware(self) -> bool:
        """Whether the quantized graph is trained."""
        return any(isinstance(step, QuantAwareDistill) for step in self.steps)

    @property
    def distill(self) -> Distill | None:
        """The step that trains another detector, the student; None in a recipe that stays with the one it is given."""
        return next((step for step in self.steps if isinstance(step, Distill)), None)

    def only(self, kind: type[S]) -> S:
        """The recipe's step, which is of that kind and its only one. Raises SpecError."""
        if len(self.steps) == 1 and isinstance(self.steps[0], kind):
            return self.steps[0]
        name = _name_of(kind)
        fix = f"pass --recipe {name}, or one with that step alone; `edgekd build` runs further steps"
        raise SpecError(f"recipe {self.name} is not one step of kind {name}", fix=fix)

    def with_plan(self, plan: Path) -> Recipe:
        """The recipe with the plan in this file in place of its own choice. Raises SpecError where it has none."""
        if self.quantize is None:
            raise SpecError(f"--plan {plan}: recipe {self.name} quantizes nothing", fix="pass --recipe mixed or ptq")
        return replace(
            self, steps=tuple(replace(s, plan=str(plan)) if isinstance(s, Quantize) else s for s in self.steps)
        )

    def with_settings(self, kind: type[Distill] | type[LowRank] | type[Prune], **settings: Any) -> Recipe:
        """The recipe with these settings of its step of that kind, but for those that are None.

        Raises SpecError where it has no such step.
        """
        if not any(isinstance(step, kind) for step in self.steps):
            raise SpecError(f"recipe {self.name} has no step {_name_of(kind)}", fix=f"pass --recipe {_name_of(kind)}")
        changes = {name: value for name, value in settings.items() if value is not None}
        return replace(self, steps=tuple(replace(s, **changes) if isinstance(s, kind) else s for s in self.steps))


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
        recipe = recipe.with_plan(Path(name).parent / plan) if plan else recipe
        return _beside(recipe, Path(name).parent) if recipe.distill else recipe
    names = recipe_names()
    if name not in names:
        raise SpecError(
            f"--recipe {name}: no such recipe",
            expected=", ".join(names) + ", or a .toml file",
            fix=did_you_mean(name, names),
        )
    with resources.as_file(resources.files("edgekd.recipes") / f"{name}.toml") as path:
        return recipe_from(read_toml(path), name)


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the files of its distillation taken from its own folder; a student may also be a model's name."""
    step = recipe.distill
    student = step.student if step else None
    beside = folder / student if student else None
    frames = folder / step.unlabelled if step and step.unlabelled else None
    return recipe.with_settings(
        Distill,
        student=str(beside) if beside and beside.is_file() else None,
        unlabelled=str(frames) if frames else None,
    )


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
    if not _in_order([type(step) for step in found]):
        kinds = ", ".join(str(step["kind"]) for step in steps)
        expected = "prune, factorize, distill and quantize at most once each and in this order, then "
        expected += "quant_aware_distill; or quantize, prune, quant_aware_distill"
        raise SpecError(f"{source}: steps", expected=expected, found=kinds)
    return Recipe(head.name, found, head.description)


def _in_order(kinds: list[type[Step]]) -> bool:
    """Whether steps of these kinds make sense one after the other."""
    if kinds[:2] == [Quantize, Prune]:  # what a quantized detector can do without, before it is trained as one
        return kinds[2:] != [] and set(kinds[2:]) == {QuantAwareDistill}
    order = [list(_STEPS.values()).index(kind) for kind in kinds]
    repeated = any(kinds.count(kind) > 1 for kind in (Prune, LowRank, Distill, Quantize))
    return order == sorted(order) and not repeated and (QuantAwareDistill not in kinds or Quantize in kinds)


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
