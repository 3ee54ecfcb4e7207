"""Stages `plan` and `quantize`: the cost of each format of each layer, and the Q/DQ graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphResult, GraphStage, StageContext
from edgekd.builds.stages.calibrate import Frames
from edgekd.compress.quantization import mixed_precision
from edgekd.compress.quantization.activation_scales import write_cache
from edgekd.compress.quantization.plan import Plan, plan_toml
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WEIGHT_FORMATS
from edgekd.core.canonical import canonical_json

PLAN = "plan.toml"
COSTS = "costs.json"
CACHE = "calibration.cache"
_PLAN_SETTINGS = frozenset({"formats", "max_size", "bits", "plan"})
"""Settings of a step that only influence the choice of its plan."""


@dataclass(frozen=True)
class CostsResult(StageResult):
    """The number of layers whose formats were measured; their costs are in the file COSTS."""

    layers: int


@dataclass(frozen=True)
class CacheResult:
    """TensorRT's calibration cache.

    Args:
        activations: Number of floating-point activations of the graph without Q/DQ that have an INT8 scale in it.
        missing: Number of those without a scale; TensorRT would compute the layers around them in FP16.
    """

    activations: int
    missing: int


@dataclass(frozen=True)
class QuantizedResult(GraphResult):
    """A Q/DQ graph, with its plan, if any, in the file PLAN, and TensorRT's calibration cache, if any, in CACHE.

    Args:
        layers: Number of INT8 layers, and of all layers.
        forms: Format of each layer by its name.
        calibration_cache: Counts of the calibration cache; None if none was requested.
    """

    layers: tuple[int, int]
    forms: Mapping[str, str]
    calibration_cache: CacheResult | None


@dataclass(frozen=True)
class QuantizeResult(QuantizedResult):
    """A quantized graph before any training.

    Args:
        snr_db: Signal-to-noise ratio at each layer's output, in dB, by its name.
        errors: Estimated cost of each layer by its name: from the plan, else noise power by signal power at its output.
        float32: Largest magnitude of each node that float16 cannot compute, by its name.
    """

    snr_db: Mapping[str, float]
    errors: Mapping[str, float]
    float32: Mapping[str, float]

    @property
    def summary(self) -> str:
        """Layers by format, nodes that need float32, and the cache's scales."""
        counts, cache = Counter(self.forms.values()), self.calibration_cache
        formats = ", ".join(f"{counts[form]} layers in {form}" for form in WEIGHT_FORMATS if counts[form])
        pins = f"; {len(self.float32)} nodes in float32" if self.float32 else ""
        if cache is None:
            return formats + pins
        scales = f"scales of {cache.activations} activations, {cache.missing} missing"
        return f"{formats}{pins}; calibration cache: {scales}"


PLAN_COSTS = StageKind("plan", 4, CostsResult, ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy"))
QUANTIZE = StageKind("quantize", 8, QuantizeResult, ("numpy", "onnx", "onnxruntime", "opencv-python-headless"))


def measure_costs(context: StageContext, step: Quantize, graph: GraphStage, frames: Frames) -> Stage[CostsResult]:
    """Measure the error and bytes of every format of every layer, and write them into the file COSTS."""

    def work(folder: Path) -> CostsResult:
        context.note("plan: measuring what each format of each layer costs ...")
        costs = mixed_precision.measure_costs(graph.path / GRAPH, frames.read(), step)
        (folder / COSTS).write_bytes(canonical_json(asdict(costs)))
        return CostsResult(len(costs.layers))

    inputs = {"graph": graph.sha256, "frames": frames.sha256, "step": settings_of(step)}
    return context.run(PLAN_COSTS, inputs | {"forms": mixed_precision.measured_forms(step)}, work)


def run(
    context: StageContext,
    step: Quantize,
    graph: GraphStage,
    frames: Frames,
    plan: Plan | None = None,
    tensorrt: str | None = None,
) -> Stage[QuantizeResult]:
    """Quantize a graph, by a plan if given; tensorrt: version to write a calibration cache for, None for none."""

    def work(folder: Path) -> QuantizeResult:
        planned = (plan.forms, plan.steps) if plan else (None, None)
        done = quantize(graph.path / GRAPH, folder / GRAPH, frames.read(), step, *planned)
        if plan:
            (folder / PLAN).write_text(plan_toml(plan), "utf-8")
        cache = write_cache(folder / GRAPH, folder / CACHE, frames.read, tensorrt) if tensorrt else None
        noises = {name: 10 ** (-done.snr_db[name] / 10) for name in done.int8}
        errors = {layer.name: layer.error for layer in plan.layers} if plan else noises
        return QuantizeResult(
            detector=graph.result.detector,
            opset=graph.result.opset,
            bytes=(folder / GRAPH).stat().st_size,
            layers=(len(done.int8), done.layers),
            forms=dict(done.forms),
            snr_db={name: round(ratio, 2) for name, ratio in done.snr_db.items()},
            errors={name: float(f"{error:.4g}") for name, error in errors.items()},
            calibration_cache=CacheResult(**cache) if cache else None,
            float32={name: float(f"{value:.3g}") for name, value in done.float32.items()},
        )

    inputs = {
        "graph": graph.sha256,
        "calibration": frames.sha256,
        "step": settings_of(step),
        "plan": asdict(plan) if plan else None,
        "tensorrt": tensorrt,
    }
    return context.run(QUANTIZE, inputs, work)


def settings_of(step: Quantize) -> dict[str, Any]:
    """Return the settings of a step that change a graph for a given plan."""
    return {name: value for name, value in asdict(step).items() if name not in _PLAN_SETTINGS}
