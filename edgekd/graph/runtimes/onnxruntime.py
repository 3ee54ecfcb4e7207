"""ONNX Runtime on the CPU and, where its CUDA build and an NVIDIA GPU are there, on CUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError
from edgekd.graph.nvfp4 import runnable
from edgekd.graph.runtimes.types import (
    Availability,
    ClosedByWith,
    LoadedApart,
    closed,
    import_problem,
    library_version,
    one_of_each,
    readable,
    require,
)

if TYPE_CHECKING:
    import numpy as np

_ERRORS_ONLY = 3  # ONNX Runtime's log levels: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


@dataclass(frozen=True)
class OnnxRuntime(LoadedApart):
    """ONNX Runtime with one execution provider.

    distributions: the packages that bring the provider; install: the command that adds it;
    driver_libraries: shared libraries of the system without which the provider is there but cannot start.
    memory: ONNX Runtime's name for the device in whose memory input and output stay; None: the host's.
    recorded: options by which a provider launches a frame's kernels as one recording, where it can.
    """

    name: str
    provider: str
    distributions: tuple[str, ...]
    install: str
    driver_libraries: tuple[str, ...] = ()
    memory: str | None = None
    recorded: tuple[tuple[str, str], ...] = ()

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
        native = self._open(graph, options)
        if self.provider not in native.get_providers():  # ONNX Runtime falls back to the CPU without an error
            raise DeviceError(
                f"ONNX Runtime did not start {self.provider}",
                found=", ".join(native.get_providers()),
                fix="check the NVIDIA driver and the CUDA and cuDNN libraries with: edgekd doctor",
            )
        one_of_each(graph, _names(native.get_inputs()), _names(native.get_outputs()))
        if self.memory and _fixed(native):
            return BoundSession(native, self.memory)
        return OnnxRuntimeSession(native)

    def _open(self, graph: Path, options: Any) -> Any:
        """ONNX Runtime's session: with the provider's recording, else without, as where a node falls to the CPU."""
        import onnxruntime

        content = runnable(graph)
        for provider_options in (dict(self.recorded), {}) if self.recorded else ({},):
            try:
                providers = [(self.provider, provider_options)]
                native = onnxruntime.InferenceSession(content, options, providers=providers)
            except Exception as error:  # ONNX Runtime's own exceptions share no base class
                problem = error
            else:
                if _fixed(native) or not provider_options:
                    return native
        raise DeviceError(
            f"ONNX Runtime cannot load {graph}: {problem}", fix="check that it is an ONNX file"
        ) from problem


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


class BoundSession(OnnxRuntimeSession):
    """A graph whose input and output stay at one place in the device's memory, so that its launches can be recorded."""

    def __init__(self, native: Any, memory: str) -> None:
        import numpy as np
        from onnxruntime import OrtValue

        super().__init__(native)
        source, result = native.get_inputs()[0], native.get_outputs()[0]
        self._source, self._result = (
            OrtValue.ortvalue_from_shape_and_type(value.shape, np.float32, memory, 0) for value in (source, result)
        )
        self._binding = native.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._source)
        self._binding.bind_ortvalue_output(result.name, self._result)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w], copied to the device and back. Raises DeviceError."""
        if self.native is None:
            raise closed("ONNX Runtime")
        try:
            if list(batch.shape) != self._source.shape():  # else ONNX Runtime copies what fits
                raise ValueError(f"expected {self._source.shape()}")
            self._source.update_inplace(batch)
            self.native.run_with_iobinding(self._binding)
            output: np.ndarray = self._result.numpy()
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run the graph on {batch.dtype} {batch.shape}: {error}") from error
        return output if output.flags.owndata else output.copy()  # of the host's memory there is only a view

    def close(self) -> None:
        """Free the graph, and its input and output."""
        super().close()
        self._binding = self._source = self._result = None


def _fixed(native: Any) -> bool:
    """Return whether input and output are float32 with static shapes."""
    values = (*native.get_inputs(), *native.get_outputs())
    return all(value.type == "tensor(float)" and all(type(size) is int for size in value.shape) for value in values)


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
    memory="cuda",
    recorded=(("enable_cuda_graph", "1"),),
)
