"""How long a layer and a network take on a GPU: a roofline with what small and awkward layers lose.

A kernel takes as long as its arithmetic, its memory traffic and its launch together. Arithmetic: channels are padded to
what tensor cores take at once, and beside the work that fills the GPU there is one more wave of tiles, in which the
last multiprocessor finishes; so small layers do not fill a large GPU. The few coefficients are fitted to published
measurements by `bench/predictor.py`, which also says how far predictions are off on devices it has not seen. More
channels are never predicted to be faster.

Source of the roofline: Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from math import exp, log
from typing import Any

from edgekd.core.errors import SpecError
from edgekd.hardware.predict.device import BYTES, MULTIPLE, PRECISIONS, Device, Precision, device_of, figures
from edgekd.hardware.predict.energy import EnergyModel
from edgekd.hardware.predict.work import Work, multiply_adds
from edgekd.hardware.target import Target

COEFFICIENTS = "coefficients.json"


@dataclass(frozen=True)
class Coefficients:
    """What the measurements say that data sheets do not.

    launch_us: between two kernels on a Jetson whose GPU runs at 1 GHz, and server_launch_us on a card in a server; it
    goes with the clock. wave: outputs that a multiprocessor works on at once. bandwidth, and the units by their name:
    the share of the peak that large layers reach. depthwise: bytes that a depthwise convolution costs for each that it
    moves; copy: the same, in time, for copies.
    """

    launch_us: float
    server_launch_us: float
    wave: float
    bandwidth: float
    cuda_fp32: float
    cuda_fp16: float
    tensor_fp32: float
    tensor_fp16: float
    tensor_int8: float
    depthwise: float
    copy: float


@dataclass(frozen=True)
class Calibration:
    """How far to trust the coefficients.

    The 90 % interval is the prediction divided and multiplied by a margin. measured_margin: for targets that were
    measured in that precision; margin: for others, of a compute capability that was; wide_margin: for any other;
    scaled_margin: where there are measurements of the device itself. seen: compute capability and precision of what was
    measured. multiply_adds: of the smallest and the largest network that was.
    """

    measured_margin: float
    margin: float
    wide_margin: float
    scaled_margin: float
    seen: tuple[tuple[float, str], ...]
    multiply_adds: tuple[int, int]


@dataclass(frozen=True)
class Model:
    """Everything that `bench/predictor.py` has fitted.

    corrections: how much longer than the coefficients say targets take that were measured, by name and precision.
    """

    coefficients: Coefficients
    corrections: Mapping[str, Mapping[str, float]]
    calibration: Calibration
    energy: EnergyModel


@dataclass(frozen=True)
class LayerTime:
    """A layer and its microseconds."""

    name: str
    kind: str
    us: float


@dataclass(frozen=True)
class Prediction:
    """A network on a device that was not there: never a measurement.

    low_ms, high_ms: where nine of ten measurements should lie. energy_mj: of a frame, of the whole kit, with low_mj and
    high_mj; None where nothing like it was measured. doubts: why it should not be trusted, if so. layers: in order.
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


def seconds(layers: Any, device: Device, by: Coefficients, batch: int = 1) -> Any:
    """The time of a layer, a `Work`, for so many frames at once; or of many, as arrays under the same names."""
    size, unit = BYTES[device.precision], getattr(by, device.unit)
    depthwise, copy = layers.kind == "depthwise", layers.kind == "copy"
    inner = layers.kernel * _padded(layers.inputs / layers.groups, device)
    outputs = layers.groups * _padded(layers.outputs / layers.groups, device) * layers.positions * batch
    operations = 2 * inner * (outputs + by.wave * device.multiprocessors)
    arithmetic = (1 - depthwise) * operations / (device.peak * unit)
    # What is not float32 goes into and comes out of a plugin through kernels that convert it.
    converted = layers.plugin * (size < 4)
    moved = size + layers.plugin * (4 - size) + converted * (4 + size)
    factor = 1 + depthwise * (by.depthwise - 1)
    traffic = (layers.read + layers.written) * batch * moved * factor + layers.weights * size
    memory = traffic / (device.bandwidth * by.bandwidth)
    launch = (1 + 2 * converted) * (by.server_launch_us if device.server else by.launch_us) * 1e-6 / device.clock_ghz
    return arithmetic + (memory + launch) * (1 + copy * (by.copy - 1))


def _padded(channels: Any, device: Device) -> Any:
    """Channels as the device computes them; up to 4, as of images, have kernels of their own."""
    multiple = 4 + (MULTIPLE[device.precision] - 4) * (channels > 4)
    return -(-channels // multiple) * multiple


@cache
def shipped() -> Model:
    """What was fitted when this version was made."""
    return model_from_json(json.loads((resources.files("edgekd.hardware.predict") / COEFFICIENTS).read_text("utf-8")))


def model_from_json(found: Mapping[str, Any]) -> Model:
    """The model in `coefficients.json`."""
    limits = dict(found["calibration"])
    limits["seen"] = tuple((float(sm), str(precision)) for sm, precision in limits["seen"])
    limits["multiply_adds"] = tuple(limits["multiply_adds"])
    names = [entry.name for entry in fields(Coefficients)]
    coefficients = Coefficients(**{name: found["coefficients"][name] for name in names})
    energy = EnergyModel(**found["energy"] | {"seen": tuple(found["energy"]["seen"])})
    return Model(coefficients, found["corrections"], Calibration(**limits), energy)


class Predictor:
    """Predicts for one target in one precision.

    scale: what predictions must be multiplied by, so that they agree with measurements of the user's own device; None
    without any. Raises SpecError where the target has not that precision, or not the figures that are needed.
    """

    def __init__(
        self, target: Target, precision: Precision, model: Model | None = None, scale: float | None = None
    ) -> None:
        self.target = target
        self.device = device_of(target, precision)
        self.model = model or shipped()
        self.scale = scale
        self.correction = self.model.corrections.get(target.name, {}).get(precision)
        self._factor = (scale or 1.0) * (self.correction or 1.0)

    def layer_us(self, work: Work, batch: int = 1) -> float:
        """Microseconds of one layer."""
        return float(seconds(work, self.device, self.model.coefficients, batch)) * 1e6 * self._factor

    def predict(self, works: Sequence[Work], measured_us: Mapping[Work, float] | None = None) -> Prediction:
        """A network, frame by frame. measured_us: of layers that were timed there, by their work without a name."""
        known = measured_us or {}
        layers = tuple(
            LayerTime(work.name, work.kind, known.get(replace(work, name="")) or self.layer_us(work)) for work in works
        )
        latency = sum(layer.us for layer in layers) / 1e3
        doubts = tuple(self.doubts(works))
        margin = self._margin(bool(doubts))
        energy = self.model.energy.millijoules(self.target, self.device, 2 * multiply_adds(works), latency)
        energy_margin = self.model.energy.margin * max(margin / self.model.calibration.margin, 1.0)
        return Prediction(
            latency_ms=latency,
            low_ms=latency / margin,
            high_ms=latency * margin,
            fps=1e3 / latency,
            energy_mj=energy,
            low_mj=energy and energy / energy_margin,
            high_mj=energy and energy * energy_margin,
            doubts=doubts,
            layers=layers,
        )

    def doubts(self, works: Sequence[Work]) -> list[str]:
        """Why a prediction should not be trusted as far as usual."""
        least, most = self.model.calibration.multiply_adds
        found = list(self._device_doubts()) if self.scale is None and self.correction is None else []
        if not least <= (count := multiply_adds(works)) <= most:
            sizes = f"{least / 1e9:.1f} to {most / 1e9:.1f}"
            found.append(f"{count / 1e9:.2f} billion multiply-adds; networks of {sizes} were measured")
        return found

    def _device_doubts(self) -> Iterator[str]:
        """Of a device that was not measured itself."""
        seen, precision = self.model.calibration.seen, self.device.precision
        if not any(sm == self.device.sm for sm, _ in seen):
            yield f"no device of compute capability {self.device.sm:g} was among the measurements"
        elif (self.device.sm, precision) not in seen:
            yield f"{precision} was not measured on compute capability {self.device.sm:g}"
        unread = [name for name, each in figures(self.target, precision).items() if each and _recalled(each.source)]
        if unread:
            yield "figures of the target that nobody has verified: " + ", ".join(unread)

    def _margin(self, doubtful: bool) -> float:
        limits = self.model.calibration
        if doubtful:
            return limits.wide_margin
        if self.scale is not None:
            return limits.scaled_margin
        return limits.margin if self.correction is None else limits.measured_margin


def narrowest(target: Target, but: str | None = None) -> Predictor | None:
    """A target's predictor in the narrowest precision, but for that one, that it has figures for; None without any."""
    for precision in reversed(PRECISIONS):
        try:
            if precision != but:
                return Predictor(target, precision)  # type: ignore[arg-type]
        except SpecError:
            continue
    return None


def _recalled(source: str) -> bool:
    """Whether a figure is neither read anywhere nor computed from what was."""
    return source.startswith("unverified")


def scale_from(ratios: Sequence[float]) -> float:
    """The median of measured by predicted times, in the middle of two on a logarithmic scale."""
    ordered = sorted(ratios)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return exp((log(low) + log(high)) / 2)
