"""Table of the generations of TensorRT's interface; `generation` chooses a row by version.

Names are those of the Python bindings, from their sources at the tags 8.2.1 to v11.1 of NVIDIA/TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np


class Port(NamedTuple):
    """An input or output of an engine: kind is one of TensorRT's data types."""

    name: str
    is_input: bool
    shape: tuple[int, ...]
    kind: Any


@dataclass(frozen=True)
class Access:
    """Access to the inputs and outputs of an engine.

    ports(trt, engine) lists them; largest(engine, name) is the largest shape of an input with a dynamic side;
    set_shape(context, engine, name, shape) sets that of the next runs, and returns its success; enqueue(context, ports,
    addresses, stream) starts a run, and returns its success.
    """

    ports: Callable[[Any, Any], Sequence[Port]]
    largest: Callable[[Any, str], Sequence[int]]
    set_shape: Callable[[Any, Any, str, Sequence[int]], bool]
    enqueue: Callable[[Any, Sequence[Port], Sequence[int], int], bool]


@dataclass(frozen=True)
class Generation:
    """One generation of the interface.

    first: its first version; network_flags: names of NetworkDefinitionCreationFlag for new networks;
    limit_workspace(trt, config, bytes); precision_flags: of BuilderFlag, for a float graph and for one with Q/DQ, empty
    where the graph alone decides; levels: whether there are optimization levels; constraint: flag that keeps the
    precision of layers, empty where there is none;
    int8_constants: whether weights are passed as INT8 constants behind a DequantizeLinear. TensorRT 8 has refused them,
    "invalid weights type of Int8" (NVIDIA/TensorRT issue 2163), and in one report taken them (issue 3385, 8.5.2); FP32
    constants behind Q/DQ are the form of its guide.
    """

    first: tuple[int, int]
    network_flags: tuple[str, ...]
    limit_workspace: Callable[[Any, Any, int], None]
    precision_flags: Mapping[bool, tuple[str, ...]]
    levels: bool
    constraint: str
    access: Access
    int8_constants: bool = True

    @property
    def strongly_typed(self) -> bool:
        """Return whether types come from the graph alone, so that a calibration cache has no effect."""
        return not self.precision_flags[True]


def _size_of_workspace(trt: Any, config: Any, count: int) -> None:
    config.max_workspace_size = count


def _pool_of_workspace(trt: Any, config: Any, count: int) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, count)


def _bindings(trt: Any, engine: Any) -> list[Port]:
    return [
        Port(
            engine.get_binding_name(index),
            bool(engine.binding_is_input(index)),
            tuple(engine.get_binding_shape(index)),
            engine.get_binding_dtype(index),
        )
        for index in range(engine.num_bindings)
    ]


def _tensors(trt: Any, engine: Any) -> list[Port]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [
        Port(
            name,
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            tuple(engine.get_tensor_shape(name)),
            engine.get_tensor_dtype(name),
        )
        for name in names
    ]


def _largest_of_binding(engine: Any, name: str) -> Sequence[int]:
    return tuple(engine.get_profile_shape(0, name)[2])


def _largest_of_tensor(engine: Any, name: str) -> Sequence[int]:
    return tuple(engine.get_tensor_profile_shape(name, 0)[2])


def _set_binding_shape(context: Any, engine: Any, name: str, shape: Sequence[int]) -> bool:
    return bool(context.set_binding_shape(engine.get_binding_index(name), tuple(shape)))


def _set_tensor_shape(context: Any, engine: Any, name: str, shape: Sequence[int]) -> bool:
    return bool(context.set_input_shape(name, tuple(shape)))


def _enqueue_bindings(context: Any, ports: Sequence[Port], addresses: Sequence[int], stream: int) -> bool:
    return bool(context.execute_async_v2(list(addresses), stream))


def _enqueue_tensors(context: Any, ports: Sequence[Port], addresses: Sequence[int], stream: int) -> bool:
    bound = [context.set_tensor_address(port.name, address) for port, address in zip(ports, addresses)]  # noqa: B905
    return all(bound) and bool(context.execute_async_v3(stream))


_FLAGS = {False: ("FP16",), True: ("FP16", "INT8")}
_NONE: dict[bool, tuple[str, ...]] = {False: (), True: ()}
_BATCH = ("EXPLICIT_BATCH",)
_BY_INDEX = Access(_bindings, _largest_of_binding, _set_binding_shape, _enqueue_bindings)
_BY_NAME = Access(_tensors, _largest_of_tensor, _set_tensor_shape, _enqueue_tensors)
_PREFER = "PREFER_PRECISION_CONSTRAINTS"

GENERATIONS = (
    Generation((8, 2), _BATCH, _size_of_workspace, _FLAGS, False, _PREFER, _BY_INDEX, int8_constants=False),
    Generation((8, 4), _BATCH, _pool_of_workspace, _FLAGS, False, _PREFER, _BY_INDEX, int8_constants=False),
    Generation((8, 6), _BATCH, _pool_of_workspace, _FLAGS, True, _PREFER, _BY_INDEX, int8_constants=False),
    Generation((10, 0), (), _pool_of_workspace, _FLAGS, True, _PREFER, _BY_NAME),
    Generation((11, 0), (), _pool_of_workspace, _NONE, True, "", _BY_NAME),
)
"""Oldest first."""


def generation(version: str) -> Generation:
    """Return the generation of a version such as `8.5.2.2`. Raises DeviceError where it is older than all."""
    rows = [each for each in GENERATIONS if each.first <= numbers(version)]
    if not rows:
        raise DeviceError(
            f"TensorRT {version} is too old",
            expected="8.2 or newer",
            found=version,
            fix="update JetPack, or use the firmware's own way",
        )
    return rows[-1]


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers: `8.5.2-1+cuda11.4` is 8, 5, 2."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def numpy_kind(trt: Any, kind: Any) -> type[np.generic] | None:
    """Return NumPy's type for one of TensorRT's floating-point types, or for bytes; None for others.

    TensorRT's own `nptype` breaks with newer versions of NumPy.
    """
    import numpy as np

    known: dict[Any, type[np.generic]] = {trt.DataType.FLOAT: np.float32, trt.DataType.HALF: np.float16}
    if hasattr(trt.DataType, "UINT8"):  # since 8.5
        known[trt.DataType.UINT8] = np.uint8
    return known.get(kind)
