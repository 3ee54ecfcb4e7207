"""ONNX Runtime on the CPU and, with its CUDA build and an NVIDIA GPU, on CUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError
from edgekd.graph.nvfp4 import runnable
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session, require, require_file, require_single

if TYPE_CHECKING:
    import numpy as np

_FIXED_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
"""Types of inputs and outputs that can be bound in device memory, with their NumPy names."""
_ERRORS_ONLY = 3  # ONNX Runtime's log levels: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


@dataclass(frozen=True)
class HostOnnxRuntime(HostRuntime):
    """ONNX Runtime with one execution provider.

    driver_libraries: shared libraries of the system that the provider needs to start; memory: ONNX Runtime's name of
    the device in whose memory input and output are bound, None for the host; recorded: options of the provider that
    enable CUDA graphs, used where possible.
    """

    provider: str
    driver_libraries: tuple[str, ...] = ()
    memory: str | None = None
    recorded: tuple[tuple[str, str], ...] = ()

    def _available_once_imported(self) -> Availability:
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            why = f"ONNX Runtime {onnxruntime.__version__} here has no {self.provider}"
            return Availability(False, why, self.install)
        missing = next(filter(None, map(_load_problem, self.driver_libraries)), None)
        if missing:
            return Availability(False, f"ONNX Runtime has {self.provider}, but there is no driver: {missing}")
        return Availability(True, f"ONNX Runtime {onnxruntime.__version__}, {self.provider}")

    def load(self, graph: Path, *, threads: int | None = None) -> OnnxRuntimeSession:
        """Open `graph` with a fixed number of threads. Raises DeviceError."""
        require(self)
        require_file(graph)
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
        require_single(graph, _names(native.get_inputs()), _names(native.get_outputs()))
        if self.memory and _fixed(native):
            return BoundSession(native, self.memory)
        return OnnxRuntimeSession(native)

    def _open(self, graph: Path, options: Any) -> Any:
        """Return ONNX Runtime's session, with CUDA graphs unless a node runs on the CPU. Raises DeviceError."""
        import onnxruntime

        content = runnable(graph)
        for settings in (dict(self.recorded), {}) if self.recorded else ({},):
            try:
                native = onnxruntime.InferenceSession(content, options, providers=[(self.provider, settings)])
            except Exception as error:  # ONNX Runtime's own exceptions share no base class
                problem = error
            else:
                if _fixed(native) or not settings:
                    return native
        raise DeviceError(
            f"ONNX Runtime cannot load {graph}: {problem}", fix="check that it is an ONNX file"
        ) from problem


class OnnxRuntimeSession(Session):
    """A graph loaded by ONNX Runtime; `native` is its `InferenceSession`, for measurements of the bare runtime."""

    title = "ONNX Runtime"

    def __init__(self, native: Any) -> None:
        self.native = native
        self.outputs = _names(native.get_outputs())
        self._input = native.get_inputs()[0].name
        self._wanted = list(self.outputs)

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        output: np.ndarray = self.native.run(self._wanted, {self._input: batch})[0]
        return output

    def close(self) -> None:
        super().close()
        self.native = None


class BoundSession(OnnxRuntimeSession):
    """A graph with input and output bound to fixed addresses in device memory, as CUDA graphs require."""

    def __init__(self, native: Any, memory: str) -> None:
        import numpy as np
        from onnxruntime import OrtValue

        super().__init__(native)
        source, result = native.get_inputs()[0], native.get_outputs()[0]
        self._source, self._result = (
            OrtValue.ortvalue_from_shape_and_type(value.shape, getattr(np, _FIXED_TYPES[value.type]), memory, 0)
            for value in (source, result)
        )
        self._binding = native.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._source)
        self._binding.bind_ortvalue_output(result.name, self._result)

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        if list(batch.shape) != self._source.shape():  # otherwise ONNX Runtime copies what fits
            raise ValueError(f"expected {self._source.shape()}")
        self._source.update_inplace(batch)
        self.native.run_with_iobinding(self._binding)
        output: np.ndarray = self._result.numpy()
        return output if output.flags.owndata else output.copy()  # in host memory it is only a view

    def close(self) -> None:
        super().close()
        self._binding = self._source = self._result = None


def _fixed(native: Any) -> bool:
    """Return whether input and output are float32 or bytes with static shapes."""
    values = (*native.get_inputs(), *native.get_outputs())
    return all(value.type in _FIXED_TYPES and all(type(size) is int for size in value.shape) for value in values)


def _load_problem(library: str) -> str | None:
    """Return why the system's `library` cannot be loaded; None where it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _names(arguments: list[Any]) -> tuple[str, ...]:
    return tuple(argument.name for argument in arguments)


ONNXRUNTIME_CPU = HostOnnxRuntime(
    name="onnxruntime-cpu",
    module="onnxruntime",
    provider="CPUExecutionProvider",
    distributions=("onnxruntime", "onnxruntime-gpu"),
    install="pip install onnxruntime",
)
ONNXRUNTIME_CUDA = HostOnnxRuntime(
    name="onnxruntime-cuda",
    module="onnxruntime",
    provider="CUDAExecutionProvider",
    distributions=("onnxruntime-gpu",),
    # Both packages install the same module, so the CPU package is removed first.
    install="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
    driver_libraries=("libcuda.so.1",),
    memory="cuda",
    recorded=(("enable_cuda_graph", "1"),),
)
