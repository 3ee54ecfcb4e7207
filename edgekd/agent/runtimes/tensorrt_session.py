"""A loaded TensorRT engine: run, profiled and inspected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import cuda
from edgekd.agent.runtimes.builder_log import BuilderLog
from edgekd.agent.runtimes.tensorrt_builder import library, logger, wrapped
from edgekd.agent.runtimes.tensorrt_generations import Generation, Port, numpy_kind
from edgekd.agent.runtimes.types import noise
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgekd.agent.runtimes.gpu_letterbox import GpuLetterbox
    from edgekd.core.detection.types import Preprocess

_PROFILED_RUNS = 10
_WARM_UP_RUNS = 3


class TensorRtSession:
    """An engine with one input and one output, its buffers, and one stream.

    several: accept several outputs. An input with a dynamic first side takes up to as many frames as the engine's
    profile has, and the outputs have a row for each.
    """

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
        self._letterbox: GpuLetterbox | None = None
        try:
            self._reserve(self._cuda, file, several)
        except BaseException:
            self.close()
            raise

    def _reserve(self, gpu: cuda.Cuda, file: Path, several: bool) -> None:
        """Allocate one buffer on host and device for each port, reused in every run."""
        self._frames = 0  # that the context is set for; 0 for an engine of fixed shapes, and before the first run
        self._ports = self._with_largest_batch()
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

    def _with_largest_batch(self) -> tuple[Port, ...]:
        """Return the ports with the largest number of frames in place of a dynamic first side."""
        dynamic = [port for port in self._ports if port.is_input and port.shape[:1] == (-1,)]
        self._is_dynamic = bool(dynamic)
        if not dynamic:
            return self._ports
        with wrapped("read the profile of the engine", self._log):
            largest = self._generation.access.largest(self._engine, dynamic[0].name)[0]
        return tuple(port._replace(shape=(largest, *port.shape[1:])) for port in self._ports)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output float32 for `batch`. Raises DeviceError."""
        (output,) = self.outputs(batch).values()
        return output

    def letterbox_on_gpu(self, preprocess: Preprocess) -> bool:
        """Get ready for `run_frames`; return False where the GPU cannot prepare frames. Raises DeviceError once closed.

        It cannot without a compiler, and where its values are not those of the host.
        """
        from edgekd.agent.runtimes.gpu_letterbox import GpuLetterbox

        gpu, (_, buffer, _) = self._opened(), self._input()
        try:
            letterbox = GpuLetterbox(gpu, preprocess, len(buffer))
        except DeviceError:
            return False
        if letterbox.dtype == buffer.dtype:
            self._letterbox = letterbox
        return self._letterbox is not None

    def run_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the output float32 for frames that the GPU prepares, after `letterbox_on_gpu`. Raises DeviceError."""
        assert self._letterbox is not None
        gpu, (port, buffer, address) = self._opened(), self._input()
        for index, frame in enumerate(frames):
            self._letterbox.enqueue(frame, index, address + index * buffer[:1].nbytes)
        (output,) = self._run(gpu, port, len(frames)).values()
        return output

    def outputs(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output float32, by its name. Raises DeviceError."""
        import numpy as np

        gpu, (port, buffer, address) = self._opened(), self._input()
        count = len(batch)
        fits = 1 <= count <= len(buffer) if self._is_dynamic else count == len(buffer)
        if not fits or batch.shape[1:] != buffer.shape[1:]:
            expected = f"{'at most ' if self._is_dynamic else ''}a batch {buffer.shape}"
            raise DeviceError("TensorRT cannot run the engine", expected=expected, found=str(batch.shape))
        np.copyto(buffer[:count], batch, casting="same_kind")
        gpu.upload(address, buffer[:count])
        return self._run(gpu, port, count)

    def _opened(self) -> cuda.Cuda:
        """Return the GPU. Raises DeviceError once the session is closed."""
        if self._cuda is None:
            raise DeviceError("the TensorRT session is closed", fix="load the engine again")
        return self._cuda

    def _input(self) -> tuple[Port, np.ndarray, int]:
        """Return the port of the input, its buffer on the host, and the address of that on the GPU."""
        sides = zip(self._ports, self._arrays, self._addresses)  # noqa: B905
        return next(side for side in sides if side[0].is_input)

    def _run(self, gpu: cuda.Cuda, port: Port, count: int) -> dict[str, np.ndarray]:
        """Run the engine on the first frames of its input on the GPU. Raises DeviceError."""
        import numpy as np

        self._set_frames(port.name, (count, *port.shape[1:]))
        with wrapped("run the engine", self._log):
            ran = self._generation.access.enqueue(self._context, self._ports, self._addresses, gpu.stream)
        if not ran:
            raise DeviceError("TensorRT cannot run the engine", found=self._log.cause or None)
        sides = zip(self._ports, self._arrays, self._addresses)  # noqa: B905
        results = [(each.name, array[:count], address) for each, array, address in sides if not each.is_input]
        for _, array, address in results:
            gpu.download(array, address)
        gpu.wait()
        # Copies: the next run writes into the buffers.
        return {name: array.astype(np.float32) for name, array, _ in results}

    def _set_frames(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of the input, where that is dynamic and another than before. Raises DeviceError."""
        if not self._is_dynamic or self._frames == shape[0]:
            return
        with wrapped("set the batch", self._log):
            is_set = self._generation.access.set_shape(self._context, self._engine, name, shape)
        if not is_set:
            raise DeviceError(f"TensorRT cannot take the input {shape}", found=self._log.cause or None)
        self._frames = shape[0]

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
        batch = noise(buffer[:1].shape, buffer.dtype)  # one frame, as latency is measured
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
            self._arrays, self._addresses, self._letterbox = [], [], None
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
