"""Latency of layers on one core of a Jetson's DLA, in INT8, with dense weights or with 2:4 sparsity.

The same roofline as on the GPU: a layer takes as long as its arithmetic or its memory traffic, the longer of the two,
and a fixed time to start. The coefficients are fitted to NVIDIA's own throughputs of both cores of an AGX Orin,
in four power modes; `bench/predictor.py` compares them with those of Xaviers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekd.core.errors import SpecError
from edgekd.hardware.predict.device import larger
from edgekd.hardware.target import Target

SPARSE_WEIGHTS = 5 / 8
"""Bytes of INT8 weights with 2:4 sparsity by those of dense ones: two of four values, two bits for their places."""
SPARSE_FROM = 2
"""Generation of the DLA: NVIDIA Jetson AGX Orin technical brief."""
MEASURED_GENERATION = 2
"""Generation of the DLA whose measurements the coefficients are fitted to."""


@dataclass(frozen=True)
class DlaCoefficients:
    """Fitted coefficients.

    share: Of the peak that large layers reach; bandwidth: of that of the memory. layer_us: To start a layer. silu_ns:
    For each number that passes through SiLU. sparse: Time of arithmetic with 2:4 sparsity by that with dense weights.
    margin: The prediction divided and multiplied by it holds nine of ten measurements.
    """

    share: float
    bandwidth: float
    layer_us: float
    silu_ns: float
    sparse: float
    margin: float


@dataclass(frozen=True)
class DlaFigures:
    """One core. peak: Dense operations per second in INT8; bandwidth: bytes per second of the memory."""

    peak: float
    bandwidth: float
    precision: ClassVar[Literal["int8"]] = "int8"


def dla_figures(target: Target, *, sparse: bool = False) -> DlaFigures:
    """Return the figures of one core. Raises SpecError where there is no DLA, or none that skips zeros."""
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
    """Return the seconds of a layer, a `Work`, for a batch of frames; or of many, as arrays under the same names.

    Plugins are no layers of a DLA, and take no time of it.
    """
    operations = 2 * layers.kernel * layers.inputs * layers.outputs / layers.groups * layers.positions * batch
    arithmetic = operations / (device.peak * by.share) * (by.sparse if sparse else 1)
    weights = layers.weights * (SPARSE_WEIGHTS if sparse else 1)
    memory = ((layers.read + layers.written) * batch + weights) / (device.bandwidth * by.bandwidth)
    activation = layers.silu * layers.written * batch * by.silu_ns * 1e-9
    return (1 - layers.plugin) * (larger(arithmetic, memory) + activation + by.layer_us * 1e-6)
