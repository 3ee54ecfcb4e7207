"""ONNX graphs in memory, copied and run on the CPU, for calibration, sensitivity and reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from edgekd.core.cores import usable_cores

T = TypeVar("T")


def parts_within(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield lists of consecutive items whose total size is at most `limit`; a larger item is yielded alone."""
    part: list[T] = []
    total = 0
    for item in items:
        if part and total + size(item) > limit:
            yield part
            part, total = [], 0
        part.append(item)
        total += size(item)
    if part:
        yield part


def copied(model: Any) -> Any:
    """Return a copy of a ModelProto."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def cpu_options() -> Any:
    """Return options of ONNX Runtime sessions: log only errors, one thread for each core that this process may use.

    By default ONNX Runtime binds a thread to each core of the machine, ignoring affinity and container limits.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = usable_cores()
    return options


def cpu_session(model: Any, *, spinning: bool = True) -> Any:
    """Return an ONNX Runtime session on a ModelProto, or on the path or the content of a file.

    spinning: its threads busy-wait for work, which slows down other processes.
    """
    import onnxruntime

    options = cpu_options()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    content = model if isinstance(model, (str, bytes)) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def part_session(
    model: Any,
    nodes: Sequence[Any],
    constants: Iterable[Any],
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    spinning: bool = True,
) -> Any:
    """Return an ONNX Runtime session that runs some nodes of a ModelProto.

    constants: the initializers (TensorProto) that they read; inputs: a sample of each input tensor, by name.
    """
    from onnx import ValueInfoProto, helper

    element = helper.np_dtype_to_tensor_dtype
    fed = [helper.make_tensor_value_info(name, element(x.dtype), x.shape) for name, x in inputs.items()]
    graph = helper.make_graph(nodes, "part", fed, [ValueInfoProto(name=name) for name in outputs], list(constants))
    versions = {"opset_imports": model.opset_import, "ir_version": model.ir_version}
    return cpu_session(helper.make_model(graph, **versions), spinning=spinning)
