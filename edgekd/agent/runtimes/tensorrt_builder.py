"""TensorRT's builder: its network, its configuration, and the engine that it writes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from edgekd.agent.runtimes.builder_log import ERROR, WARNING, BuilderLog, build_failure
from edgekd.agent.runtimes.tensorrt_generations import Generation
from edgekd.agent.runtimes.types import BuildOptions, TensorRtDetails
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import DeviceError

LEVEL = 3
"""Optimization level: TensorRT's default. The gain of a higher one has to be measured on a device."""
_MIN_WORKSPACE = 256 << 20  # bytes
_DEFAULT_WORKSPACE = 1 << 30  # bytes, where the memory is not known
_MAX_WORKSPACE = 4 << 30  # bytes
_MEMORY_PER_WORKSPACE = 4  # a Jetson shares its memory between CPU and GPU


class Builder:
    """TensorRT's builder, network and configuration, for one engine."""

    def __init__(self, generation: Generation, options: BuildOptions) -> None:
        trt = library()
        self.trt, self.generation = trt, generation
        self.log = BuilderLog()
        self._logger = logger(trt, self.log)
        with self.wrapped("start"):
            self.builder = trt.Builder(self._logger)
            flags = (1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in generation.network_flags)
            self.network = self.builder.create_network(sum(flags))
            self.parser = trt.OnnxParser(self.network, self._logger)
            self.config = self.builder.create_builder_config()
            self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            self._workspace = workspace_bytes(options.memory_bytes)
            generation.limit_workspace(trt, self.config, self._workspace)
            if generation.levels:
                self.config.builder_optimization_level = LEVEL
        self.calibrator: Any = None
        self._cache = options.cache
        self._cache_used = self._load_cache()

    def parse(self, onnx: Path, name: str) -> None:
        """Parse the network in a file. Raises DeviceError that names the node which TensorRT does not support."""
        with self.wrapped(f"parse {name}"):
            parsed = self.parser.parse_from_file(str(onnx))
        if not parsed:
            count = self.parser.num_errors
            cause = " ".join(self.parser.get_error(0).desc().split()) if count else self.log.cause
            raise DeviceError(
                f"TensorRT cannot parse {name}", found=cause, fix="build the bundle again for this device's TensorRT"
            )

    def take_batches(self, largest: int) -> None:
        """Let a network with a dynamic first side take 1 to `largest` frames; 1 makes it fixed."""
        port = self.network.get_input(0)
        first, *rest = port.shape
        if first != -1:
            return
        with self.wrapped("set the batch"):
            if largest == 1:
                port.shape = (1, *rest)
                return
            profile = self.builder.create_optimization_profile()
            profile.set_shape(port.name, (1, *rest), (largest, *rest), (largest, *rest))
            self.config.add_optimization_profile(profile)

    def allow(self, quantized: bool) -> tuple[str, ...]:
        """Allow the precisions that a graph needs, and return them; none where the graph alone decides."""
        flags = self.generation.precision_flags[quantized]
        with self.wrapped("set precisions"):
            for flag in flags:
                self.config.set_flag(getattr(self.trt.BuilderFlag, flag))
        return ("fp32", *map(str.lower, flags)) if flags else ()

    def hold(self, tensors: Collection[str], kind: str) -> list[str]:
        """Hold the layers that compute these tensors in a data type, such as `HALF`; return their names.

        Tensors have the names of the graph; the layers of one node, such as those of a Split, have others. Where the
        graph alone decides, nothing is held.
        """
        if not (tensors and self.generation.constraint):
            return []
        held_type, names = getattr(self.trt.DataType, kind), []
        with self.wrapped("hold layers in a precision"):
            self.config.set_flag(getattr(self.trt.BuilderFlag, self.generation.constraint))
            for layer in (self.network.get_layer(index) for index in range(self.network.num_layers)):
                outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
                # The type of indices and shapes must not be set (NvInfer.h at 8.5.2, ILayer::setOutputType).
                held = [at for at, each in enumerate(outputs) if each.name in tensors and each.is_execution_tensor]
                if held:
                    layer.precision = held_type
                    names.append(layer.name)
                for index in held:
                    layer.set_output_type(index, held_type)
        return names

    def settings(self) -> TensorRtDetails:
        """Return the settings, for the record of the engine."""
        return TensorRtDetails(self._workspace, LEVEL if self.generation.levels else None, self._cache_used)

    def write(self, engine: Path) -> None:
        """Build the engine into a file, and keep the timings for the next build. Raises DeviceError."""
        with self.wrapped("build"):
            plan = self.builder.build_serialized_network(self.network, self.config)
        self._keep_cache()  # also after a failed build: the next one times the same layers
        if plan is None:
            raise build_failure("TensorRT", self.log)
        engine.write_bytes(memoryview(plan))

    def wrapped(self, what: str) -> AbstractContextManager[None]:
        """Wrap exceptions of TensorRT as DeviceError."""
        return wrapped(what, self.log)

    def _load_cache(self) -> bool:
        """Load the timings of earlier builds; return whether there are any that TensorRT accepts."""
        if self._cache is None:
            return False
        kept = self._cache.read_bytes() if self._cache.is_file() else b""
        for content in (kept, b"") if kept else (b"",):
            try:
                # Kept alive here: TensorRT uses it until the engine is built.
                self._timings = self.config.create_timing_cache(content)
                if self._timings is not None and self.config.set_timing_cache(self._timings, False):
                    return bool(content)
            except Exception:  # a damaged cache is no reason not to build
                continue
        return False

    def _keep_cache(self) -> None:
        """Write the timings; an error is only logged, as engines do not depend on them."""
        if self._cache is None:
            return
        try:
            timing = self.config.get_timing_cache()
            content = bytes(memoryview(timing.serialize())) if timing is not None else b""
            if content:
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                write_file(self._cache, content)
        except Exception as error:  # TensorRT's exceptions are Python's own, of several kinds
            self.log.add(WARNING, f"timings not kept: {error}")


@contextmanager
def wrapped(what: str, log: BuilderLog) -> Iterator[None]:
    """Wrap exceptions of TensorRT as DeviceError, with the first error in its log."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:  # its exceptions are Python's own, of several kinds
        raise DeviceError(f"TensorRT cannot {what}: {error}", found=log.cause or None) from error


def library() -> Any:
    """Import the bindings. Raises DeviceError."""
    try:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]
    except Exception as error:  # also OSError, where the libraries are not those of the bindings
        raise DeviceError(
            "tensorrt cannot be imported", found=str(error), fix="use the bindings of the installed JetPack"
        ) from error
    return tensorrt


def workspace_bytes(memory_bytes: int | None) -> int:
    """Return the memory that one layer may use while it runs; memory_bytes: of the device, None where unknown."""
    if memory_bytes is None:
        return _DEFAULT_WORKSPACE
    return min(max(memory_bytes // _MEMORY_PER_WORKSPACE, _MIN_WORKSPACE), _MAX_WORKSPACE)


def logger(trt: Any, log: BuilderLog) -> Any:
    """Return a logger that keeps warnings and errors. The class is made here, because its base is in the library."""

    class KeepingLogger(trt.ILogger):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                log.add(ERROR, message)
            elif severity == trt.ILogger.WARNING:
                log.add(WARNING, message)

    return KeepingLogger()
