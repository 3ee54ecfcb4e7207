"""The prediction for an ONNX graph on a target: the result of `edgekd predict`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.core.errors import SpecError
from edgekd.graph.view import load_view
from edgekd.hardware.predict.device import Precision
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import Prediction, Predictor, scale_from
from edgekd.hardware.predict.roofline import Roofline, roofline
from edgekd.hardware.predict.table import MeasuredTable, TableFile
from edgekd.hardware.predict.work import multiply_adds
from edgekd.hardware.target import Target

DEAREST = 20
"""Layers that the result lists."""


@dataclass(frozen=True)
class Predicted:
    """The prediction for a graph, and its layers under the roof of the target.

    measurements: How many of the target itself correct the prediction; measured: how they were taken.
    """

    model: str
    target: str
    precision: Precision
    multiply_adds: int
    prediction: Prediction
    roof: Roofline
    measurements: int = 0
    measured: str | None = None

    @property
    def latency_ms(self) -> float:
        """Latency of a frame in milliseconds."""
        return _rounded(self.prediction.latency_ms)

    @property
    def interval_ms(self) -> tuple[float, float]:
        """Interval in milliseconds that should hold nine of ten measurements."""
        return _rounded(self.prediction.low_ms), _rounded(self.prediction.high_ms)

    @property
    def energy_mj(self) -> float | None:
        """Energy of a frame in millijoules, of the whole device; None where no device like it was measured."""
        energy = self.prediction.energy_mj
        return None if energy is None else _rounded(energy)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons not to trust the interval."""
        return self.prediction.doubts

    @property
    def document(self) -> dict[str, Any]:
        """The documented result of `edgekd predict --json`."""
        names = ("latency_ms", "low_ms", "high_ms", "fps", "energy_mj", "low_mj", "high_mj")
        numbers = {name: getattr(self.prediction, name) for name in names}
        dearest = sorted(self.prediction.layers, key=lambda layer: -layer.us)[:DEAREST]
        return {
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "basis": "predicted",
            "multiply_adds": self.multiply_adds,
            **{name: None if number is None else _rounded(number) for name, number in numbers.items()},
            "measurements": self.measurements,
            "measured": self.measured,
            "doubts": list(self.doubts),
            "layers": [{**asdict(layer), "us": _rounded(layer.us)} for layer in dearest],
        }


def predict_graph(
    graph: Path, target: Target, precision: str | None = None, file: TableFile | None = None, model: str | None = None
) -> Predicted:
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
    found = predictor.predict(works, {layer.work: layer.us for layer in table.layers} if table else None)
    return Predicted(
        model=model or graph.name,
        target=target.name,
        precision=used,
        multiply_adds=multiply_adds(works),
        prediction=found,
        roof=roofline(works, [layer.us for layer in found.layers], predictor.device),
        measurements=len(table.networks) + len(table.layers) if table else 0,
        measured=table.measured if table else None,
    )


def _rounded(value: float) -> float:
    """Round to as many digits as a prediction can have."""
    return float(f"{value:.4g}")


def _precision(graph: Path, target: Target, requested: str | None, file: TableFile | None) -> Precision:
    """Return the precision requested, of the table, or of the graph: INT8 where it is quantized, else FP16."""
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
        predicted = sum(predictor.layer_us(layer.work) for layer in table.layers)
        ratios.append(sum(layer.us for layer in table.layers) / predicted)
    return scale_from(ratios)
