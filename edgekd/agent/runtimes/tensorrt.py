"""TensorRT through its Python bindings, of which JetPack has those for its own version.

What differs between its generations is in `tensorrt_generations`. The engine is for batch 1 and the graph's own shapes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import cuda, networks
from edgekd.agent.runtimes.precision import layers_of
from edgekd.agent.runtimes.tensorrt_generations import Generation, generation, numpy_kind
from edgekd.agent.runtimes.types import FLOAT, Layer, Made, Wish
from edgekd.errors import DeviceError
from edgekd.files import write_file

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.slots import Slot

LEVEL = 3
"""Of optimization: TensorRT's own. What more of it gains has to be measured on a device."""
_WORKSPACE = (256 << 20, 1 << 30, 4 << 30)  # bytes: the least, where the memory is not known, and the most
_SHARE = 4  # of the memory, which a Jetson needs for all else too, one part in so many is workspace
_PROFILED, _WARM_UP = 10, 3  # runs


class TensorRt:
    """TensorRT on the GPU."""

    name = "tensorrt"

    def version(self) -> str:
        """The version of the installed package, which need not be imported for it."""
        from importlib import metadata

        try:
            return metadata.version("tensorrt")
        except metadata.PackageNotFoundError:
            return str(_library().__version__)

    def problem(self) -> str | None:
        """Usable where its bindings are installed, are new enough, and the GPU's memory can be reached."""
        spec = find_spec("tensorrt")
        if spec is None or spec.origin is None:  # type stubs alone make a package without an origin
            return "tensorrt is not installed for this Python"
        try:
            generation(self.version())
        except DeviceError as error:
            return str(error)
        return cuda.problem()

    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        """Write the engine, and nothing else, to `engine`. Raises DeviceError."""
        builder = _Builder(generation(self.version()), wish)
        made = self._described(builder, slot, wish)
        builder.write(engine)
        return made

    def load(self, engine: Path) -> TensorRtSession:
        """Open an engine that was built here. Raises DeviceError."""
        return TensorRtSession(engine, generation(self.version()), self._core())

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """What the engine inspector and a few profiled runs say. Raises DeviceError."""
        with closing(self.load(engine)) as session:
            told = session.inspected()
            try:
                return layers_of(told, session.profiled())
            except ValueError as error:
                raise DeviceError(f"{engine}: TensorRT does not say what is in it", found=str(error)) from error

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Its sessions are timed."""
        return None

    def clock(self) -> float:
        """This machine's monotonic high-resolution clock."""
        return time.perf_counter()

    def _core(self) -> int | None:
        """The DLA core that the engine runs on; None for the GPU."""
        return None

    def _described(self, builder: _Builder, slot: Slot, wish: Wish) -> Made:
        """Tell the builder all that it has to know, and say what that was."""
        if wish.source == FLOAT:
            onnx, quantized = networks.float_graph(slot.graph), False
        else:
            onnx, quantized = slot.graph.read_bytes(), networks.quantized(slot.graph)
        builder.parse(onnx, slot.graph.name)
        flags = builder.allow(quantized)
        precision = "graph" if wish.source != FLOAT else "fp16" if flags else networks.float_kind(onnx)
        return Made(precision, flags, more=builder.told())


class _Builder:
    """TensorRT's builder, network and configuration, for one engine."""

    def __init__(self, generation: Generation, wish: Wish) -> None:
        trt = _library()
        self.trt, self.generation = trt, generation
        self.log: list[str] = []
        self._logger = _logger(trt, self.log)
        with self.wrapped("start"):
            self.builder = trt.Builder(self._logger)
            flags = (1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in generation.network_flags)
            self.network = self.builder.create_network(sum(flags))
            self.parser = trt.OnnxParser(self.network, self._logger)
            self.config = self.builder.create_builder_config()
            self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            self._workspace = workspace_bytes(wish.memory_bytes)
            generation.limit_workspace(trt, self.config, self._workspace)
            if generation.levels:
                self.config.builder_optimization_level = LEVEL
        self.calibrator: Any = None
        self._cache = wish.cache
        self._warm = self._start_from_cache()

    def parse(self, onnx: bytes, name: str) -> None:
        """Read the network. Raises DeviceError that names the node which TensorRT does not take."""
        with self.wrapped(f"parse {name}"):
            parsed = self.parser.parse(onnx)
        if not parsed:
            count = self.parser.num_errors
            said = " ".join(self.parser.get_error(0).desc().split()) if count else self._said()
            raise DeviceError(
                f"TensorRT cannot parse {name}", found=said, fix="build the bundle again for this device's TensorRT"
            )

    def allow(self, quantized: bool) -> tuple[str, ...]:
        """Allow the precisions that a graph needs, where that is for the builder to decide; which they are."""
        flags = self.generation.precision_flags[quantized]
        with self.wrapped("set precisions"):
            for flag in flags:
                self.config.set_flag(getattr(self.trt.BuilderFlag, flag))
        return ("fp32", *map(str.lower, flags)) if flags else ()

    def told(self) -> dict[str, Any]:
        """What was set, for the record."""
        level = LEVEL if self.generation.levels else None
        return {"workspace_bytes": self._workspace, "optimization_level": level, "timing_cache": self._warm}

    def write(self, engine: Path) -> None:
        """Build the engine into a file, and keep what was timed for the next build. Raises DeviceError."""
        with self.wrapped("build"):
            plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            raise DeviceError(
                "TensorRT cannot build an engine",
                found=self._said(),
                fix="see what it says, and how much memory is free",
            )
        engine.write_bytes(memoryview(plan))
        self._keep_cache()

    @contextmanager
    def wrapped(self, what: str) -> Iterator[None]:
        """Say what TensorRT raises as a DeviceError."""
        try:
            yield
        except Exception as error:  # its exceptions are Python's own, of several kinds
            raise DeviceError(f"TensorRT cannot {what}: {error}", found=self._said() or None) from error

    def _start_from_cache(self) -> bool:
        """Whether the timings of an earlier build are used. What TensorRT does not take, it does without."""
        if self._cache is None:
            return False
        kept = self._cache.read_bytes() if self._cache.is_file() else b""
        for content in (kept, b"") if kept else (b"",):
            try:
                timing = self.config.create_timing_cache(content)
                if timing is not None and self.config.set_timing_cache(timing, False):
                    return bool(content)
            except Exception:  # a damaged cache is no reason not to build
                continue
        return False

    def _keep_cache(self) -> None:
        if self._cache is None:
            return
        with self.wrapped("keep its timings"):
            timing = self.config.get_timing_cache()
            content = bytes(memoryview(timing.serialize())) if timing is not None else b""
        if content:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._cache, content)

    def _said(self) -> str:
        return self.log[-1] if self.log else ""


class TensorRtSession:
    """An engine with one input and one output, its buffers, and one stream."""

    def __init__(self, file: Path, generation: Generation, core: int | None = None) -> None:
        trt = _library()
        self._trt, self._generation, self._log = trt, generation, []  # type: ignore[var-annotated,unused-ignore]
        self._logger = _logger(trt, self._log)
        self._runtime = trt.Runtime(self._logger)
        if core is not None:
            self._runtime.DLA_core = core
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        self._context = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            said = self._log[-1] if self._log else "no reason given"
            raise DeviceError(f"{file.name}: TensorRT cannot load it", found=said, fix="build the engine again")
        self._ports = tuple(generation.access.ports(trt, self._engine))
        self._cuda: cuda.Cuda | None = cuda.opened()
        try:
            self._reserve(self._cuda, file)
        except BaseException:
            self.close()
            raise

    def _reserve(self, gpu: cuda.Cuda, file: Path) -> None:
        """One buffer on each side for each port, used again in every run."""
        kinds = [numpy_kind(self._trt, port.kind) for port in self._ports]
        sides = sorted(port.is_input for port in self._ports)
        if sides != [False, True] or None in kinds or any(side < 1 for port in self._ports for side in port.shape):
            told = ", ".join(f"{port.name} {port.kind} {list(port.shape)}" for port in self._ports)
            raise DeviceError(
                f"{file.name}: not a detector's engine", expected="one float input and one float output", found=told
            )
        self._arrays = [gpu.pinned(port.shape, kind) for port, kind in zip(self._ports, kinds)]  # noqa: B905
        self._addresses = [gpu.allocate(array.nbytes) for array in self._arrays]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output float32 for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        import numpy as np

        if self._cuda is None:
            raise DeviceError("the TensorRT session is closed", fix="load the engine again")
        sides = zip(self._ports, self._arrays, self._addresses)  # noqa: B905
        (given, taken) = sorted(sides, key=lambda side: not side[0].is_input)
        if batch.shape != given[1].shape:
            raise DeviceError(
                "TensorRT cannot run the engine", expected=f"a batch {given[1].shape}", found=str(batch.shape)
            )
        np.copyto(given[1], batch, casting="same_kind")
        self._cuda.upload(given[2], given[1])
        if not self._generation.access.enqueue(self._context, self._ports, self._addresses, self._cuda.stream):
            raise DeviceError("TensorRT cannot run the engine", found=self._log[-1] if self._log else None)
        self._cuda.download(taken[1], taken[2])
        self._cuda.wait()
        output: np.ndarray = taken[1].astype(np.float32)  # a copy: the next run writes into the buffer
        return output

    def inspected(self) -> str:
        """What the engine inspector says of all layers, as JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        told: str = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return told

    def profiled(self) -> dict[str, float]:
        """Milliseconds that each layer takes, by its name: the mean of a few runs. Raises DeviceError."""
        import numpy as np

        profiler = _profiler(self._trt)
        (given,) = (port for port in self._ports if port.is_input)
        batch = np.random.RandomState(0).uniform(0, 1, given.shape).astype(np.float32)
        for _ in range(_WARM_UP):
            self.run(batch)
        context: Any = self._context
        context.profiler = profiler
        for _ in range(_PROFILED):
            self.run(batch)
        return {name: total / _PROFILED for name, total in profiler.totals.items()}

    def close(self) -> None:
        """Free the buffers, then the engine."""
        if self._cuda is not None:
            self._arrays, self._addresses = [], []
            self._cuda.close()
            self._cuda = self._context = self._engine = None


def _library() -> Any:
    """The bindings. Raises DeviceError where they cannot be imported."""
    try:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]
    except Exception as error:  # also OSError, where the libraries are not those of the bindings
        raise DeviceError(
            "tensorrt cannot be imported", found=str(error), fix="use the bindings of the installed JetPack"
        ) from error
    return tensorrt


def workspace_bytes(memory_bytes: int | None) -> int:
    """How much memory a layer may use for itself while it runs."""
    least, unknown, most = _WORKSPACE
    return unknown if memory_bytes is None else min(max(memory_bytes // _SHARE, least), most)


def _logger(trt: Any, log: list[str]) -> Any:
    """A logger that keeps what goes wrong and prints nothing. Made here, because its base class is in the library."""

    class KeepingLogger(trt.ILogger):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                log.append(" ".join(message.split()))

    return KeepingLogger()


def _profiler(trt: Any) -> Any:
    """A profiler that adds up the milliseconds of each layer."""

    class SummingProfiler(trt.IProfiler):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return SummingProfiler()
