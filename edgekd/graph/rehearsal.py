"""Rehearsal of an untrusted file: the later steps of libraries, run once in a child process with limits.

The shapes of an ONNX file are inferred; the graph is simplified, loaded by ONNX Runtime and run on one frame of zeros.
A graph with loops that depend on the frame may still take long on another frame. For a checkpoint, its family defines
the steps.

A file that has passed is recorded in a folder of this user, by its SHA-256 and the versions of the libraries, and is
not rehearsed again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from edgekd.core.canonical import file_sha256, json_sha256
from edgekd.core.errors import SpecError
from edgekd.core.input_files import regular_file, shown_path
from edgekd.core.limited_process import ProcessLimits, run_limited
from edgekd.core.private_files import private_file, private_folder
from edgekd.core.version import __version__
from edgekd.graph.model_file import MAX_BYTES, read_model
from edgekd.graph.nvfp4 import runnable
from edgekd.graph.session import cpu_session
from edgekd.graph.view import Graph, inputs_of, load_graph

MEMORY_BYTES = 2 << 30
"""Memory limit of a rehearsal, besides the memory of imported libraries: the part for any graph."""
MEMORY_PER_BYTE = 10
"""Additional bytes of memory per byte of the file: copies of the weights in parsing, simplifying and running."""
MEMORY_PER_VALUE = 1 << 11
"""Additional bytes of memory per input value, for activations: YOLO11x needs 0.4 KiB."""
CPU_SECONDS = 60
"""Limit of the processor time of a rehearsal: the part for any graph. YOLO11x takes 20 s."""
CPU_PER_MEGABYTE = 1
"""Additional seconds of processor time per megabyte of the file."""
CPU_PER_MEGAVALUE = 40
"""Additional seconds of processor time per million input values."""
MAX_VALUES = 3 << 26
"""Maximum number of input values: three channels of 8192 x 8192 pixels."""
_IMPORTS = "onnx,onnxruntime,onnxslim"
_TYPES = {1: "float32", 2: "uint8"}
"""TensorProto.DataType of the inputs that a rehearsal fills with zeros, and NumPy's names of them."""


def rehearse(path: Path, size: tuple[int, int] | None = None, *, weights: bool = True) -> None:
    """Raise SpecError for an ONNX file that needs too much memory or time, or crashes a library.

    size: height and width of a frame, for a file with a dynamic input; without it, such a graph is not run.
    weights: whether the graph will be run later; if not, only shapes are inferred.
    """
    regular_file(path, MAX_BYTES, SpecError)
    shape, kind = _frame(read_model(path, external=False), size)
    values = prod(shape or ())
    if values > MAX_VALUES:
        raise SpecError(f"{path}: input too large", expected=f"at most {MAX_VALUES} values", found=str(shape))
    rehearse_call("edgekd.graph.rehearsal:use", path, (shape, kind, weights), values, _IMPORTS)


def rehearse_call(function: str, path: Path, arguments: tuple[Any, ...], values: int, imports: str) -> None:
    """Call a function in a child process with limits, unless it has passed for this file before.

    function: MODULE:NAME, called with the path and the arguments; values: number of input values, for the limits;
    imports: the libraries that the function needs, separated by commas. Raises SpecError.
    """
    status = path.stat()
    identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
    _called(function, path.absolute(), arguments, values, imports, status.st_size, identity)


@cache
def _called(
    function: str,
    path: Path,
    arguments: tuple[Any, ...],
    values: int,
    imports: str,
    length: int,
    _identity: tuple[int, ...],
) -> None:
    """Call the function, once per file. _identity: device, inode and modification time in ns, part of the cache key."""
    libraries = {name: version(name) for name in imports.split(",")}
    passed = _records() / json_sha256([__version__, function, file_sha256(path), arguments, libraries])
    if passed.is_file():
        return
    run_limited(function, [str(path), *arguments], limits_for(length, values), shown_path(path), imports=imports)
    with suppress(OSError, SpecError):  # without a writable home folder, the next process rehearses again
        private_folder(passed.parent)
        os.close(private_file(passed))


def _records() -> Path:
    """Return the folder with an empty file for each file that has passed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "edgekd" / "rehearsed"


def limits_for(length: int, values: int) -> ProcessLimits:
    """Return the limits for a file of `length` bytes and an input of `values` values."""
    memory = MEMORY_BYTES + MEMORY_PER_BYTE * length + MEMORY_PER_VALUE * values
    cpu = CPU_SECONDS + (CPU_PER_MEGABYTE * length + CPU_PER_MEGAVALUE * values) // 10**6
    return ProcessLimits(memory, cpu)


def _frame(model: Any, size: tuple[int, int] | None) -> tuple[tuple[int, ...] | None, str]:
    """Return the shape and NumPy type of the only input. The shape is None for other inputs, or unknown dimensions."""
    inputs = inputs_of(model)
    kind = _TYPES.get(inputs[0].type.tensor_type.elem_type, "") if len(inputs) == 1 else ""
    if not kind:
        return None, kind
    shape = [axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim]
    if shape and not shape[0]:
        shape[0] = 1
    if size and len(shape) == 4 and not all(shape[2:]):
        shape[2:] = size
    return (tuple(shape) if shape and min(shape) > 0 else None), kind


def use(path: str, shape: list[int] | None, kind: str, weights: bool) -> None:
    """Infer the shapes of a graph, simplify, load and run it; called in the child process."""
    import numpy as np
    import onnxslim

    model = load_graph(Path(path)) if weights else read_model(Path(path), external=False)
    _ = Graph(model, nested=True).shapes
    if not weights:
        return
    try:
        session = cpu_session(runnable(Path(path)), spinning=False)
        if shape:
            session.run(None, {session.get_inputs()[0].name: np.zeros(shape, kind)})
    except MemoryError:
        raise
    except Exception as error:  # a graph that this runtime cannot run is refused later, if it is run
        if _out_of_memory(error):
            raise MemoryError(str(error)) from error
    onnxslim.slim(read_model(Path(path)))


def _out_of_memory(error: Exception) -> bool:
    """Return whether an error of ONNX Runtime is a failed allocation, by its message: it has no exception type."""
    words = str(error).lower()
    return any(word in words for word in ("bad_alloc", "failed to allocate", "bad allocation", "out of memory"))
