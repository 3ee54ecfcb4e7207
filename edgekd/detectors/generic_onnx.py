"""Networks other than detectors: any ONNX graph with one float32 input, evaluated by the errors of its outputs.

Frames are files in one folder: images, which are letterboxed to the input's height and width, in RGB from 0 to 1; or
arrays, `.npy` or `.npz` (the array named like the input, or the only one), of the input's shape, with or without the
batch of 1, which are used unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from edgekd.core.detection.parity import RelativeError
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import CompressError, DataError, SpecError
from edgekd.core.input_files import is_folder, regular_file
from edgekd.data.dataset import IMAGE_SUFFIXES
from edgekd.data.images import read_image
from edgekd.detectors.onnx import MIN_OPSET
from edgekd.graph.nvfp4 import runnable
from edgekd.graph.opset import raise_opset
from edgekd.graph.rehearsal import rehearse
from edgekd.graph.session import cpu_session
from edgekd.graph.view import inputs_of, load_graph

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
MAX_ELEMENT_BYTES = 16
"""Largest size of an array's element in bytes: a long double."""
MAX_ARRAY_HEADER = 1 << 16
"""Largest header of an array's file in bytes, as in version 1 of the format."""
MAX_ARRAYS_BYTES = 1 << 31
"""Largest size of a file with several arrays in bytes."""
MAX_SNR_DB = 120.0  # reported for outputs that are (nearly) equal


@dataclass(frozen=True)
class Input:
    """The only input of a network: its name, and its shape with a batch of 1."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OutputError:
    """The error of an output over all frames: sqrt(noise power / signal power), and signal-to-noise ratio in dB."""

    relative_error: float
    snr_db: float


def prepare(source: Path, out: Path) -> Input:
    """Write the network to `out`, simplified, with a batch of 1 and at least the opset that quantization needs.

    Raises SpecError for a file that is not ONNX, or does not have exactly one float32 input of a fixed shape.
    """
    import onnx
    import onnxslim

    model = load_graph(source)
    rehearse(source)
    inputs = inputs_of(model)
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        names = ", ".join(value.name for value in inputs) or "none"
        raise SpecError(f"{source}: wrong inputs", expected="one input, float32", found=names)
    axes = inputs[0].type.tensor_type.shape.dim
    if len(axes) and not axes[0].dim_value:
        axes[0].dim_value = 1
    shape = tuple(int(axis.dim_value) for axis in axes)
    if len(shape) < 2 or shape[0] != 1 or 0 in shape:
        raise SpecError(
            f"{source}: input {inputs[0].name}",
            expected="a fixed shape with a batch of 1",
            found=str(list(shape)),
            fix="export it with fixed sizes",
        )
    onnx.save(onnxslim.slim(raise_opset(model, MIN_OPSET, str(source))), out)
    return Input(inputs[0].name, shape)


def frame_files(folder: Path) -> list[Path]:
    """Return the images and arrays directly in a folder, sorted; empty if it is not a folder."""
    if not is_folder(folder):
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES | ARRAY_SUFFIXES)


def read_frame(path: Path, target: Input) -> np.ndarray:
    """Read a frame float32 of the input's shape. Raises DataError naming the file."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        value = _array(path, target)
        if value.dtype.kind not in "fiu" or value.shape not in (target.shape, target.shape[1:]):
            raise DataError(
                f"{path}: does not fit the input {target.name}",
                expected=f"numbers of shape {list(target.shape)}",
                found=f"{value.dtype} {list(value.shape)}",
            )
        return value.astype(np.float32).reshape(target.shape)
    if len(target.shape) != 4 or target.shape[1] != 3:
        raise DataError(
            f"{path}: an image does not fit the input {target.name}",
            expected=f"arrays of shape {list(target.shape)}, as .npy or .npz",
            found="an image",
        )
    return letterbox(read_image(path), Preprocess(*target.shape[2:]))[0]


def _array(path: Path, wanted: Input) -> np.ndarray:
    """Read the only array in a file, or the one with the input's name. Raises DataError, also if it is too large."""
    limit = MAX_ELEMENT_BYTES * math.prod(wanted.shape) + MAX_ARRAY_HEADER
    regular_file(path, limit if path.suffix.lower() == ".npy" else MAX_ARRAYS_BYTES)
    try:
        loaded: Any = np.load(path)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            name = wanted.name if wanted.name in loaded.files else next(iter(loaded.files), "")
            if len(loaded.files) != 1 and name != wanted.name:
                expected = f"one, or one named {wanted.name}"
                raise DataError(f"{path}: which array?", expected=expected, found=str(loaded.files)[:200])
            if loaded.zip.getinfo(f"{name}.npy").file_size > limit:
                raise ValueError(f"an array of more than {limit} bytes")
            found: np.ndarray = loaded[name]
            return found
    except (OSError, ValueError, EOFError, KeyError, MemoryError, SyntaxError, RecursionError, BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an array", found=str(error)[:200], fix="write it with numpy.save"
        ) from error


def output_errors(before: Path, after: Path, frames: Iterator[np.ndarray]) -> Mapping[str, OutputError]:
    """Return the error of each output of the graph `after` compared with `before`, over all frames.

    Raises CompressError for outputs that are not finite.
    """
    sessions = [cpu_session(runnable(graph)) for graph in (before, after)]
    errors = {output.name: RelativeError() for output in sessions[0].get_outputs()}
    for frame in frames:
        expected, actual = (session.run(list(errors), {session.get_inputs()[0].name: frame}) for session in sessions)
        for error, one, other in zip(errors.values(), actual, expected, strict=True):
            error.add(one, other)
    powers = {name: error.power() for name, error in errors.items()}
    wrong = [name for name, power in powers.items() if not math.isfinite(power)]
    if wrong:
        raise CompressError(f"compare: output {', '.join(wrong)}", expected="finite values", found="others")
    return {
        name: OutputError(math.sqrt(power), min(-10 * math.log10(max(power, 1e-30)), MAX_SNR_DB))
        for name, power in powers.items()
    }
