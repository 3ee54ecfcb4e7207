"""ONNX Runtime on the CPU and, where its CUDA build and an NVIDIA GPU are there, on CUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.engines.types import (
    Availability,
    ClosedByWith,
    closed,
    import_problem,
    library_version,
    one_of_each,
    readable,
    require,
    usable_cores,
)
from edgekd.errors import DeviceError
from edgekd.onnx_fp4 import runnable

if TYPE_CHECKING:
    import numpy as np

_ERRORS_ONLY = 3  # ONNX Runtime's log levels: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with one execution provider.

    distributions: the packages that bring the provider; install: the command that adds it;
    driver_libraries: shared libraries of the system without which the provider is there but cannot start.
    """

    name: str
    provider: str
    distributions: tuple[str, ...]
    install: str
    driver_libraries: tuple[str, ...] = ()

    def version(self) -> str | None:
        """The version of the installed package that brings the provider."""
        return library_version(*self.distributions)

    def available(self) -> Availability:
        """Usable when ONNX Runtime imports and offers the provider."""
        problem = import_problem("onnxruntime")
        if problem:
            return Availability(False, problem, self.install)
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            why = f"ONNX Runtime {onnxruntime.__version__} here has no {self.provider}"
            return Availability(False, why, self.install)
        missing = next(filter(None, map(_unloadable, self.driver_libraries)), None)
        if missing:
            return Availability(False, f"ONNX Runtime has {self.provider}, but there is no driver: {missing}")
        return Availability(True, f"ONNX Runtime {onnxruntime.__version__}, {self.provider}")

    def load(self, graph: Path, *, threads: int | None = None) -> OnnxRuntimeSession:
        """Open `graph` with a pinned number of threads. Raises DeviceError."""
        require(self)
        readable(graph)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        try:
            native = onnxruntime.InferenceSession(runnable(graph), options, providers=[self.provider])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise DeviceError(
                f"ONNX Runtime cannot load {graph}: {error}", fix="check that it is an ONNX file"
            ) from error
        if self.provider not in native.get_providers():  # ONNX Runtime falls back to the CPU without an error
            raise DeviceError(
                f"ONNX Runtime did not start {self.provider}",
                found=", ".join(native.get_providers()),
                fix="check the NVIDIA driver and the CUDA and cuDNN libraries with: edgekd doctor",
            )
        one_of_each(graph, _names(native.get_inputs()), _names(native.get_outputs()))
        return OnnxRuntimeSession(native)


class OnnxRuntimeSession(ClosedByWith):
    """A graph loaded by ONNX Runtime; `native` is its `InferenceSession`, for measurements of the bare runtime."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.outputs = _names(native.get_outputs())
        self._input = native.get_inputs()[0].name
        self._wanted = list(self.outputs)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        if self.native is None:
            raise closed("ONNX Runtime")
        try:
            output: np.ndarray = self.native.run(self._wanted, {self._input: batch})[0]
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run the graph on {batch.dtype} {batch.shape}: {error}") from error
        return output

    def close(self) -> None:
        """Free the graph."""
        self.native = None


def _unloadable(library: str) -> str | None:
    """Why the system's `library` cannot be loaded; None when it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _names(arguments: list[Any]) -> tuple[str, ...]:
    return tuple(argument.name for argument in arguments)


ONNXRUNTIME_CPU = OnnxRuntime(
    name="onnxruntime-cpu",
    provider="CPUExecutionProvider",
    distributions=("onnxruntime", "onnxruntime-gpu"),
    install="pip install onnxruntime",
)
ONNXRUNTIME_CUDA = OnnxRuntime(
    name="onnxruntime-cuda",
    provider="CUDAExecutionProvider",
    distributions=("onnxruntime-gpu",),
    # Both packages bring the same module: the CPU one has to go first.
    install="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
    driver_libraries=("libcuda.so.1",),
)
