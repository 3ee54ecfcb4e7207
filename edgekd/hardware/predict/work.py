"""What a layer makes a device do: arithmetic, and numbers that pass between memory and the device.

Everything is counted for one frame, in numbers rather than bytes: what they cost depends on device and precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["conv", "depthwise", "gemm", "memory", "copy"]
KINDS: tuple[str, ...] = get_args(Kind)
"""`memory` reads, does little, and writes, like a pooling; `copy` only moves, like a concatenation."""


@dataclass(frozen=True)
class Work:
    """One kernel's work, for one frame.

    positions: places of the output, height * width, or rows of a product. inputs, outputs: channels, or columns.
    kernel: weights for each pair of channels. groups: parts into which the channels fall, each on its own; the heads of
    attention. weights: numbers that stay the same from frame to frame. read, written: numbers of the frame. plugin: a
    kernel that takes and gives float32, whatever is around it.
    """

    name: str
    kind: Kind
    positions: int = 0
    inputs: int = 0
    outputs: int = 0
    kernel: int = 1
    groups: int = 1
    weights: int = 0
    read: int = 0
    written: int = 0
    plugin: bool = False

    @property
    def multiply_adds(self) -> int:
        """Of one frame."""
        return self.positions * self.kernel * self.inputs * self.outputs // self.groups


def convolution(
    name: str, inputs: int, outputs: int, positions: int, kernel: int, *, stride: int = 1, depthwise: bool = False
) -> Work:
    """The work of a convolution with its activation. stride: along each side, and nothing beside it is read."""
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
    """Of one frame, over all layers."""
    return sum(work.multiply_adds for work in works)
