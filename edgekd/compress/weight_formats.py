"""Storage formats of weights."""

from __future__ import annotations

from typing import Literal, get_args

WeightFormat = Literal["float16", "int8", "coded", "fp4x", "nvfp4"]
"""Storage format of the weights of a layer, a convolution or a matrix product. The layer computes in INT8 with `int8`,
`coded` and `fp4x`, in floating point with the others; `nvfp4` is for matrix products only."""

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
