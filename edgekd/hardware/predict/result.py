"""The prediction for an ONNX graph on a target: the result of `edgekd predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgekd.core.documents import INTERNAL, Result
from edgekd.core.errors import SpecError
from edgekd.graph.view import load_view
from edgekd.hardware.predict.device import GpuFigures, PredictedPrecision
from edgekd.hardware.predict.dla import DlaFigures, dla_figures
from edgekd.hardware.predict.graph import numbers_copied, works_in
from edgekd.hardware.predict.latency import (
    LayerTime,
    NetworkPrediction,
    Predictor,
    predict_dla,
    scale_from,
    transfer_ms,
)
from edgekd.hardware.predict.roofline import Roofline, roofline
from edgekd.hardware.predict.table import MeasuredTable, TableFile
from edgekd.hardware.predict.work import Work, multiply_adds
from edgekd.hardware.target import Target

SHOWN_LAYERS = 20
"""Layers that the result lists, the slowest first."""


@dataclass(frozen=True)
class PredictResult(Result):
    """The prediction for a batch of frames through a graph, rounded to four digits.

    Args:
        model: File name of the model.
        target: Name of the target.
        precision: Precision that the layers with weights compute in.
        basis: Always `predicted`.
        unit: `gpu`, or one core of the `dla`.
        sparse: Whether weights are assumed to have 2:4 sparsity.
        batch: Frames at once.
        cuda_graph: Whether a CUDA graph launches the kernels.
        multiply_adds: Multiply-adds of convolutions and matrix products.
        latency_ms: Milliseconds of the engine alone, for a batch.
        low_ms, high_ms: Range that should hold nine of ten measurements.
        fps: 1000 * `batch` / `latency_ms`.
        transfer_ms: Milliseconds to copy inputs and outputs of a batch between host and GPU in float32; null where the
            bandwidth is unknown.
        energy_mj: Millijoules of the whole device for a frame; null where no similar device was measured.
        low_mj, high_mj: Range that should hold nine of ten measurements.
        measurements: Number of measurements of the target itself that correct it.
        measured: Description of these measurements; null without any.
        doubts: Reasons not to trust the range.
        layers: The slowest layers.
        roof: Roofline of all layers, not rounded.
    """

    model: str
    target: str
    precision: PredictedPrecision
    basis: Literal["predicted"]
    unit: Literal["gpu", "dla"]
    sparse: bool
    batch: int
    cuda_graph: bool
    multiply_adds: int
    latency_ms: float
    low_ms: float
    high_ms: float
    fps: float
    transfer_ms: float | None
    energy_mj: float | None
    low_mj: float | None
    high_mj: float | None
    measurements: int
    measured: str | None
    doubts: tuple[str, ...]
    layers: tuple[LayerTime, ...]
    roof: Roofline = field(metadata=INTERNAL)

    @property
    def interval_ms(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low_ms, self.high_ms


@dataclass(frozen=True)
class PredictedRun:
    """Assumptions on how a network runs.

    Args:
        precision: Precision; None for that of the table of measurements, else that of the graph.
        batch: Frames at once.
        cuda_graph: True if a CUDA graph launches the kernels, on the GPU.
        dla: True if it runs on one core of the DLA, in INT8.
        sparse: True if its weights have 2:4 sparsity, on the DLA.
    """

    precision: str | None = None
    batch: int = 1
    cuda_graph: bool = False
    dla: bool = False
    sparse: bool = False


SINGLE_FRAME = PredictedRun()


def predict_graph(
    graph: Path,
    target: Target,
    run: PredictedRun = SINGLE_FRAME,
    file: TableFile | None = None,
    model: str | None = None,
) -> PredictResult:
    """Predict latency and energy of a graph.

    Args:
        graph: An ONNX file.
        target: The device.
        run: How it runs.
        file: Measurements of the target itself, on its GPU.
        model: The name in the result, by default the graph's.

    Raises:
        SpecError: The target lacks figures, the precision or the DLA, or the graph cannot be read.
    """
    table = file.table if file else None
    works = works_in(graph)
    precision, prediction, device = _on_dla(works, target, run) if run.dla else _on_gpu(graph, works, target, run, file)
    slowest = sorted(prediction.layers, key=lambda layer: -layer.us)[:SHOWN_LAYERS]
    return PredictResult(
        model=model or graph.name,
        target=target.name,
        precision=precision,
        basis="predicted",
        unit="dla" if run.dla else "gpu",
        sparse=run.sparse,
        batch=run.batch,
        cuda_graph=run.cuda_graph,
        multiply_adds=multiply_adds(works),
        latency_ms=_rounded(prediction.latency_ms),
        low_ms=_rounded(prediction.low_ms),
        high_ms=_rounded(prediction.high_ms),
        fps=_rounded(prediction.fps),
        transfer_ms=_rounded_or_none(transfer_ms(numbers_copied(graph), target, run.batch)),
        energy_mj=_rounded_or_none(prediction.energy_mj),
        low_mj=_rounded_or_none(prediction.low_mj),
        high_mj=_rounded_or_none(prediction.high_mj),
        measurements=len(table.networks) + len(table.layers) if table else 0,
        measured=table.measured if table else None,
        doubts=prediction.doubts,
        layers=tuple(replace(layer, us=_rounded(layer.us)) for layer in slowest),
        roof=roofline(works, [layer.us / run.batch for layer in prediction.layers], device),
    )


def _on_gpu(
    graph: Path, works: Sequence[Work], target: Target, run: PredictedRun, file: TableFile | None
) -> tuple[PredictedPrecision, NetworkPrediction, GpuFigures]:
    precision = _precision(graph, target, run.precision, file)
    predictor = Predictor(target, precision, cuda_graph=run.cuda_graph)
    if file:
        scale = _scale(predictor, file.table, file.path.parent)
        predictor = Predictor(target, precision, scale=scale, cuda_graph=run.cuda_graph)
    measured_us = {layer.work: layer.us for layer in file.table.layers} if file else None
    return precision, predictor.predict(works, measured_us, run.batch), predictor.device


def _on_dla(
    works: Sequence[Work], target: Target, run: PredictedRun
) -> tuple[PredictedPrecision, NetworkPrediction, DlaFigures]:
    if run.precision not in (None, "int8"):
        raise SpecError("predictions on the DLA are in INT8", expected="int8", found=run.precision)
    prediction = predict_dla(works, target, run.batch, sparse=run.sparse)
    return "int8", prediction, dla_figures(target, sparse=run.sparse)


def _rounded_or_none(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def _precision(graph: Path, target: Target, requested: str | None, file: TableFile | None) -> PredictedPrecision:
    """Return the requested precision, that of the table, or of the graph: INT8 where it is quantized, else FP16."""
    if file:
        if requested not in (None, file.table.precision):
            raise SpecError(
                f"{file.path}: measured in another precision", expected=requested, found=file.table.precision
            )
        return file.table.precision
    if requested is not None:
        return requested  # type: ignore[return-value]
    quantized = load_view(graph).of("QuantizeLinear")
    return "int8" if quantized and "int8" in target.precisions.conv.value else "fp16"


def _scale(predictor: Predictor, table: MeasuredTable, folder: Path) -> float:
    """Return the factor that corrects predictions for the target; the layers together count as one network."""
    ratios = [
        network.latency_ms / predictor.predict(works_in(folder / network.graph)).latency_ms
        for network in table.networks
    ]
    if table.layers:
        predicted = sum(predictor.layer_us(layer) for layer in table.layers)
        ratios.append(sum(layer.us for layer in table.layers) / predicted)
    return scale_from(ratios)
