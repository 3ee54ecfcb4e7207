"""The prediction for an ONNX graph on a target, as `edgekd predict` documents it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.core.errors import SpecError
from edgekd.graph.view import load_view
from edgekd.hardware.predict.device import Precision
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import LayerTime, Prediction, Predictor, scale_from
from edgekd.hardware.predict.roofline import Roofline, roofline
from edgekd.hardware.predict.table import MeasuredTable, TableFile
from edgekd.hardware.predict.work import multiply_adds
from edgekd.hardware.target import Target

DEAREST = 20
"""How many layers the result lists."""


@dataclass(frozen=True)
class Predicted:
    """document: as `edgekd predict --json` prints it; roof: every layer under the roof of the target."""

    document: Mapping[str, Any]
    roof: Roofline

    @property
    def latency_ms(self) -> float:
        """What a frame should take the network, in milliseconds."""
        return float(self.document["latency_ms"])

    @property
    def interval_ms(self) -> tuple[float, float]:
        """In which nine of ten measurements should lie, in milliseconds."""
        return float(self.document["low_ms"]), float(self.document["high_ms"])

    @property
    def energy_mj(self) -> float | None:
        """What a frame should take the whole device, in millijoules; None where nothing like it was ever measured."""
        energy: float | None = self.document["energy_mj"]
        return energy

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why not to trust it far."""
        return tuple(self.document["doubts"])


def predict_graph(
    graph: Path, target: Target, precision: str | None = None, file: TableFile | None = None, model: str | None = None
) -> Predicted:
    """Predict latency and energy of a graph.

    precision: by default that of the table, else that of the graph. file: measurements of the target itself. model: the
    name in the result, by default the graph's. Raises SpecError, also where the target has no figures.
    """
    table = file.table if file else None
    used, works = _precision(graph, target, precision, file), works_in(graph)
    predictor = Predictor(target, used)
    if file:
        predictor = Predictor(target, used, scale=_scale(predictor, file.table, file.path.parent))
    found = predictor.predict(works, {layer.work: layer.us for layer in table.layers} if table else None)
    document = {
        "model": model or graph.name,
        "target": target.name,
        "precision": used,
        "basis": "predicted",
        "multiply_adds": multiply_adds(works),
        **_numbers(found),
        "measurements": len(table.networks) + len(table.layers) if table else 0,
        "measured": table.measured if table else None,
        "doubts": list(found.doubts),
        "layers": [{**asdict(layer), "us": _short(layer.us)} for layer in _dearest(found)],
    }
    return Predicted(document, roofline(works, [layer.us for layer in found.layers], predictor.device))


def _numbers(found: Prediction) -> dict[str, float | None]:
    names = ("latency_ms", "low_ms", "high_ms", "fps", "energy_mj", "low_mj", "high_mj")
    values = {name: getattr(found, name) for name in names}
    return {name: None if value is None else _short(value) for name, value in values.items()}


def _short(value: float) -> float:
    """As many digits as a prediction can have."""
    return float(f"{value:.4g}")


def _dearest(found: Prediction) -> list[LayerTime]:
    return sorted(found.layers, key=lambda layer: -layer.us)[:DEAREST]


def _precision(graph: Path, target: Target, asked: str | None, file: TableFile | None) -> Precision:
    """What was asked for, measured, or that of the graph: INT8 where it is quantized, else half precision."""
    if file:
        if asked not in (None, file.table.precision):
            raise SpecError(f"{file.path}: measured in another precision", expected=asked, found=file.table.precision)
        return file.table.precision
    if asked is not None:
        return asked  # type: ignore[return-value]
    quantized = load_view(graph).of("QuantizeLinear")
    return "int8" if quantized and "int8" in target.precisions.conv.value else "fp16"


def _scale(predictor: Predictor, table: MeasuredTable, folder: Path) -> float:
    """What predictions for the target must be multiplied by; the layers together count as one network."""
    ratios = [
        network.latency_ms / predictor.predict(works_in(folder / network.graph)).latency_ms
        for network in table.networks
    ]
    if table.layers:
        predicted = sum(predictor.layer_us(layer.work) for layer in table.layers)
        ratios.append(sum(layer.us for layer in table.layers) / predicted)
    return scale_from(ratios)
