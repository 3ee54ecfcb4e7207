"""Latency of layers on one core of a Jetson's DLA, in INT8, with dense weights or with 2:4 sparsity.

The same roofline model as for the GPU: the time of a layer is the larger of its arithmetic time and its memory time,
plus a fixed time to start. The coefficients are fitted to NVIDIA's own throughputs of both cores of an AGX Orin, in
four power modes; `bench/predictor.py` compares predictions with NVIDIA's throughputs of Xaviers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekd.core.errors import SpecError
from edgekd.hardware.predict.device import larger
from edgekd.hardware.target import Target

SPARSE_WEIGHTS = 5 / 8
"""Bytes of INT8 weights with 2:4 sparsity relative to dense ones: two of four values, each with a 2-bit index."""
SPARSE_FROM = 2
"""First generation of the DLA with 2:4 sparsity: NVIDIA Jetson AGX Orin technical brief."""
MEASURED_GENERATION = 2
"""Generation of the DLA whose measurements the coefficients are fitted to."""


@dataclass(frozen=True)
class DlaCoefficients:
    """Fitted coefficients.

    share: share of the peak that large layers reach; bandwidth: share of the memory bandwidth; layer_us: microseconds
    to start a layer; silu_ns: nanoseconds of SiLU per value; sparse: arithmetic time with 2:4 sparsity relative to
    dense weights; margin: nine of ten measurements are between prediction / margin and prediction * margin.
    """

    share: float
    bandwidth: float
    layer_us: float
    silu_ns: float
    sparse: float
    margin: float


@dataclass(frozen=True)
class DlaFigures:
    """Figures of one core. peak: dense INT8 operations per second; bandwidth: of the memory, bytes per second."""

    peak: float
    bandwidth: float
    precision: ClassVar[Literal["int8"]] = "int8"


def dla_figures(target: Target, *, sparse: bool = False) -> DlaFigures:
    """Return the figures of one core. Raises SpecError without a DLA, its figures, or `sparse` support."""
    dla, bandwidth = target.dla, target.memory.bandwidth_gbs
    if dla is None or dla.int8_tops is None or bandwidth is None:
        raise SpecError(
            f"{target.title} has no DLA that can be predicted",
            expected="a target with the figures dla.count, dla.int8_tops, memory.bandwidth_gbs",
            fix="leave out --dla",
        )
    if sparse and dla.version.value < SPARSE_FROM:
        expected, found = f"generation {SPARSE_FROM} or newer", str(dla.version.value)
        raise SpecError(f"the DLA of {target.title} has no 2:4 sparsity", expected=expected, found=found)
    return DlaFigures(peak=dla.int8_tops.value / dla.count.value * 1e12, bandwidth=bandwidth.value * 1e9)


def dla_seconds(layers: Any, device: DlaFigures, by: DlaCoefficients, batch: int = 1, *, sparse: bool = False) -> Any:
    """Return the seconds of a layer for a batch of frames, or of many layers.

    layers: a `Work`; or many, as arrays under the same names. Plugins do not run on the DLA: 0 s.
    """
    operations = 2 * layers.kernel * layers.inputs * layers.outputs / layers.groups * layers.positions * batch
    arithmetic = operations / (device.peak * by.share) * (by.sparse if sparse else 1)
    weights = layers.weights * (SPARSE_WEIGHTS if sparse else 1)
    memory = ((layers.read + layers.written) * batch + weights) / (device.bandwidth * by.bandwidth)
    activation = layers.silu * layers.written * batch * by.silu_ns * 1e-9
    return (1 - layers.plugin) * (larger(arithmetic, memory) + activation + by.layer_us * 1e-6)
