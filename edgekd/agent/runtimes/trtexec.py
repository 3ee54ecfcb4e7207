"""TensorRT through its program `trtexec`, where there are no bindings for this Python.

It builds an engine, times it, and runs one input at a time, by command line and files. Every run loads the engine
again, so that a self-test takes seconds, and only trtexec's own numbers are times of the engine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.builder_log import ERROR, WARNING, BuilderLog, build_failure
from edgekd.agent.runtimes.precision import inspected_layers
from edgekd.agent.runtimes.tensorrt_builder import LEVEL, workspace_bytes
from edgekd.agent.runtimes.tensorrt_generations import generation
from edgekd.agent.runtimes.trtexec_flags import WARM_UP_MS, Flags, flags_of
from edgekd.agent.runtimes.types import (
    FLOAT,
    BuildOptions,
    EngineDescription,
    Inspection,
    Layer,
    Runtime,
    TrtexecDetails,
)
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.state.slots import Slot

PROGRAM = "trtexec"
FOLDERS = ("/usr/src/tensorrt/bin",)
"""Folders of JetPack, searched after PATH."""
LIBRARIES = "usr/lib/*-linux-gnu/libnvinfer.so.*.*.*"
"""JetPack's TensorRT below the root, with its version in the file name."""
TIMEOUT_S = 7200.0
"""Maximum seconds of one run: the largest builds take an hour on the smallest boards."""
_BANNER = re.compile(r"TensorRT v(?P<number>\d{4,6})")
_RECORD = "engine.json"


class Trtexec(Runtime):
    """TensorRT's program, which gives a dynamic first side the value 1 in builds and runs without `--shapes`."""

    name = PROGRAM
    batches = False

    def version(self) -> str:
        return _version(_required_program())

    def problem(self) -> str | None:
        return None if _program() else f"{PROGRAM} is neither in PATH nor in {', '.join(FOLDERS)}"

    def build(self, slot: Slot, engine: Path, options: BuildOptions) -> EngineDescription:
        flags, workspace = self._flags(), workspace_bytes(options.memory_bytes)
        with networks.scratch_folder(engine) as folder:
            int8_constants = generation(self.version()).int8_constants
            network = networks.network(slot, options, folder, int8_constants=int8_constants)
            allowed = flags.precisions(network.quantized)
            timings = _copied_cache(options.cache, folder)
            command = [str(_required_program()), *flags.build(network.path, engine, workspace, LEVEL, allowed, timings)]
            command += flags.in_float32(networks.float32_layers(slot.graph))
            log = _build(command, engine)
            _keep_cache(timings, options.cache)
        precision = "graph" if options.source != FLOAT else "fp16" if allowed else network.float_type
        details = TrtexecDetails(" ".join(command), networks.input_name(slot.graph), workspace, log.lines)
        return EngineDescription(precision, ("fp32", *allowed) if allowed else (), details=details)

    def load(self, engine: Path) -> TrtexecSession:
        """Open an engine. Raises DeviceError where its record does not name the input."""
        try:
            name = json.loads(engine.with_name(_RECORD).read_bytes().decode("utf-8"))["input"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DeviceError(
                f"{engine.with_name(_RECORD)}: no name of the input",
                found=str(error),
                fix="build it again",
            ) from error
        return TrtexecSession(engine, str(name), self._flags())

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        return inspected_layers(self.inspect(engine), engine, PROGRAM)

    def inspect(self, engine: Path) -> Inspection:
        with _folder() as folder:
            layers, profile = folder / "layers.json", folder / "profile.json"
            _run([str(_required_program()), *self._flags().inspect(engine, layers, profile)], "inspect an engine")
            try:
                return Inspection(layers.read_text("utf-8", "replace"), _profile_times(profile))
            except (OSError, ValueError) as error:
                raise DeviceError(f"{PROGRAM} does not report the layers of the engine", found=str(error)) from error

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Return the seconds of each run: GPU time of the engine with the transfers of input and output."""
        with _folder() as folder:
            exported = folder / "times.json"
            command = self._flags().bench(engine, iterations, seconds, exported)
            _run([str(_required_program()), *command], "time an engine")
            try:
                # Some versions export the warm-up runs, too.
                kept = [each for each in _json(exported) if each.get("startComputeMs", WARM_UP_MS) >= WARM_UP_MS]
                seconds_of_runs = [float(each["latencyMs"]) / 1000 for each in kept]
            except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
                raise DeviceError(f"{PROGRAM} does not report its times", found=str(error)) from error
        if not seconds_of_runs:
            raise DeviceError(f"{PROGRAM} timed no run", fix="more --seconds")
        return seconds_of_runs

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        flags = self._flags()
        with _folder() as folder:
            engine = folder / "model.engine"
            graph = networks.inner_network(onnx, folder, int8_constants=generation(self.version()).int8_constants)
            arguments = flags.build(graph, engine, workspace_bytes(None), LEVEL, flags.precisions(quantized), None)
            _run([str(_required_program()), *arguments], "build an engine of the network with its inner tensors")
            session = TrtexecSession(engine, networks.input_name(graph), flags)
            return [session.outputs(batch) for batch in batches]

    def _flags(self) -> Flags:
        return flags_of(self.version())


class TrtexecSession:
    """An engine that every run loads again."""

    def __init__(self, engine: Path, name: str, flags: Flags) -> None:
        self._engine: Path | None = engine
        self._name, self._flags = name, flags

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output float32 for `batch`. Raises DeviceError."""
        outputs = list(self.outputs(batch).values())
        if len(outputs) != 1:
            raise DeviceError(f"{PROGRAM} runs another engine", expected="one output", found=f"{len(outputs)} outputs")
        return outputs[0]

    def outputs(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output float32, by its name. Raises DeviceError."""
        import numpy as np

        if self._engine is None:
            raise DeviceError(f"the {PROGRAM} session is closed", fix="load the engine again")
        with _folder() as folder:
            source, target = folder / "input.bin", folder / "output.json"
            source.write_bytes(batch.tobytes())
            command = self._flags.infer(self._engine, self._name, source, target)
            _run([str(_required_program()), *command], "run an engine")
            try:
                return {
                    str(output["name"]): np.array(output["values"], np.float32).reshape(
                        [int(side) for side in re.findall(r"\d+", str(output["dimensions"]))]
                    )
                    for output in _json(target)
                }
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise DeviceError(f"{PROGRAM} does not report its outputs", found=str(error)) from error

    def scratch_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._engine = None


def _program() -> Path | None:
    path = next(filter(None, (shutil.which(PROGRAM, path=each) for each in (None, *FOLDERS))), None)
    return Path(path) if path else None


def _required_program() -> Path:
    program = _program()
    if program is None:
        raise DeviceError(f"{PROGRAM} is not here", expected=f"it in PATH or {', '.join(FOLDERS)}")
    return program


@lru_cache(maxsize=4)
def _version(program: Path) -> str:
    """Return the version of JetPack's libraries beside JetPack's program, else the one in the program's banner.

    The banner has `[TensorRT v8502]` or `[TensorRT v100300]`. Raises DeviceError where it has neither.
    """
    if str(program.parent) in FOLDERS:
        installed = {path.name.partition(".so.")[2] for path in Path("/").glob(LIBRARIES)}
        if len(installed) == 1:  # starting the program takes as long as loading TensorRT
            return installed.pop()
    done = _start([str(program), "--help"])
    banner = _BANNER.search(done.stdout + done.stderr)
    if not banner:
        raise DeviceError(f"{program} does not report its version", expected="[TensorRT v8502] or the like")
    number = int(banner["number"])
    step = 10_000 if number >= 100_000 else 1000  # NV_TENSORRT_VERSION was widened with 10
    return f"{number // step}.{number % step // 100}.{number % 100}"


def _build(command: Sequence[str], engine: Path) -> BuilderLog:
    """Build an engine; return the builder's log. Raises BuildFailedError, DeviceError."""
    done = _start(command)
    log = _log_of(done.stdout + done.stderr)
    if done.returncode or not engine.is_file():
        if not log.errors:
            log.add(ERROR, f"exit code {done.returncode}, and no engine, of: {' '.join(command)}")
        raise build_failure(PROGRAM, log)
    return log


def _log_of(printed: str) -> BuilderLog:
    """Return the warnings and errors in the printed lines, such as `[date] [E] [TRT] message`."""
    log = BuilderLog()
    for line in printed.splitlines():
        for severity in (WARNING, ERROR):
            if f"[{severity}]" in line:
                log.add(severity, re.sub(r"^(\[[^]]*\] )+", "", line.strip()))
    return log


def _run(command: Sequence[str], what: str) -> None:
    """Run the program to do `what`. Raises DeviceError with its first error."""
    done = _start(command)
    if done.returncode:
        cause = _log_of(done.stdout + done.stderr).cause or f"exit code {done.returncode}"
        raise DeviceError(f"{PROGRAM} cannot {what}", found=cause, fix=f"see what `{' '.join(command)}` prints")


def _start(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{PROGRAM} took more than {TIMEOUT_S:.0f} seconds", fix="close other programs") from error
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started", found=error.strerror or str(error)) from error


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="edgekd-") as folder:
        yield Path(folder)


def _copied_cache(cache: Path | None, folder: Path) -> Path | None:
    """Copy the timing cache for the program to write to: a power cut must not leave half of one."""
    if cache is None:
        return None
    copy = folder / "timing.cache"
    if cache.is_file():
        copy.write_bytes(cache.read_bytes())
    return copy


def _keep_cache(copy: Path | None, cache: Path | None) -> None:
    if copy is not None and cache is not None and copy.is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_file(cache, copy.read_bytes())


def _profile_times(profile: Path) -> dict[str, float]:
    """Return milliseconds by layer in an exported profile, whose first entry counts the runs; empty without a file."""
    if not profile.is_file():
        return {}
    times: dict[str, float] = {}
    for each in _json(profile):
        if isinstance(each, dict) and "name" in each:
            times[str(each["name"])] = times.get(str(each["name"]), 0.0) + float(each.get("averageMs", 0))
    return times


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8", "replace"))
