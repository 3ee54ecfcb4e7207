"""Stages `distill` and `quant_aware_distill`: a student trained beside its teacher, and a quantized graph trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages import label
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext, shared_file
from edgekd.builds.stages.calibrate import Frames
from edgekd.builds.stages.quantize import CACHE, PLAN, CacheResult, QuantizedResult
from edgekd.compress.distillation.prediction_cache import SUFFIX
from edgekd.compress.quantization.activation_scales import write_cache
from edgekd.compress.steps import Distill, QuantAwareDistill
from edgekd.data.types import Dataset, Split
from edgekd.detectors import Detector
from edgekd.detectors.family import require_family, student_family

Epochs = tuple[Mapping[str, float], ...]
"""Values of each epoch by name."""


def training_summary(epochs: int, updates: int, losses: Epochs) -> str:
    """Return the first and the last loss, and the length of the training, as text."""
    first, last = (sum(losses[index].values()) for index in (0, -1))
    return f"loss {first:.4g} in the first epoch, {last:.4g} in the last; epochs: {epochs}, weight updates: {updates}"


@dataclass(frozen=True)
class DistillResult(StageResult):
    """A student, in the file `student_file(step)`.

    Args:
        bytes: Length of the file.
        updates: Number of weight updates.
        losses: Mean losses of each epoch.
        weights: Weights of the losses in each epoch.
        parameters: Number of the student's.
    """

    bytes: int
    epochs: int
    updates: int
    losses: Epochs
    weights: Epochs
    parameters: int
    teacher_parameters: int

    @property
    def summary(self) -> str:
        """Both sizes."""
        ours, theirs = self.parameters / 1e6, self.teacher_parameters / 1e6
        sizes = f"a student of {ours:.2f} M parameters beside a teacher of {theirs:.2f} M"
        return f"{sizes}; epochs: {self.epochs}, weight updates: {self.updates}"


@dataclass(frozen=True)
class TrainedResult(QuantizedResult):
    """A quantized graph with trained weights; updates: their number; losses: mean losses of each epoch."""

    epochs: int
    updates: int
    losses: Epochs

    @property
    def summary(self) -> str:
        """The first and the last loss, and the length of the training."""
        return training_summary(self.epochs, self.updates, self.losses)


DISTILL = StageKind("distill", 7, DistillResult, ("numpy", "torch", "torchvision", "ultralytics"))
QUANT_AWARE_DISTILL = StageKind("quant_aware_distill", 4, TrainedResult, ("numpy", "onnx", "torch", "ultralytics"))


@dataclass(frozen=True)
class CacheRequest:
    """A calibration cache to write: for a version of TensorRT, measured on calibration frames."""

    tensorrt: str
    frames: Frames


def student_file(step: Distill) -> str:
    """Return the name of the file that a distillation writes."""
    return f"student{student_family(step.student).suffix}"


def distill(
    context: StageContext,
    step: Distill,
    teacher: Path,
    dataset: Dataset,
    *,
    trust: bool = False,
    device: str | None = None,
) -> Stage[DistillResult]:
    """Train a student. A killed training run is resumed by the next call.

    Args:
        device: Where it is trained, which is no input.
    """
    frames = label.run(context, step, teacher, dataset, trust=trust) if step.unlabelled else ()
    predicted = {
        "teacher": context.sha256(teacher),
        "train": context.fingerprint(dataset.split("train")),
        "unlabelled": context.fingerprint(Split("unlabelled", frames)) if frames else None,
    }
    elsewhere = ("student", "unlabelled", "labeller", "cache_size")
    inputs = {
        **predicted,
        "student": step.student and context.identity_of(step.student),
        "classes": list(dataset.classes),
        "step": {name: value for name, value in asdict(step).items() if name not in elsewhere},
    }
    libraries = student_family(step.student).libraries
    cache = shared_file(context, DISTILL, require_family(teacher).libraries, predicted, f"teacher-*{SUFFIX}")
    state = shared_file(context, DISTILL, libraries, inputs, "distill-*.training")

    def work(folder: Path) -> DistillResult:
        out = folder / student_file(step)
        distill_student = student_family(step.student).capability("distill")
        done = distill_student(
            teacher, out, dataset.source, step, state, trust, device, context.progress, frames, cache
        )
        return DistillResult(
            bytes=out.stat().st_size,
            epochs=done.epochs,
            updates=done.updates,
            losses=rounded(done.losses),
            weights=rounded(done.weights),
            parameters=done.parameters,
            teacher_parameters=done.teacher_parameters,
        )

    stage = context.run(DISTILL, inputs, work, libraries=libraries)
    state.unlink(missing_ok=True)
    return stage


def quant_aware_distill(
    context: StageContext,
    step: QuantAwareDistill,
    detector: Detector,
    graph: Stage[QuantizedResult],
    dataset: Dataset,
    *,
    trust: bool = False,
    cache_request: CacheRequest | None = None,
    teacher: Path | None = None,
) -> Stage[TrainedResult]:
    """Train the weights of a quantized graph beside its float detector, or a teacher, on the training split."""

    def work(folder: Path) -> TrainedResult:
        distill_quantized = require_family(detector.path).capability("quant_aware_distill")
        source, out = graph.path / GRAPH, folder / GRAPH
        done = distill_quantized(detector.path, source, out, dataset.source, step, trust, context.progress, teacher)
        if PLAN in graph.files:
            shutil.copyfile(graph.path / PLAN, folder / PLAN)
        cache = None
        if cache_request:  # training moves activations, also those whose scales it keeps
            counts = write_cache(out, folder / CACHE, cache_request.frames.read, cache_request.tensorrt)
            cache = CacheResult(**counts)
        return TrainedResult(
            detector=graph.result.detector,
            opset=graph.result.opset,
            bytes=out.stat().st_size,
            layers=graph.result.layers,
            forms=graph.result.forms,
            calibration_cache=cache,
            epochs=done.epochs,
            updates=done.updates,
            losses=rounded(done.losses),
        )

    inputs = {
        "graph": graph.sha256,
        "checkpoint": context.sha256(detector.path),
        "teacher": context.sha256(teacher) if teacher else None,
        "train": context.fingerprint(dataset.split("train")),
        "step": asdict(step),
        "cache": (cache_request.tensorrt, cache_request.frames.sha256) if cache_request else None,
    }
    libraries = require_family(detector.path).libraries
    return context.run(QUANT_AWARE_DISTILL, inputs, work, libraries=libraries)


def quantized_stage(graph: GraphStage) -> Stage[QuantizedResult]:
    """Return a graph that a recipe has quantized, as one."""
    assert isinstance(graph.result, QuantizedResult), "recipes train only what they have quantized"
    return cast("Stage[QuantizedResult]", graph)


def rounded(epochs: Iterable[Mapping[str, float]]) -> Epochs:
    """Return the numbers of a training as results hold them, with six digits."""
    return tuple({name: float(f"{value:.6g}") for name, value in epoch.items()} for epoch in epochs)
