"""The work of a kernel for one frame: arithmetic, and values moved between memory and the device.

Values are counted instead of bytes, because their cost depends on device and precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

KernelKind = Literal["conv", "depthwise", "gemm", "memory", "copy"]
"""`memory`: limited by memory traffic, such as pooling; `copy`: moves values only, such as a concatenation."""


@dataclass(frozen=True)
class Work:
    """The work of one kernel for one frame.

    positions: height * width of the output, or rows of a matrix product; inputs, outputs: channels, or the rows and
    columns of the right matrix times `groups`; kernel: height * width of the kernel; groups: groups of channels, or
    heads of attention; weights: number of constants; read, written: numbers of activations; plugin: a kernel that reads
    and writes float32 in any precision; silu: ends in x * sigmoid(x).
    """

    name: str
    kind: KernelKind
    positions: int = 0
    inputs: int = 0
    outputs: int = 0
    kernel: int = 1
    groups: int = 1
    weights: int = 0
    read: int = 0
    written: int = 0
    plugin: bool = False
    silu: bool = False

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one frame."""
        return self.positions * self.kernel * self.inputs * self.outputs // self.groups


def convolution(
    name: str, inputs: int, outputs: int, positions: int, kernel: int, *, stride: int = 1, depthwise: bool = False
) -> Work:
    """Return the work of a convolution with an activation that is fused. stride: Along each side."""
    groups = inputs if depthwise else 1
    return Work(
        name=name,
        kind="depthwise" if depthwise else "conv",
        positions=positions,
        inputs=inputs,
        outputs=outputs,
        kernel=kernel,
        groups=groups,
        weights=kernel * inputs * outputs // groups,
        read=inputs * positions * stride**2,
        written=outputs * positions,
    )


def multiply_adds(works: Iterable[Work]) -> int:
    """Return the multiply-adds of one frame, over all layers."""
    return sum(work.multiply_adds for work in works)
