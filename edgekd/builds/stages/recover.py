"""Stages `recover` and `quant_aware_distill`: a compressed detector trained to predict as the original one does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext, shared_file
from edgekd.builds.stages.calibrate import Frames
from edgekd.builds.stages.quantize import CACHE, PLAN, CacheResult, QuantizedResult
from edgekd.builds.stages.train import Epochs, rounded, training_summary
from edgekd.compress.distillation.prediction_cache import SUFFIX
from edgekd.compress.quantization.activation_scales import write_cache
from edgekd.compress.steps import QuantAwareDistill, Recover
from edgekd.data.types import Dataset
from edgekd.detectors.family import require_family


@dataclass(frozen=True)
class RecoverResult(StageResult):
    """A trained detector, in the file `recovered_file(detector)`.

    Args:
        bytes: Length of the file.
        epochs: Number of epochs.
        updates: Number of weight updates.
        losses: Mean losses of each epoch.
    """

    bytes: int
    epochs: int
    updates: int
    losses: Epochs

    @property
    def summary(self) -> str:
        """The first and the last loss, and the length of the training."""
        return training_summary(self.epochs, self.updates, self.losses)


@dataclass(frozen=True)
class TrainedResult(QuantizedResult):
    """A quantized graph with trained weights; updates: number of weight updates; losses: mean losses of each epoch."""

    epochs: int
    updates: int
    losses: Epochs

    @property
    def summary(self) -> str:
        """The first and the last loss, and the length of the training."""
        return training_summary(self.epochs, self.updates, self.losses)


TOOLS = ("numpy", "opencv-python-headless", "scipy", "torch", "torchvision", "ultralytics")
"""Libraries whose versions may change predictions and trainings."""
RECOVER = StageKind("recover", 2, RecoverResult, TOOLS)
QUANT_AWARE_DISTILL = StageKind("quant_aware_distill", 5, TrainedResult, (*TOOLS, "onnx"))


@dataclass(frozen=True)
class CacheRequest:
    """A calibration cache to write, for a version of TensorRT, with scales measured on calibration frames."""

    tensorrt: str
    frames: Frames


@dataclass(frozen=True)
class _Training:
    """Inputs and files of a training. cache: file of the teacher's predictions; state: file of a running training."""

    inputs: dict[str, Any]
    cache: Path
    state: Path


def run(
    context: StageContext,
    step: Recover,
    checkpoint: Path,
    teacher: Path,
    graph: GraphStage,
    dataset: Dataset,
    *,
    trust: bool = False,
    device: str | None = None,
) -> Stage[RecoverResult]:
    """Train a checkpoint on predictions of a teacher, which stay in the store for other trainings.

    The next call resumes a killed training.

    Args:
        graph: The checkpoint's float graph.
        trust: Allow code that is pickled in checkpoints to run.
        device: GPUs to train on, such as `0,1`; not part of the stage's key.
    """
    training = _training(context, step, RECOVER, checkpoint, teacher, graph, dataset, {})

    def work(folder: Path) -> RecoverResult:
        out, files = folder / recovered_file(checkpoint), (training.cache, training.state)
        train = require_family(checkpoint).capability("recover")
        done = train(checkpoint, teacher, out, dataset.source, step, *files, trust, device, context.progress)
        return RecoverResult(out.stat().st_size, done.epochs, done.updates, rounded(done.losses))

    stage = context.run(RECOVER, training.inputs, work, libraries=require_family(checkpoint).libraries)
    training.state.unlink(missing_ok=True)
    return stage


def quant_aware_distill(
    context: StageContext,
    step: QuantAwareDistill,
    checkpoint: Path,
    teacher: Path,
    graph: Stage[QuantizedResult],
    dataset: Dataset,
    *,
    trust: bool = False,
    device: str | None = None,
    cache_request: CacheRequest | None = None,
) -> Stage[TrainedResult]:
    """Train the weights of a quantized graph on predictions of a teacher, as `run` trains a checkpoint.

    Args:
        checkpoint: Checkpoint that the graph was exported from.
        device: GPUs to train on, such as `0,1`; not part of the stage's key.
        cache_request: Calibration cache to write for the trained graph.
    """
    cache_inputs = (cache_request.tensorrt, cache_request.frames.sha256) if cache_request else None
    more = {"graph": graph.sha256, "cache": cache_inputs}
    training = _training(context, step, QUANT_AWARE_DISTILL, checkpoint, teacher, graph, dataset, more)

    def work(folder: Path) -> TrainedResult:
        source, out, files = graph.path / GRAPH, folder / GRAPH, (training.cache, training.state)
        train = require_family(checkpoint).capability("quant_aware_distill")
        known = (dataset.source, step, *files, trust, device, context.progress)
        done = train(checkpoint, teacher, out, *known, source)
        if PLAN in graph.files:
            shutil.copyfile(graph.path / PLAN, folder / PLAN)
        cache = None
        if cache_request:  # training changes activations, also those whose scales are fixed
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

    stage = context.run(QUANT_AWARE_DISTILL, training.inputs, work, libraries=require_family(checkpoint).libraries)
    training.state.unlink(missing_ok=True)
    return stage


def _training(
    context: StageContext,
    step: Recover | QuantAwareDistill,
    kind: StageKind[Any],
    checkpoint: Path,
    teacher: Path,
    graph: GraphStage,
    dataset: Dataset,
    more: Mapping[str, Any],
) -> _Training:
    """Return inputs and files of a training; both kinds share the predictions. more: further inputs."""
    preprocess = graph.result.spec.preprocess
    libraries = require_family(checkpoint).libraries
    predicted = {
        "teacher": context.sha256(teacher),
        "train": context.fingerprint(dataset.split("train")),
        "images": step.images,
        "size": step.image_size or [preprocess.height, preprocess.width],
    }
    settings = {name: value for name, value in asdict(step).items() if name != "cache_size"}
    inputs = {**predicted, "model": context.sha256(checkpoint), "step": settings, **more}
    return _Training(
        inputs,
        shared_file(context, RECOVER, libraries, predicted, f"teacher-*{SUFFIX}"),
        shared_file(context, kind, libraries, inputs, f"{kind.name}-*.training"),
    )


def recovered_file(checkpoint: Path) -> str:
    """Return the name of the file of a trained detector."""
    return f"recovered{require_family(checkpoint).suffix}"


def quantized_stage(graph: GraphStage) -> Stage[QuantizedResult]:
    """Return a stage with the type of a quantized graph; recipes train only graphs that they have quantized."""
    assert isinstance(graph.result, QuantizedResult), "recipes train only what they have quantized"
    return cast("Stage[QuantizedResult]", graph)
