"""The steps that a recipe may hold, as frozen dataclasses that refuse what makes no sense. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from edgekd.compress.weight_formats import Form
from edgekd.core.errors import SpecError
from edgekd.core.units import parse_size


class _Sized:
    """A step that may have a size to reach."""

    max_size: str | None

    @property
    def max_bytes(self) -> int | None:
        """`max_size` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size, "max_size")


def _require_positive(kind: str, step: Any, *names: str) -> None:
    """Raise SpecError where one of these settings of a step is 0 or less; None is allowed."""
    for name in names:
        value = getattr(step, name)
        if value is not None and not value > 0:
            raise SpecError(f"{kind}: {name}", expected="more than 0", found=str(value))


@dataclass(frozen=True)
class Quantize(_Sized):
    """Post-training quantization to Q/DQ.

    ranges: the range rule for activations, of `edgekd.compress.quantization.ranges`; `best`: layer by layer the one
    that costs the layers which read it least. min_snr_db: a layer whose output would be noisier than this in INT8
    (signal-to-noise ratio on calibration frames) stays float. frames: calibration frames, the first ones, on which
    weights and biases are fitted to what is quantized before them; with feedback more, where a layer reads next to
    nothing of each. int8_rounding: `feedback` lets later weights make up for the rounding of earlier ones, as fp4x
    always does; in INT8 that is a hundredth of the noise, and `nearest` is quicker.

    formats: what weights may be stored as; `nvfp4` only those of matrix products. INT8 alone needs no plan; with more,
    a planner gives every layer one of them, under `max_size` (of the packed graph, such as `3MB`), so many `bits` for
    each of the graph's weights, or what the build's budget leaves for it. plan: a TOML file that an earlier planner
    wrote, or a hand edited, to be run as it is.
    """

    ranges: Literal["best", "mse", "entropy", "percentile", "max"] = "best"
    min_snr_db: float = 28.0
    frames: int = 12
    int8_rounding: Literal["nearest", "feedback"] = "nearest"
    formats: tuple[Form, ...] = ("int8",)
    max_size: str | None = None
    bits: float | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        if not self.formats:
            raise SpecError("quantize: formats", expected="at least one of float16, int8, fp4x and nvfp4", found="none")
        if self.bits is not None and not 0 < self.bits <= 32:
            raise SpecError("quantize: bits", expected="more than 0 and at most 32", found=str(self.bits))
        _ = self.max_bytes  # raises where it is no size

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


@dataclass(frozen=True)
class Resize:
    """Another size of the input. image_size: its side in pixels, which the detector's strides round up."""

    image_size: int

    def __post_init__(self) -> None:
        _require_positive("resize", self, "image_size")


HALF = 0.5
"""The share of the multiply-adds that pruning removes where nothing says how much."""


@dataclass(frozen=True)
class Prune(_Sized):
    """Removal of the channels that a detector can best do without.

    How much goes: `ratio`, a share of its multiply-adds; as much as it takes for `max_size` of the checkpoint, such as
    `3MB`, or for `min_fps` on the target; where all are None half of the multiply-adds.
    importance: of a channel, by the change of the loss on the labels that its weights stand for (`taylor`), by their
    gradients alone, or by their size alone, which needs no images; ranking: over all layers, or among layers built
    alike. multiple: what widths stay multiples of, if None what the target likes; most: the share of a layer's channels
    that may go in the end; caps: the same for layers whose names match a pattern, such as `model.2.*`, 0 to leave them
    alone.
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
        _require_positive("prune", self, "min_fps", "multiple", "rounds", "images", "batch", "image_size")
        for pattern, cap in self.caps.items():
            if not 0 <= cap < 1:
                raise SpecError(f"prune: caps: {pattern}", expected="0 or more, and less than 1", found=str(cap))
        if self.recovery is not None and self.recovery.student is not None:
            raise SpecError("prune: recovery", expected="no student: it trains what pruning has left")
        if self.recovery is not None and self.rounds == 1:
            fix = "ask for more rounds, or train by a step distill after this one"
            raise SpecError("prune: recovery", expected="several rounds, to train between them", found="one", fix=fix)
        _ = self.max_bytes  # raises where it is no size

    @property
    def share(self) -> float:
        """The share of the multiply-adds that goes in any case."""
        if self.ratio is not None:
            return self.ratio
        return HALF if self.max_size is None and self.min_fps is None else 0.0

    def cap(self, unit: str) -> float:
        """The share of a unit's channels that may go."""
        return min([self.most, *(cap for pattern, cap in self.caps.items() if fnmatchcase(unit, pattern))])


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
        _require_positive("factorize", self, "channels", "images", "image_size")


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
    DistillStage("features", 0.1, Weights(features=0.08, attention=0.03, neurons=0.03, classes=0.3, boxes=0.3)),
    DistillStage("predictions", 0.6, Weights(classes=0.3, boxes=0.3, relations=0.03)),
    DistillStage("fusion", 0.3, Weights(features=0.08, classes=0.3, boxes=0.3, relations=0.03), adaptive=True),
)
"""What the teacher says all along: with what its maps hold, then how objects relate, then both as far as it fits."""


@dataclass(frozen=True)
class Distill:
    """Training of a smaller detector, the student, on labels and beside its teacher.

    student: a .pt checkpoint, a model description by Ultralytics such as `yolo11n.yaml`, or one in a file; width: of
    its channels, in place of the description's own factor. epochs: passes over the training split; minutes: train that
    long, with as many epochs as fit, the first of which assumes `epochs`; batch: images a step; image_size: side of the
    training images in pixels, the teacher's own if None; learning_rate: of AdamW, None for Ultralytics' choice of
    optimizer and rate; final_rate: the share of it that is left at the end; warmup_epochs: in which it rises; mosaic:
    how often four images are shown as one; close_mosaic: last epochs without that; amp: bfloat16 where hardware has it;
    seed: of weights and images.

    stages: what is distilled, one after the other. features: how maps are compared: `weighted` by the teacher's
    certainty, `correlation` or `channels`. focus: how much more those classes count on which the two disagree: 0, or 1
    or more. alpha: how the teacher's share in an adaptive stage follows from disagreement, and momentum, of its mean.
    temperature: softens classes; learn_temperature: learned within 1 and 4 instead. balance_every: steps between two
    measurements of each loss's gradient, by which all are brought to the size of the labels'; 0 for never.
    same_classes: classes that have another name in the teacher's list, as "teacher's name = name in the data"; several
    of the teacher's may be one in the data.

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
    image_size: int | None = None
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
        _require_positive("distill", self, *positive)
        if not self.stages or not all(stage.share > 0 for stage in self.stages):
            raise SpecError("distill: stages", expected="at least one, each with a share above 0")
        for name in ("final_rate", "mosaic", "learning_rate", "class_power", "repeat"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise SpecError(f"distill: {name}", expected="0 to 1", found=str(getattr(self, name)))
        for name in ("text", "warmup_epochs", "close_mosaic", "balance_every", "seed"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"distill: {name}", expected="0 or more", found=str(getattr(self, name)))
        if self.focus != 0 and not self.focus >= 1:  # between the two it has no slope where the two agree
            raise SpecError("distill: focus", expected="0, or 1 or more", found=str(self.focus))
        if self.prompts and not self.text:
            raise SpecError("distill: prompts without text", fix="say how much words count, such as text = 0.5")
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
