"""Sizes of fp4x: its blocks, and the bytes of a tensor. docs/reference/formats/fp4x.md describes the bytes.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from math import prod

BLOCK = 16
"""Weights of a block, which share a multiplier."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return channels, and weights of a channel. Raises ValueError for a scalar."""
    if not shape:
        raise ValueError("expected a tensor with channels, found a scalar")
    return shape[0], prod(shape[1:])


def block_count(depth: int) -> int:
    """Return the blocks of a channel with so many weights."""
    return -(-depth // BLOCK)


def packed_bytes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the bytes of the weights and of the multipliers of a tensor."""
    channels, depth = matrix_shape(shape)
    return (channels * depth + 1) // 2, (channels * block_count(depth) + 1) // 2
