"""Latency of layers and networks on a GPU: a roofline with the losses of small and unaligned layers.

The time of a kernel is the larger of its arithmetic time and its memory time, plus its launch. Channels are padded to
the multiple of tensor cores, and the time of one wave of tiles is added, because the last wave is only partly filled:
so small layers do not fill a large GPU. Activations that fit into the L2 cache are moved at its bandwidth.
`bench/predictor.py` fits the few coefficients to published measurements, and reports the error on devices that were
left out of the fit. More channels are never predicted to be faster.

Source of the roofline: Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from math import exp, log
from typing import Any

from edgekd.core.errors import SpecError
from edgekd.core.typed_values import from_plain
from edgekd.hardware.predict.device import (
    BYTES,
    MULTIPLE,
    PRECISIONS,
    PredictedPrecision,
    figures,
    gpu_figures,
    larger,
)
from edgekd.hardware.predict.dla import MEASURED_GENERATION, DlaCoefficients, dla_figures, dla_seconds
from edgekd.hardware.predict.energy import EnergyModel
from edgekd.hardware.predict.work import KernelKind, Work, multiply_adds
from edgekd.hardware.target import Target

COEFFICIENTS = "coefficients.json"


@dataclass(frozen=True)
class Coefficients:
    """Fitted coefficients.

    launch_us: microseconds between two kernels at a GPU clock of 1 GHz; graph_us: the same if a CUDA graph launches
    them. Both are inversely proportional to the clock. wave: outputs that a multiprocessor computes at once; bandwidth,
    and the arithmetic units by name: share of the peak that large layers reach; cache: size of a tensor, as a share of
    the L2 cache, of which half is still cached for the next kernel; copy: factor on the time of copies; transfer: share
    of the memory bandwidth at which inputs and outputs are copied between host and GPU.
    """

    launch_us: float
    graph_us: float
    wave: float
    bandwidth: float
    cache: float
    cuda_fp32: float
    cuda_fp16: float
    tensor_fp32: float
    tensor_fp16: float
    tensor_int8: float
    copy: float
    transfer: float


@dataclass(frozen=True)
class Calibration:
    """Margins of the 90 % interval, which is from prediction / margin to prediction * margin.

    measured_margin: for targets that were measured in the precision; margin: for other targets without doubts;
    wide_margin: with doubts; scaled_margin: with measurements of the user's own device; seen: compute capabilities and
    precisions that were measured; multiply_adds: of the smallest and the largest measured network.
    """

    measured_margin: float
    margin: float
    wide_margin: float
    scaled_margin: float
    seen: tuple[tuple[float, str], ...]
    multiply_adds: tuple[int, int]


@dataclass(frozen=True)
class LatencyModel:
    """The results of `bench/predictor.py`.

    corrections: ratio of measured to predicted time of measured targets, by name and precision.
    """

    coefficients: Coefficients
    corrections: Mapping[str, Mapping[str, float]]
    calibration: Calibration
    energy: EnergyModel
    dla: DlaCoefficients


@dataclass(frozen=True)
class LayerTime:
    """A layer and its time.

    Args:
        name: Name of its node in the graph.
        kind: Kind of its work.
        us: Microseconds.
    """

    name: str
    kind: KernelKind
    us: float


@dataclass(frozen=True)
class NetworkPrediction:
    """The predicted latency of a batch of frames, and the energy of a frame.

    low_ms, high_ms: 90 % interval; energy_mj, low_mj, high_mj: millijoules of the whole device for a frame, and their
    90 % interval, None if no similar device was measured; doubts: reasons not to trust the interval; layers: in order.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    fps: float
    energy_mj: float | None
    low_mj: float | None
    high_mj: float | None
    doubts: tuple[str, ...]
    layers: tuple[LayerTime, ...]


def seconds(layers: Any, device: Any, by: Coefficients, batch: Any = 1, launch_us: Any = None) -> Any:
    """Return the seconds of a layer for a batch of frames, or of many layers.

    Args:
        layers: A `Work`; or many, as arrays under the same names.
        device: `GpuFigures`; or one for each layer, as arrays under the same names.
        by: The coefficients.
        batch: Frames at once.
        launch_us: Microseconds between two kernels at a GPU clock of 1 GHz, by default those of the coefficients.
    """
    size, unit = BYTES[device.precision], getattr(by, device.unit)
    depthwise, copy = layers.kind == "depthwise", layers.kind == "copy"
    inner = layers.kernel * _padded(layers.inputs / layers.groups, device)
    outputs = layers.groups * _padded(layers.outputs / layers.groups, device) * layers.positions * batch
    operations = 2 * inner * (outputs + by.wave * device.multiprocessors)
    arithmetic = (1 - depthwise) * operations / (device.peak * unit)
    # Other formats than float32 need kernels that convert the inputs and outputs of a plugin.
    converted = layers.plugin * (size < 4)
    moved = batch * (size + layers.plugin * (4 - size) + converted * (4 + size))
    written = _activation_seconds(layers.written * moved, device, by)
    weights = layers.weights * size / (device.bandwidth * by.bandwidth)
    memory = _activation_seconds(layers.read * moved, device, by) + written + weights
    launch = (by.launch_us if launch_us is None else launch_us) * 1e-6 / device.clock_ghz
    activation = layers.silu * (1 - device.fuses_silu) * (2 * written + launch)
    kernel = larger(arithmetic, memory) + (1 + 2 * converted) * launch
    return kernel * (1 + copy * (by.copy - 1)) + activation


def _activation_seconds(moved: Any, device: Any, by: Coefficients) -> Any:
    """Return the seconds to move the bytes of one tensor, in part through the L2 cache."""
    kept = 1 / (1 + (moved / (by.cache * device.cache)) ** 2)
    return moved * ((1 - kept) / (device.bandwidth * by.bandwidth) + kept / device.cache_bandwidth)


def _padded(channels: Any, device: Any) -> Any:
    """Return the channels with padding; up to 4, as of images, are padded to 4 only: they have their own kernels."""
    multiple = 4 + (MULTIPLE[device.precision] - 4) * (channels > 4)
    return -(-channels // multiple) * multiple


@cache
def shipped() -> LatencyModel:
    """Return the model that is shipped with this version."""
    content = json.loads((resources.files("edgekd.hardware.predict") / COEFFICIENTS).read_text("utf-8"))
    return from_plain(LatencyModel, content, COEFFICIENTS)


class Predictor:
    """Predicts latency and energy on the GPU of one target in one precision.

    scale: factor from predictions to measurements of the user's own device, None without any; cuda_graph: kernels are
    launched by a CUDA graph, not one by one. Raises SpecError if the target lacks the precision or one of the figures.
    """

    def __init__(
        self,
        target: Target,
        precision: PredictedPrecision,
        model: LatencyModel | None = None,
        scale: float | None = None,
        *,
        cuda_graph: bool = False,
    ) -> None:
        self.target = target
        self.device = gpu_figures(target, precision)
        self.model = model or shipped()
        self.scale = scale
        self.correction = self.model.corrections.get(target.name, {}).get(precision)
        by = self.model.coefficients
        self._launch_us = by.graph_us if cuda_graph else by.launch_us
        self._factor = (scale or 1.0) * (self.correction or 1.0)

    def layer_us(self, work: Work, batch: int = 1) -> float:
        """Return the microseconds of one layer for a batch of frames."""
        predicted = seconds(work, self.device, self.model.coefficients, batch, self._launch_us)
        return float(predicted) * 1e6 * self._factor

    def predict(
        self, works: Sequence[Work], measured_us: Mapping[Work, float] | None = None, batch: int = 1
    ) -> NetworkPrediction:
        """Predict a network.

        Args:
            works: Its layers.
            measured_us: Measured microseconds of layers for one frame, by their work without a name.
            batch: Frames at once; above 1, `measured_us` is ignored.
        """
        known = measured_us if measured_us and batch == 1 else {}
        layers = tuple(
            LayerTime(work.name, work.kind, known.get(replace(work, name="")) or self.layer_us(work, batch))
            for work in works
        )
        latency = sum(layer.us for layer in layers) / 1e3
        doubts = tuple(self.doubts(works))
        margin = self._margin(bool(doubts))
        operations = 2 * multiply_adds(works) * batch
        energy = self.model.energy.millijoules(self.target, self.device, operations, latency)
        energy = energy and energy / batch
        energy_margin = self.model.energy.margin * max(margin / self.model.calibration.margin, 1.0)
        return NetworkPrediction(
            latency_ms=latency,
            low_ms=latency / margin,
            high_ms=latency * margin,
            fps=batch * 1e3 / latency,
            energy_mj=energy,
            low_mj=energy and energy / energy_margin,
            high_mj=energy and energy * energy_margin,
            doubts=doubts,
            layers=layers,
        )

    def doubts(self, works: Sequence[Work]) -> list[str]:
        """Return reasons for a wider interval."""
        least, most = self.model.calibration.multiply_adds
        doubts = list(self._device_doubts()) if self.scale is None and self.correction is None else []
        if not least <= (count := multiply_adds(works)) <= most:
            sizes = f"{least / 1e9:.1f} to {most / 1e9:.1f}"
            doubts.append(f"{count / 1e9:.2f} billion multiply-adds; networks of {sizes} were measured")
        return doubts

    def _device_doubts(self) -> Iterator[str]:
        """Yield reasons for a wider interval for a device that was not measured."""
        seen, precision = self.model.calibration.seen, self.device.precision
        if not any(sm == self.device.sm for sm, _ in seen):
            yield f"no device of compute capability {self.device.sm:g} was among the measurements"
        elif (self.device.sm, precision) not in seen:
            yield f"{precision} was not measured on compute capability {self.device.sm:g}"
        used = figures(self.target, precision).items()
        if unverified := [name for name, each in used if each and each.source.startswith("unverified")]:
            yield "unverified figures of the target: " + ", ".join(unverified)

    def _margin(self, doubtful: bool) -> float:
        limits = self.model.calibration
        if doubtful:
            return limits.wide_margin
        if self.scale is not None:
            return limits.scaled_margin
        return limits.margin if self.correction is None else limits.measured_margin


def predict_dla(
    works: Sequence[Work], target: Target, batch: int = 1, *, sparse: bool = False, model: LatencyModel | None = None
) -> NetworkPrediction:
    """Predict a network on one core of a target's DLA, in INT8. Raises SpecError as `dla_figures` does."""
    by = (model or shipped()).dla
    device = dla_figures(target, sparse=sparse)
    layers = tuple(
        LayerTime(work.name, work.kind, float(dla_seconds(work, device, by, batch, sparse=sparse)) * 1e6)
        for work in works
    )
    latency = sum(layer.us for layer in layers) / 1e3
    return NetworkPrediction(
        latency_ms=latency,
        low_ms=latency / by.margin,
        high_ms=latency * by.margin,
        fps=batch * 1e3 / latency,
        energy_mj=None,
        low_mj=None,
        high_mj=None,
        doubts=tuple(_dla_doubts(target)),
        layers=layers,
    )


def _dla_doubts(target: Target) -> Iterator[str]:
    yield "every layer is taken to run on the DLA: `edgekd check --dla` lists those that do not"
    if target.dla and target.dla.version.value != MEASURED_GENERATION:
        yield f"no DLA of generation {target.dla.version.value} was measured by itself"


def transfer_ms(numbers: int, target: Target, batch: int = 1, model: LatencyModel | None = None) -> float | None:
    """Return the milliseconds to copy float32 values of a batch between host and GPU; None for unknown bandwidth."""
    if target.memory.bandwidth_gbs is None:
        return None
    share = (model or shipped()).coefficients.transfer
    return 4 * numbers * batch / (target.memory.bandwidth_gbs.value * 1e9 * share) * 1e3


def narrowest(target: Target, but: str | None = None) -> Predictor | None:
    """Return a predictor in the narrowest precision, except `but`, that a target has figures for; None without any."""
    for precision in reversed(PRECISIONS):
        try:
            if precision != but:
                return Predictor(target, precision)  # type: ignore[arg-type]
        except SpecError:
            continue
    return None


def scale_from(ratios: Sequence[float]) -> float:
    """Return the median ratio of measured to predicted times; of an even number, the middle two's geometric mean."""
    ordered = sorted(ratios)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return exp((log(low) + log(high)) / 2)
