"""TensorRT's builder: what it is told, and the engine that it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from edgekd.agent.runtimes.builder_log import ERROR, WARNING, BuilderLog, build_failure
from edgekd.agent.runtimes.tensorrt_generations import Generation
from edgekd.agent.runtimes.types import Wish
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import DeviceError

LEVEL = 3
"""Of optimization: TensorRT's own. What more of it gains has to be measured on a device."""
_WORKSPACE = (256 << 20, 1 << 30, 4 << 30)  # bytes: the least, where the memory is not known, and the most
_SHARE = 4  # of the memory, which a Jetson needs for all else too, one part in so many is workspace


class Builder:
    """TensorRT's builder, network and configuration, for one engine."""

    def __init__(self, generation: Generation, wish: Wish) -> None:
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
            self._workspace = workspace_bytes(wish.memory_bytes)
            generation.limit_workspace(trt, self.config, self._workspace)
            if generation.levels:
                self.config.builder_optimization_level = LEVEL
        self.calibrator: Any = None
        self._cache = wish.cache
        self._warm = self._start_from_cache()

    def parse(self, onnx: Path, name: str) -> None:
        """Read the network from a file. Raises DeviceError that names the node which TensorRT does not take."""
        with self.wrapped(f"parse {name}"):
            parsed = self.parser.parse_from_file(str(onnx))
        if not parsed:
            count = self.parser.num_errors
            said = " ".join(self.parser.get_error(0).desc().split()) if count else self.log.cause
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
        self._keep_cache()  # also of a build that failed: the next one begins with the same layers
        if plan is None:
            raise build_failure("TensorRT", self.log)
        engine.write_bytes(memoryview(plan))

    def wrapped(self, what: str) -> AbstractContextManager[None]:
        """Say what TensorRT raises as a DeviceError."""
        return wrapped(what, self.log)

    def _start_from_cache(self) -> bool:
        """Whether the timings of an earlier build are used. What TensorRT does not take, it does without."""
        if self._cache is None:
            return False
        kept = self._cache.read_bytes() if self._cache.is_file() else b""
        for content in (kept, b"") if kept else (b"",):
            try:
                # Kept here, because TensorRT wants it until the engine is built.
                self._timings = self.config.create_timing_cache(content)
                if self._timings is not None and self.config.set_timing_cache(self._timings, False):
                    return bool(content)
            except Exception:  # a damaged cache is no reason not to build
                continue
        return False

    def _keep_cache(self) -> None:
        """Keep what was timed; an engine does without, so what goes wrong is only logged."""
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
    """Turn what TensorRT raises into a DeviceError, with the first error that it has logged."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:  # its exceptions are Python's own, of several kinds
        raise DeviceError(f"TensorRT cannot {what}: {error}", found=log.cause or None) from error


def library() -> Any:
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


def logger(trt: Any, log: BuilderLog) -> Any:
    """A logger that keeps warnings and errors, and prints nothing. Made here, as its base class is in the library."""

    class KeepingLogger(trt.ILogger):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                log.add(ERROR, message)
            elif severity == trt.ILogger.WARNING:
                log.add(WARNING, message)

    return KeepingLogger()
