"""The figures of a target that the predictor uses, for one precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgekd.core.errors import SpecError, did_you_mean
from edgekd.hardware.target import Figure, Target

PredictedPrecision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[PredictedPrecision, ...] = get_args(PredictedPrecision)
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of a value."""
MULTIPLE = {"fp32": 4, "fp16": 8, "int8": 16}
"""Multiple to which tensor cores pad channels: the TensorRT best practices on tensor cores (TF32, FP16, INT8)."""
TENSOR_CORES_FROM = {"fp32": 8.0, "fp16": 7.0, "int8": 7.2}
"""CUDA compute capability from which tensor cores compute in a precision; TF32 for float32."""


CACHE_BYTES_PER_CLOCK = 64
"""Bytes that a multiprocessor reads from the L2 cache per clock: NVIDIA's white papers on Volta and Ampere."""
FUSED_SILU_FROM = 8.0
"""CUDA compute capability from which TensorRT fuses SiLU, except in INT8. Inferred from published latencies of networks
with SiLU and with ReLU."""
MIB = 2**20


@dataclass(frozen=True)
class GpuFigures:
    """Figures of a GPU in one precision.

    sm: CUDA compute capability; peak: dense operations per second; bandwidth: of the memory, bytes per second; cache:
    bytes of the L2 cache; clock_ghz: clock of the GPU.
    """

    sm: float
    precision: PredictedPrecision
    peak: float
    bandwidth: float
    cache: float
    multiprocessors: int
    clock_ghz: float

    @property
    def cache_bandwidth(self) -> float:
        """Return the bytes per second between the L2 cache and all multiprocessors."""
        return CACHE_BYTES_PER_CLOCK * self.multiprocessors * self.clock_ghz * 1e9

    @property
    def fuses_silu(self) -> bool:
        """Return whether TensorRT computes x * sigmoid(x) in the kernel of the convolution before it."""
        return self.sm >= FUSED_SILU_FROM and self.precision != "int8"

    @property
    def unit(self) -> str:
        """Return the arithmetic unit and precision: `tensor_int8`, `cuda_fp16`."""
        core = "tensor" if self.sm >= TENSOR_CORES_FROM[self.precision] else "cuda"
        return f"{core}_{self.precision}"


def larger(first: Any, second: Any) -> Any:
    """Return the larger of two numbers, or the elementwise maximum of arrays."""
    return first * (first >= second) + second * (second > first)


def gpu_figures(target: Target, precision: str) -> GpuFigures:
    """Return the figures of a target. Raises SpecError where it lacks the precision or one of the figures."""
    require_precision(target, precision)
    needed = figures(target, precision)
    missing = [name for name, figure in needed.items() if figure is None]
    if missing:
        raise SpecError(
            f"{target.title} cannot be predicted in {precision}",
            expected="a target with the figures " + ", ".join(needed),
            found="none for " + ", ".join(missing),
            fix="measure on it with `edgekd bench`" if target.kind == "cpu" else "add them to the target's .toml",
        )
    sm, peak, bandwidth, cache, multiprocessors, clock = (figure.value for figure in needed.values() if figure)
    return GpuFigures(
        sm=sm,
        precision=precision,  # type: ignore[arg-type]
        peak=peak * 1e12,
        bandwidth=bandwidth * 1e9,
        cache=cache * MIB,
        multiprocessors=multiprocessors,
        clock_ghz=clock,
    )


def figures(target: Target, precision: str) -> dict[str, Figure[Any] | None]:
    """Return the figures that the predictor needs, by their keys in the target's file."""
    peak = {"fp32": "fp32_tflops", "fp16": "fp16_tflops", "int8": "int8_tops"}[precision]
    return {
        "sm": target.sm,
        f"peaks.{peak}": getattr(target.peaks, peak),
        "memory.bandwidth_gbs": target.memory.bandwidth_gbs,
        "memory.l2_mib": target.memory.l2_mib,
        "multiprocessors": target.multiprocessors,
        "clock_ghz": target.clock_ghz,
    }


def require_precision(target: Target, precision: str) -> None:
    """Raise SpecError unless the predictor and the target's convolutions support a precision."""
    if precision not in PRECISIONS:
        fix = did_you_mean(precision, PRECISIONS)
        raise SpecError(f"no predictions in {precision!r}", expected="one of " + ", ".join(PRECISIONS), fix=fix)
    able = target.precisions.conv.value
    if precision not in able:
        known = ", ".join(name for name in able if name in PRECISIONS)
        raise SpecError(f"{target.title} has no convolutions in {precision}", expected=f"one of {known}")
