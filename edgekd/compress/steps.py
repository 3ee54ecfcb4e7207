"""The compression steps of a recipe, as frozen dataclasses that check their settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from edgekd.compress.weight_formats import WEIGHT_FORMATS, WeightFormat
from edgekd.core.errors import SpecError
from edgekd.core.units import parse_size

S = TypeVar("S", bound="Step")


@dataclass(frozen=True)
class Step:
    """Base of the settings of a compression step; kind: its name in a recipe."""

    kind: ClassVar[str]

    def beside(self: S, folder: Path) -> S:
        """Return the step with the paths in it relative to the folder of its recipe."""
        return self


class _Sized(Step):
    """Base of a step that may have a size limit."""

    max_size: str | None

    @property
    def max_bytes(self) -> int | None:
        """`max_size` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size, "max_size")


class _Cached(Step):
    """Base of a step that caches a teacher's predictions on disk."""

    cache_size: str

    @property
    def max_cache_bytes(self) -> int:
        """`cache_size` in bytes."""
        return parse_size(self.cache_size, "cache_size")


def _require(step: Step, expected: str, fits: Callable[[Any], bool], *names: str) -> None:
    """Raise SpecError if one of these settings of a step is neither None nor accepted by `fits`."""
    for name in names:
        value = getattr(step, name)
        if value is not None and not fits(value):
            raise SpecError(f"{step.kind}: {name}", expected=expected, found=str(value))


def _require_positive(step: Step, *names: str) -> None:
    _require(step, "more than 0", lambda value: value > 0, *names)


@dataclass(frozen=True)
class Quantize(_Sized):
    """Post-training quantization to Q/DQ.

    Args:
        ranges: Rule of `edgekd.compress.quantization.ranges` for the range of an activation; `best` selects for each
            activation the rule with the lowest error of the layers that read it.
        min_snr_db: Layers whose output would have a lower signal-to-noise ratio in INT8, on calibration frames, stay
            float.
        frames: Number of calibration frames, from the first on, for fitting weights and biases to the quantized layers
            before them; rounding with feedback uses more if a layer has few patches per frame.
        int8_rounding: `feedback` compensates the rounding of earlier weights by later ones, as fp4x always does; in
            INT8 that is a hundredth of the noise, and `nearest` is faster.
        formats: Allowed formats of weights; `nvfp4` only for matrix products. If not INT8 alone, a planner assigns one
            to every layer, within `max_size`, `bits` or the build's budget.
        max_size: Largest size of the packed graph, such as `3MB`.
        bits: Largest mean number of bits per weight of the graph.
        plan: A TOML file with a plan to use unchanged: written by an earlier run, or edited by hand.
    """

    kind = "quantize"

    ranges: Literal["best", "mse", "entropy", "percentile", "max"] = "best"
    min_snr_db: float = 28.0
    frames: int = 12
    int8_rounding: Literal["nearest", "feedback"] = "nearest"
    formats: tuple[WeightFormat, ...] = ("int8",)
    max_size: str | None = None
    bits: float | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        if not self.formats:
            raise SpecError("quantize: formats", expected=f"at least one of {', '.join(WEIGHT_FORMATS)}", found="none")
        _require(self, "more than 0 and at most 32", lambda bits: 0 < bits <= 32, "bits")
        _ = self.max_bytes  # raises where it is no size

    @property
    def planned(self) -> bool:
        """True if a planner, or a plan from a file, chooses the formats."""
        return self.plan is not None or self.formats != ("int8",)

    def beside(self, folder: Path) -> Quantize:
        """Return the step with its plan's path relative to a folder."""
        return replace(self, plan=str(folder / self.plan)) if self.plan else self


@dataclass(frozen=True)
class Resize(Step):
    """Change of the input size; image_size: its side in pixels, rounded up to a multiple of the detector's strides."""

    kind = "resize"

    image_size: int

    def __post_init__(self) -> None:
        _require_positive(self, "image_size")


HALF = 0.5
"""Default share of the multiply-adds that pruning removes."""


@dataclass(frozen=True)
class Prune(_Sized):
    """Removal of the least important channels.

    Without `ratio`, `max_size` and `min_fps` half of the multiply-adds are removed.

    Args:
        ratio: Share of the multiply-adds to remove.
        max_size: Largest size of the checkpoint, such as `3MB`.
        min_fps: Frames per second to reach on the target.
        importance: Importance of a channel: the increase of the loss on labels that remains after a refit (`surgeon`),
            its first-order change without a refit (`taylor`), the gradients alone, or the magnitude of the weights
            alone.
        ranking: Compare channels over all layers, or among layers of the same structure.
        multiple: Widths stay multiples of this; None for the target's preference.
        most: Largest share of a layer's channels to remove in all rounds.
        caps: The same for layers whose names match a pattern, such as `model.2.*`; 0 keeps all of their channels.
        rounds: Number of rounds, each of which removes the same share.
        refit: Refit the weights of all layers to their original outputs, by least squares on the images.
        recovery: Training between two rounds, with the original detector as teacher.
        images: Number of images of the training split for gradients and the refit.
        batch: Images per batch for new statistics of batch norms and for the scan of sensitivity.
        image_size: Their side in pixels; None for the detector's own.
        seed: Seed of the choice of images.
    """

    kind = "prune"

    ratio: float | None = None
    max_size: str | None = None
    min_fps: float | None = None
    importance: Literal["surgeon", "taylor", "gradient", "magnitude"] = "surgeon"
    ranking: Literal["global", "isomorphic"] = "global"
    multiple: int | None = None
    most: float = 0.6
    caps: dict[str, float] = field(default_factory=dict)
    rounds: int = 1
    refit: bool = True
    recovery: Distill | None = None
    images: int = 128
    batch: int = 8
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, "between 0 and 1", lambda share: 0 < share < 1, "ratio", "most")
        _require_positive(self, "min_fps", "multiple", "rounds", "images", "batch", "image_size")
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
    def needs_images(self) -> bool:
        """True if training images are read."""
        return self.refit or self.importance != "magnitude"

    @property
    def needs_weight_gradients(self) -> bool:
        """True if importance is computed from gradients of weights, not of layers' outputs."""
        return self.importance in ("taylor", "gradient")

    @property
    def share(self) -> float:
        """Minimum share of the multiply-adds to remove."""
        default = HALF if self.max_size is None and self.min_fps is None else 0.0
        return default if self.ratio is None else self.ratio

    def cap(self, unit: str) -> float:
        """Return the largest share of the channels of this unit, a layer's name, to remove."""
        return min([self.most, *(cap for pattern, cap in self.caps.items() if fnmatchcase(unit, pattern))])

    def beside(self, folder: Path) -> Prune:
        """Return the step with the paths of its training relative to a folder."""
        return replace(self, recovery=self.recovery.beside(folder)) if self.recovery else self


@dataclass(frozen=True)
class LowRank(Step):
    """Replacement of convolutions by low-rank products that cost less.

    Args:
        energy: Smallest share of the variance of a convolution's output that its product keeps.
        channels: Convolutions with fewer input or output channels are kept.
        refit: Refit the weights of products and of layers after them to the original outputs, by least squares.
        images: Number of images of the training split for measuring activations and for the refit.
        image_size: Their side in pixels; None for the detector's own.
        seed: Seed of the choice of images.
    """

    kind = "factorize"

    energy: float = 0.97
    channels: int = 64
    refit: bool = True
    images: int = 64
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, "between 0 and 1", lambda share: 0 < share < 1, "energy")
        _require_positive(self, "channels", "images", "image_size")


@dataclass(frozen=True)
class _CachedTraining(_Cached):
    """Base of a training on cached predictions, without labels.

    Args:
        epochs: Passes over the images; each image is used unchanged and mirrored in turn.
        batch: Images per update of the weights.
        learning_rate: Peak learning rate.
        images: Largest number of images of the training split to use; None for all.
        image_size: Their side in pixels; None for the detector's own.
        cache_size: Most disk space for the cached predictions of the original detector and their frames, such as `2GB`.
        seed: Seed of the order of the images and of mirroring.
    """

    epochs: int = 5
    batch: int = 8
    learning_rate: float = 7e-4
    images: int | None = None
    image_size: int | None = None
    cache_size: str = "4GB"
    seed: int = 0

    def __post_init__(self) -> None:
        _require_positive(self, "epochs", "batch", "learning_rate", "images", "image_size")
        _require(self, "0 or more", lambda seed: seed >= 0, "seed")
        _ = self.max_cache_bytes  # raises where it is no size


@dataclass(frozen=True)
class Recover(_CachedTraining):
    """Training of a pruned or factorized detector to reproduce the original's predictions, without labels."""

    kind = "recover"


@dataclass(frozen=True)
class QuantAwareDistill(_CachedTraining):
    """Training of a quantized detector to reproduce the float detector's predictions, without labels.

    Args:
        learning_rate: Peak learning rate; for quantized weights relative to the range of INT8 codes.
        ranges: Keep the calibrated scales (`fixed`) or train them, too (`learned`).
    """

    kind = "quant_aware_distill"

    learning_rate: float = 2e-4
    ranges: Literal["fixed", "learned"] = "fixed"


@dataclass(frozen=True)
class Weights:
    """Weights of the distillation losses, 0 for none: docs/concepts/distillation.md.

    With balanced gradients (`Distill.balance_every`), a loss with weight 1 has the same gradient norm at the student's
    neck as the loss on labels.
    """

    neurons: float = 0.0
    attention: float = 0.0
    features: float = 0.0
    classes: float = 0.0
    boxes: float = 0.0
    relations: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise SpecError(f"distill: weight {name}", expected="0 or more", found=str(value))

    @property
    def any(self) -> bool:
        """True if any weight is not 0."""
        return any(vars(self).values())


@dataclass(frozen=True)
class DistillStage:
    """A stage of a distillation.

    Args:
        share: Share of the training, relative to the other stages' shares.
        adaptive: Scale each anchor by the teacher's share, computed from the disagreement of both networks there.
    """

    name: str
    share: float
    weights: Weights
    adaptive: bool = False


DISTILL_STAGES = (DistillStage("predictions", 1.0, Weights(classes=0.3, boxes=0.3)),)
"""Only the teacher's predictions: no other loss is known to help, and these work with a cached teacher."""


@dataclass(frozen=True)
class Distill(_Cached):
    """Training of a smaller detector, the student, on labels and on a teacher's predictions.

    Args:
        student: A .pt checkpoint, a model description of Ultralytics such as `yolo11n.yaml`, or a description file.
        width: Factor of its channels, instead of the description's own.
        epochs: Passes over the training split.
        minutes: Duration of the training; `epochs` is then assumed until the first epoch has been timed.
        batch: Images per update of the weights.
        image_size: Side of the training images in pixels; None for the teacher's own.
        learning_rate: Rate of AdamW; None for Ultralytics' choice of optimizer and rate.
        final_rate: Share of the learning rate at the end.
        warmup_steps: Weight updates of the linear warm-up; at most a tenth of the training.
        mosaic: Probability of the mosaic augmentation.
        close_mosaic: Number of last epochs without mosaic.
        amp: Use bfloat16 if the hardware supports it.
        seed: Seed of initial weights and of the order and augmentation of images.
        stages: The losses, stage by stage.
        teacher: `live` runs it on every batch; `cached` runs it once on each image, at the teacher's own size, and
            moves its objects with the labels; `auto` is `cached` unless a loss compares feature maps.
        cache_size: Most disk space for cached objects, such as `2GB`.
        features: Comparison of feature maps: `weighted` by the teacher's certainty, `correlation` or `channels`.
        focus: Exponent of the disagreement of both networks as a weight of the class loss: 0 for none, or 1 or more.
        alpha: Whether the teacher's share in an adaptive stage grows with `agreement` or `disagreement`; `off`: 1.
        temperature: Temperature of the class probabilities.
        balance_every: Steps between two measurements of the losses' gradients, by which all losses are scaled to the
            gradient of the loss on labels; 0 for never.
        same_classes: Classes with another name in the teacher's list, as "teacher's name = name in the data"; several
            of the teacher's may be one in the data.
        class_power: Weight of rare classes in the teacher's class loss: 0 weights objects equally, 1 classes.
        repeat: Repeat images with a class that less than this share of the images has; 0 for none.
        unlabelled: A folder of frames that the teacher labels.
        labeller: A detector of the data's classes that labels them instead of the teacher, such as an open-vocabulary
            one.
        unlabelled_share: Share of these frames in each batch.
        keep: Precision that the teacher's detections need to become labels.
        conflict: Reconcile the gradients of both losses at the student's neck.
        text: Weight of the loss between the student's features of an object and the embedding of its class's words.
        prompts: Words to use instead of a class's name, by class.
    """

    kind = "distill"

    student: str | None = None
    width: float | None = None
    epochs: int = 100
    minutes: float | None = None
    batch: int = 16
    image_size: int | None = None
    learning_rate: float | None = None
    final_rate: float = 0.01
    warmup_steps: int = 1000
    mosaic: float = 1.0
    close_mosaic: int = 10
    amp: bool = True
    seed: int = 0
    stages: tuple[DistillStage, ...] = DISTILL_STAGES
    teacher: Literal["auto", "cached", "live"] = "auto"
    cache_size: str = "4GB"
    features: Literal["weighted", "correlation", "channels"] = "weighted"
    focus: float = 1.0
    alpha: Literal["agreement", "disagreement", "off"] = "agreement"
    temperature: float = 1.0
    balance_every: int = 50
    same_classes: tuple[str, ...] = ()
    class_power: float = 0.0
    repeat: float = 0.0
    unlabelled: str | None = None
    labeller: str | None = None
    unlabelled_share: float = 0.25
    keep: float = 0.9
    conflict: bool = False
    text: float = 0.0
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_positive(self, "width", "epochs", "minutes", "batch", "image_size", "learning_rate", "temperature")
        if not self.stages or not all(stage.share > 0 for stage in self.stages):
            raise SpecError("distill: stages", expected="at least one, each with a share above 0")
        rates = ("final_rate", "mosaic", "learning_rate", "class_power", "repeat")
        _require(self, "0 to 1", lambda rate: 0 <= rate <= 1, *rates)
        counts = ("text", "warmup_steps", "close_mosaic", "balance_every", "seed")
        _require(self, "0 or more", lambda count: count >= 0, *counts)
        # Between 0 and 1 the weight has no slope where both networks agree.
        _require(self, "0, or 1 or more", lambda focus: focus == 0 or focus >= 1, "focus")
        _require(self, "0.5 to 1", lambda precision: 0.5 <= precision <= 1, "keep")
        if self.teacher == "cached" and (maps := ", ".join(self.maps_compared)):
            fix = 'set these weights to 0, or teacher = "live"'
            raise SpecError("distill: a cached teacher has no feature maps", found=f"weights of {maps}", fix=fix)
        _ = self.max_cache_bytes  # raises where it is no size
        if self.prompts and not self.text:
            raise SpecError("distill: prompts without text", fix="say how much words count, such as text = 0.5")
        if self.unlabelled is not None:
            both = f"both kinds of frames in a batch of {self.batch}: another share, or a larger batch"
            _require(self, both, lambda share: 0 < round(share * self.batch) < self.batch, "unlabelled_share")

    @property
    def maps_compared(self) -> tuple[str, ...]:
        """Names of the losses with a weight in any stage that compare feature maps."""
        weighted = {name: None for stage in self.stages for name, weight in vars(stage.weights).items() if weight}
        return tuple(name for name in weighted if name not in ("classes", "boxes"))

    @property
    def uses_cache(self) -> bool:
        """True if the teacher's objects are cached, so that it does not run during the training."""
        return self.teacher != "live" and not self.maps_compared and any(stage.weights.any for stage in self.stages)

    def stage_at(self, progress: float) -> DistillStage:
        """Return the stage at this progress, a share of the training from 0 to 1."""
        total = sum(stage.share for stage in self.stages)
        ends = accumulate(stage.share / total for stage in self.stages)
        return next((stage for stage, end in zip(self.stages, ends, strict=True) if progress < end), self.stages[-1])

    def beside(self, folder: Path) -> Distill:
        """Return the step with its paths relative to a folder; a `student` that is no file there is a model's name."""
        beside = self.student and (folder / self.student).is_file()
        student = str(folder / str(self.student)) if beside else self.student
        unlabelled, labeller = (path and str(folder / path) for path in (self.unlabelled, self.labeller))
        return replace(self, student=student, unlabelled=unlabelled, labeller=labeller)
