"""Types of conversions: the source, the request, the result, and the protocol of a format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgekd.core.detection.types import DetectorSpec
from edgekd.graph.runtimes.types import Engine

if TYPE_CHECKING:
    import numpy as np

FormatName = Literal["onnx", "openvino", "ncnn", "tensorrt-rtx", "deepstream"]
Precision = Literal["as-is", "fp16", "fp32"]
"""Of what is converted: as the source has it; what is not INT8 in float16; all of it in float32, INT8 taken out."""
PRECISIONS: tuple[Precision, ...] = ("as-is", "fp16", "fp32")


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer that computes in INT8: the name of its node, its operator, and its numbers.

    codes: INT8, as the graph stores the weights; scales float32: one, or one for each output channel (axis 0 of
    `codes`); input_scale: of what it reads. Zero points are 0.
    """

    name: str
    operator: str
    codes: np.ndarray
    scales: np.ndarray
    input_scale: float


@dataclass(frozen=True)
class Source:
    """A detector as an ONNX graph with its contract, ready to be converted.

    layers: those that compute in INT8, which the graph holds as Q/DQ; scales: INT8 scales of its activations by tensor
    name, where the source brings a calibration cache.
    """

    graph: Path
    spec: DetectorSpec
    layers: tuple[QuantizedLayer, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """Request of a conversion: a precision; for ONNX an opset; for engines the GPUs, such as SM86.

    tensorrt: the version on the device that it is for, where one was named.
    """

    precision: Precision = "as-is"
    opset: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    tensorrt: str | None = None


@dataclass(frozen=True)
class CacheCounts:
    """The scales in a calibration cache.

    Args:
        activations: Number of floating-point tensors of the network that depend on the frame.
        float_tensors: Number of those that must stay in floating point, such as decoded boxes.
        missing: Number of those that should have a scale and have none; TensorRT computes the layers around them in
            FP16.
    """

    activations: int
    float_tensors: int
    missing: int


@dataclass(frozen=True)
class Made:
    """Files that a conversion wrote into its folder.

    entry: the name of the file that a runtime opens; carried: how many of the source's INT8 layers are in INT8;
    opset: of an ONNX file; notes: what a user should know of this result, in sentences; cache: of the calibration
    cache, if there is one.
    """

    entry: str
    carried: int = 0
    opset: int | None = None
    notes: tuple[str, ...] = ()
    cache: CacheCounts | None = None


class Format(Protocol):
    """A format that detectors can be converted to."""

    @property
    def name(self) -> FormatName:
        """Name that users write, such as `openvino`."""
        ...

    @property
    def suffix(self) -> str:
        """End of the name of a result; a file suffix where the result is one file."""
        ...

    @property
    def single_file(self) -> bool:
        """True if the result is one file, which holds its contract; else it is a folder."""
        ...

    @property
    def engine(self) -> Engine | None:
        """Runtime of this machine that runs the result; None if there is none."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """The packages that convert."""
        ...

    def require(self) -> None:
        """Raises DeviceError, with the command that helps, unless what converts is installed."""
        ...

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write the source in this format into an empty folder; `name` is for files that may be called so.

        Raises SpecError for what the format cannot hold, DeviceError where its converter fails.
        """
        ...
