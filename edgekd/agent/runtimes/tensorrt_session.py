"""A loaded TensorRT engine: run, profiled and inspected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import cuda
from edgekd.agent.runtimes.builder_log import BuilderLog
from edgekd.agent.runtimes.tensorrt_builder import library, logger, wrapped
from edgekd.agent.runtimes.tensorrt_generations import Generation, numpy_kind
from edgekd.agent.runtimes.types import noise
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

_PROFILED_RUNS = 10
_WARM_UP_RUNS = 3


class TensorRtSession:
    """An engine with one input and one output, its buffers, and one stream. several: accept several outputs."""

    def __init__(self, file: Path, generation: Generation, core: int | None = None, several: bool = False) -> None:
        trt = library()
        self._trt, self._generation = trt, generation
        self._log = BuilderLog()
        self._logger = logger(trt, self._log)
        with wrapped(f"load {file.name}", self._log):
            self._runtime = trt.Runtime(self._logger)
            if core is not None:
                self._runtime.DLA_core = core
            self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
            self._context = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            cause = self._log.cause or "no reason given"
            raise DeviceError(f"{file.name}: TensorRT cannot load it", found=cause, fix="build the engine again")
        with wrapped(f"list the inputs and outputs of {file.name}", self._log):
            self._ports = tuple(generation.access.ports(trt, self._engine))
        self._cuda: cuda.Cuda | None = cuda.opened()
        try:
            self._reserve(self._cuda, file, several)
        except BaseException:
            self.close()
            raise

    def _reserve(self, gpu: cuda.Cuda, file: Path, several: bool) -> None:
        """Allocate one buffer on host and device for each port, reused in every run."""
        kinds = [numpy_kind(self._trt, port.kind) for port in self._ports]
        inputs = sum(port.is_input for port in self._ports)
        fits = inputs == 1 and (len(self._ports) == 2 or (several and len(self._ports) > 2))
        if not fits or None in kinds or any(side < 1 for port in self._ports for side in port.shape):
            ports = ", ".join(f"{port.name} {port.kind} {list(port.shape)}" for port in self._ports)
            raise DeviceError(
                f"{file.name}: not a detector's engine",
                expected="one input and one output, float or bytes",
                found=ports,
            )
        self._arrays = [gpu.pinned(port.shape, kind) for port, kind in zip(self._ports, kinds)]  # noqa: B905
        self._addresses = [gpu.allocate(array.nbytes) for array in self._arrays]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output float32 for `batch`. Raises DeviceError."""
        (output,) = self.outputs(batch).values()
        return output

    def outputs(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output float32, by its name. Raises DeviceError."""
        import numpy as np

        if self._cuda is None:
            raise DeviceError("the TensorRT session is closed", fix="load the engine again")
        sides = list(zip(self._ports, self._arrays, self._addresses))  # noqa: B905
        (_, buffer, address) = next(side for side in sides if side[0].is_input)
        if batch.shape != buffer.shape:
            raise DeviceError(
                "TensorRT cannot run the engine", expected=f"a batch {buffer.shape}", found=str(batch.shape)
            )
        np.copyto(buffer, batch, casting="same_kind")
        self._cuda.upload(address, buffer)
        with wrapped("run the engine", self._log):
            ran = self._generation.access.enqueue(self._context, self._ports, self._addresses, self._cuda.stream)
        if not ran:
            raise DeviceError("TensorRT cannot run the engine", found=self._log.cause or None)
        results = [(port.name, array, address) for port, array, address in sides if not port.is_input]
        for _, array, address in results:
            self._cuda.download(array, address)
        self._cuda.wait()
        # Copies: the next run writes into the buffers.
        return {name: array.astype(np.float32) for name, array, _ in results}

    def inspected(self) -> str:
        """Return the engine inspector's JSON. Raises DeviceError."""
        with wrapped("inspect the engine", self._log):
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = self._context
            return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def profiled(self) -> dict[str, float]:
        """Return the mean milliseconds of each layer over a few runs, by name. Raises DeviceError."""
        self._profiler = profiler = _profiler(self._trt)  # kept as long as the context that reports to it
        (buffer,) = (array for port, array in zip(self._ports, self._arrays) if port.is_input)  # noqa: B905
        batch = noise(buffer.shape, buffer.dtype)
        for _ in range(_WARM_UP_RUNS):
            self.run(batch)
        context: Any = self._context
        context.profiler = profiler
        for _ in range(_PROFILED_RUNS):
            self.run(batch)
        return {name: total / _PROFILED_RUNS for name, total in profiler.totals.items()}

    def scratch_bytes(self) -> int | None:
        """Return the device memory of a context; the property has another name since TensorRT 10."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            count = getattr(self._engine, name, None)
            if isinstance(count, int):
                return count
        return None

    def close(self) -> None:
        """Release the engine, then its buffers."""
        if self._cuda is not None:
            self._context = self._engine = None
            self._arrays, self._addresses = [], []
            self._cuda.close()
            self._cuda = None


def _profiler(trt: Any) -> Any:
    """Return a profiler that sums the milliseconds of each layer."""

    class SummingProfiler(trt.IProfiler):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return SummingProfiler()
