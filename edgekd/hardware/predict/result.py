"""The prediction for an ONNX graph on a target: the result of `edgekd predict`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgekd.core.documents import INTERNAL, Result
from edgekd.core.errors import SpecError
from edgekd.graph.view import load_view
from edgekd.hardware.predict.device import PredictedPrecision
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import LayerTime, Predictor, scale_from
from edgekd.hardware.predict.roofline import Roofline, roofline
from edgekd.hardware.predict.table import MeasuredTable, TableFile
from edgekd.hardware.predict.work import multiply_adds
from edgekd.hardware.target import Target

SHOWN_LAYERS = 20
"""Layers that the result lists, the slowest first."""


@dataclass(frozen=True)
class PredictResult(Result):
    """The prediction for one frame of a graph, rounded to as many digits as it can have.

    Args:
        model: File name of the model.
        target: Name of the target.
        precision: Precision that the layers with weights compute in.
        basis: Always `predicted`.
        multiply_adds: Multiply-adds of convolutions and matrix products.
        latency_ms: Milliseconds of the engine alone.
        low_ms, high_ms: Range that should hold nine of ten measurements.
        fps: 1000 / `latency_ms`.
        energy_mj: Millijoules of the whole device; null where no device like it was measured.
        low_mj, high_mj: Range that should hold nine of ten measurements.
        measurements: Number of measurements of the target itself that correct it.
        measured: Description of these measurements; null without any.
        doubts: Reasons not to trust the range.
        layers: The slowest layers.
        roof: All layers, not rounded.
    """

    model: str
    target: str
    precision: PredictedPrecision
    basis: Literal["predicted"]
    multiply_adds: int
    latency_ms: float
    low_ms: float
    high_ms: float
    fps: float
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


def predict_graph(
    graph: Path, target: Target, precision: str | None = None, file: TableFile | None = None, model: str | None = None
) -> PredictResult:
    """Predict latency and energy of a graph.

    Args:
        graph: An ONNX file.
        target: The device.
        precision: By default that of the table, else that of the graph.
        file: Measurements of the target itself.
        model: The name in the result, by default the graph's.

    Raises:
        SpecError: The target lacks figures or the precision, or the graph cannot be read.
    """
    table = file.table if file else None
    used, works = _precision(graph, target, precision, file), works_in(graph)
    predictor = Predictor(target, used)
    if file:
        predictor = Predictor(target, used, scale=_scale(predictor, file.table, file.path.parent))
    prediction = predictor.predict(works, {layer.work: layer.us for layer in table.layers} if table else None)
    energies = (prediction.energy_mj, prediction.low_mj, prediction.high_mj)
    energy, low, high = (None if each is None else _rounded(each) for each in energies)
    slowest = sorted(prediction.layers, key=lambda layer: -layer.us)[:SHOWN_LAYERS]
    return PredictResult(
        model=model or graph.name,
        target=target.name,
        precision=used,
        basis="predicted",
        multiply_adds=multiply_adds(works),
        latency_ms=_rounded(prediction.latency_ms),
        low_ms=_rounded(prediction.low_ms),
        high_ms=_rounded(prediction.high_ms),
        fps=_rounded(prediction.fps),
        energy_mj=energy,
        low_mj=low,
        high_mj=high,
        measurements=len(table.networks) + len(table.layers) if table else 0,
        measured=table.measured if table else None,
        doubts=prediction.doubts,
        layers=tuple(replace(layer, us=_rounded(layer.us)) for layer in slowest),
        roof=roofline(works, [layer.us for layer in prediction.layers], predictor.device),
    )


def _rounded(value: float) -> float:
    """Round to as many digits as a prediction can have."""
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
