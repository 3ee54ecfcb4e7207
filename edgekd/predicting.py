"""`edgekd predict`: how long a model would take on a target that is not at hand, and how sure that is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.artifact import PACKED_SUFFIX, expanded, opened
from edgekd.errors import SpecError
from edgekd.onnx_view import load_view
from edgekd.predict.device import Precision, require_precision
from edgekd.predict.graph import works_in
from edgekd.predict.latency import LayerTime, Prediction, Predictor, scale_from
from edgekd.predict.roofline import Roofline, roofline
from edgekd.predict.table import MeasuredTable, load_table
from edgekd.predict.work import multiply_adds
from edgekd.target import Target

DEAREST = 20
"""How many layers the result lists."""


@dataclass(frozen=True)
class PredictJob:
    """Which model on which target. precision: that of the graph if None. table: measurements of the target itself."""

    model: Path
    target: Target
    precision: str | None = None
    table: Path | None = None
    head: str | None = None
    trust_checkpoint: bool = False


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


def run(job: PredictJob) -> Mapping[str, Any]:
    """The documented result of `edgekd predict --json`. Raises SpecError, also where the target has no figures."""
    return predict(job).document


def predict(job: PredictJob) -> Predicted:
    """The result, and the layers under the roof of the target. Raises SpecError as `run` does."""
    if job.precision is not None:
        require_precision(job.target, job.precision)
    table = load_table(job.table, job.target) if job.table else None
    with _graph(job) as graph:
        precision = _precision(job, table, graph)
        works = works_in(graph)
    predictor = Predictor(job.target, precision)
    if table and job.table:
        predictor = Predictor(job.target, precision, scale=_scale(predictor, table, job.table.parent))
    found = predictor.predict(works, {layer.work: layer.us for layer in table.layers} if table else None)
    document = {
        "model": job.model.name,
        "target": job.target.name,
        "precision": precision,
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


@contextmanager
def _graph(job: PredictJob) -> Iterator[Path]:
    """The model as an ONNX file; what its outputs mean does not matter here."""
    if job.model.suffix == ".onnx":
        yield job.model
    elif job.model.suffix == PACKED_SUFFIX:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            yield expanded(job.model, Path(scratch) / "graph.onnx")
    else:
        with opened(job.model, job.head, (), job.trust_checkpoint) as (graph, _):
            yield graph


def _precision(job: PredictJob, table: MeasuredTable | None, graph: Path) -> Precision:
    """What was asked for, measured, or that of the graph: INT8 where it is quantized, else half precision."""
    if table:
        if job.precision not in (None, table.precision):
            raise SpecError(
                f"{job.table}: measured in another precision", expected=job.precision, found=table.precision
            )
        return table.precision
    if job.precision is not None:
        return job.precision  # type: ignore[return-value]
    quantized = load_view(graph).of("QuantizeLinear")
    return "int8" if quantized and "int8" in job.target.precisions.conv.value else "fp16"


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
