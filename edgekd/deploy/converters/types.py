"""Types of conversions: source, request, result, and format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekd.core.detection.types import DetectorSpec
from edgekd.graph.runtimes.types import HostRuntime

if TYPE_CHECKING:
    import numpy as np

FormatName = Literal["onnx", "openvino", "ncnn", "tensorrt-rtx", "deepstream"]
Precision = Literal["as-is", "fp16", "fp32"]
"""as-is: that of the source; fp16: float16 for all layers but INT8 ones; fp32: float32 for all layers, without INT8."""
PRECISIONS: tuple[Precision, ...] = ("as-is", "fp16", "fp32")


@dataclass(frozen=True)
class QuantizedLayer:
    """An INT8 layer: name of its node, operator, and quantized weights.

    codes: int8, as stored in the graph; scales: float32, one, or one per output channel (axis 0 of `codes`);
    input_scale: of its input. Zero points are 0.
    """

    name: str
    operator: str
    codes: np.ndarray
    scales: np.ndarray
    input_scale: float


@dataclass(frozen=True)
class Source:
    """A detector as an ONNX graph with its contract, ready for conversion.

    layers: INT8 layers, as Q/DQ in the graph; scales: INT8 scales of activations by tensor name, of a source with a
    calibration cache.
    """

    graph: Path
    spec: DetectorSpec
    layers: tuple[QuantizedLayer, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ConversionRequest:
    """Options of a conversion.

    opset: of an ONNX file; compute_capabilities: GPUs of an engine, such as SM86; tensorrt: version on the device that
    the result is for, if known.
    """

    precision: Precision = "as-is"
    opset: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    tensorrt: str | None = None


@dataclass(frozen=True)
class CacheCounts:
    """Numbers of scales in a calibration cache.

    Args:
        activations: Number of floating-point tensors of the network that depend on the frame.
        float_tensors: Number of those that must stay in floating point, such as decoded boxes.
        missing: Number of those that lack a scale; TensorRT computes the layers around them in FP16.
    """

    activations: int
    float_tensors: int
    missing: int


@dataclass(frozen=True)
class ConversionResult:
    """Files that a conversion wrote into its folder.

    entry: name of the file that a runtime opens; carried: number of the source's INT8 layers that are in INT8;
    opset: of an ONNX file; notes: sentences for the user; cache: of the calibration cache, if there is one.
    """

    entry: str
    carried: int = 0
    opset: int | None = None
    notes: tuple[str, ...] = ()
    cache: CacheCounts | None = None


def _no_requirements() -> None:
    """Require nothing: edgekd's own dependencies suffice."""


@dataclass(frozen=True)
class Format:
    """A format that detectors can be converted to.

    name: as on the command line; suffix: end of a result's name; single_file: a result is one file, which holds its
    contract, else a folder; runtime: runs results on this machine, None if there is none; libraries: packages that
    convert; convert: writes the source in this format into an empty folder, with the given stem of file names. Raises
    SpecError for what the format cannot hold, DeviceError if its converter fails; require: raises DeviceError, with
    the fix, unless the converter is installed.
    """

    name: FormatName
    suffix: str
    single_file: bool
    runtime: HostRuntime | None
    libraries: tuple[str, ...]
    convert: Callable[[Source, Path, str, ConversionRequest], ConversionResult]
    require: Callable[[], None] = _no_requirements
