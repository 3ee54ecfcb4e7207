"""The work of a kernel: arithmetic, and numbers that pass between memory and the device, for one frame.

Counts are of numbers rather than bytes: their cost depends on device and precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

KernelKind = Literal["conv", "depthwise", "gemm", "memory", "copy"]
"""`memory` reads, does little, and writes, like a pooling; `copy` only moves, like a concatenation."""


@dataclass(frozen=True)
class Work:
    """The work of one kernel for one frame.

    positions: Height * width of the output, or rows of a product. inputs, outputs: Channels, or columns. kernel:
    Weights for each pair of channels. groups: Of channels; the heads of attention. weights: Constant numbers. read,
    written: Activations. plugin: A kernel that reads and writes float32 in any precision. silu: Ends in x * sigmoid(x).
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
