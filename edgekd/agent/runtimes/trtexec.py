"""TensorRT through its program `trtexec`, where there are no bindings for this Python.

It builds an engine, times it, and runs one input at a time, each from its command line and a few files. Every run loads
the engine again, so a self-test takes seconds, and only trtexec's own numbers tell what the engine takes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes.builder_log import ERROR, WARNING, BuilderLog, build_failure
from edgekd.agent.runtimes.types import FLOAT, Inspection, Layer, Made, Wish
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.trtexec_flags import Flags
    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.slots import Slot

PROGRAM = "trtexec"
FOLDERS = ("/usr/src/tensorrt/bin",)
"""Where it lies besides PATH: JetPack puts it there."""
LIBRARIES = "usr/lib/*-linux-gnu/libnvinfer.so.*.*.*"
"""Below the root, TensorRT as JetPack installs it: with its version in the name."""
PATIENCE_S = 7200.0
"""After so many seconds it is ended: the largest builds take an hour on the smallest boards."""
_BANNER = re.compile(r"TensorRT v(?P<number>\d{4,6})")
_RECORD = "engine.json"


class Trtexec:
    """TensorRT's program."""

    name = PROGRAM

    def version(self) -> str:
        """The version in the first line that it prints. Raises DeviceError."""
        return _version(_required_program())

    def problem(self) -> str | None:
        """Usable where the program is there."""
        return None if _program() else f"{PROGRAM} is neither in PATH nor in {', '.join(FOLDERS)}"

    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        """Write the engine; the command is in the record. Raises DeviceError."""
        from edgekd.agent.runtimes import networks
        from edgekd.agent.runtimes.tensorrt_builder import LEVEL, workspace_bytes
        from edgekd.agent.runtimes.tensorrt_generations import generation

        flags, workspace = self._flags(), workspace_bytes(wish.memory_bytes)
        with networks.scratch_folder(engine) as folder:
            keep = generation(self.version()).int8_constants
            network = networks.network(slot, wish, folder, int8_constants=keep)
            allowed = flags.precisions(network.quantized)
            timings = _copied_cache(wish.cache, folder)
            command = [str(_required_program()), *flags.build(network.path, engine, workspace, LEVEL, allowed, timings)]
            log = _built(command, engine)
            _keep_cache(timings, wish.cache)
        precision = "graph" if wish.source != FLOAT else "fp16" if allowed else network.float_type
        more = {"command": " ".join(command), "input": networks.input_name(slot.graph), "workspace_bytes": workspace}
        return Made(precision, ("fp32", *allowed) if allowed else (), more={**more, "log": log.lines})

    def load(self, engine: Path) -> TrtexecSession:
        """What runs an engine that was built here. Raises DeviceError where its record does not name the input."""
        try:
            name = json.loads(engine.with_name(_RECORD).read_bytes().decode("utf-8"))["input"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DeviceError(
                f"{engine.with_name(_RECORD)}: does not say what the input is called",
                found=str(error),
                fix="build it again",
            ) from error
        return TrtexecSession(engine, str(name), self._flags())

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """What it exports of the engine's layers and of a profiled run. Raises DeviceError."""
        from edgekd.agent.runtimes.precision import layers_of

        raw = self.inspect(engine)
        try:
            return layers_of(raw.layers, raw.times_ms)
        except ValueError as error:
            raise DeviceError(f"{PROGRAM} does not say what is in the engine", found=str(error)) from error

    def inspect(self, engine: Path) -> Inspection:
        """Return the layers and the profile that it exports. Raises DeviceError."""
        with _folder() as folder:
            layers, profile = folder / "layers.json", folder / "profile.json"
            _run([str(_required_program()), *self._flags().inspect(engine, layers, profile)], "inspect an engine")
            try:
                return Inspection(layers.read_text("utf-8", "replace"), _profile_times(profile))
            except (OSError, ValueError) as error:
                raise DeviceError(f"{PROGRAM} does not say what is in the engine", found=str(error)) from error

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Seconds of each run: what the GPU takes for the input to come, the engine, and the output to go."""
        from edgekd.agent.runtimes.trtexec_flags import WARM_UP_MS

        with _folder() as folder:
            exported = folder / "times.json"
            command = self._flags().bench(engine, iterations, seconds, exported)
            _run([str(_required_program()), *command], "time an engine")
            try:
                # Some versions also export the runs that only warm up.
                kept = [each for each in _json(exported) if each.get("startComputeMs", WARM_UP_MS) >= WARM_UP_MS]
                found = [float(each["latencyMs"]) / 1000 for each in kept]
            except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
                raise DeviceError(f"{PROGRAM} does not say how long it took", found=str(error)) from error
        if not found:
            raise DeviceError(f"{PROGRAM} timed no run", fix="more --seconds")
        return found

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """What an engine with these outputs gives: another one, in which less is fused. Raises DeviceError."""
        from edgekd.agent.runtimes import networks
        from edgekd.agent.runtimes.tensorrt_builder import LEVEL, workspace_bytes
        from edgekd.agent.runtimes.tensorrt_generations import generation

        flags = self._flags()
        with _folder() as folder:
            engine = folder / "model.engine"
            keep = generation(self.version()).int8_constants
            graph = networks.inner_network(onnx, folder, int8_constants=keep)
            told = flags.build(graph, engine, workspace_bytes(None), LEVEL, flags.precisions(quantized), None)
            _run([str(_required_program()), *told], "build an engine of the network with its inner tensors")
            session = TrtexecSession(engine, networks.input_name(graph), flags)
            return [session.outputs(batch) for batch in batches]

    def clock(self) -> float:
        """This machine's monotonic high-resolution clock."""
        return time.perf_counter()

    def _flags(self) -> Flags:
        from edgekd.agent.runtimes.trtexec_flags import flags_of

        return flags_of(self.version())


class TrtexecSession:
    """An engine that is loaded for every run."""

    def __init__(self, engine: Path, name: str, flags: Flags) -> None:
        self._engine: Path | None = engine
        self._name, self._flags = name, flags

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output float32 for `batch`. Raises DeviceError."""
        found = list(self.outputs(batch).values())
        if len(found) != 1:
            raise DeviceError(f"{PROGRAM} runs another engine", expected="one output", found=f"{len(found)} outputs")
        return found[0]

    def outputs(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Every output float32, by its name. Raises DeviceError."""
        import numpy as np

        if self._engine is None:
            raise DeviceError(f"the {PROGRAM} session is closed", fix="load the engine again")
        with _folder() as folder:
            given, taken = folder / "input.bin", folder / "output.json"
            given.write_bytes(np.ascontiguousarray(batch, np.float32).tobytes())
            command = self._flags.infer(self._engine, self._name, given, taken)
            _run([str(_required_program()), *command], "run an engine")
            try:
                return {
                    str(output["name"]): np.array(output["values"], np.float32).reshape(
                        [int(side) for side in re.findall(r"\d+", str(output["dimensions"]))]
                    )
                    for output in _json(taken)
                }
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise DeviceError(f"{PROGRAM} does not say what it computed", found=str(error)) from error

    def scratch_bytes(self) -> int | None:
        """It does not say."""
        return None

    def close(self) -> None:
        """Forget the engine."""
        self._engine = None


def _program() -> Path | None:
    import shutil

    found = shutil.which(PROGRAM) or next(filter(None, (shutil.which(PROGRAM, path=each) for each in FOLDERS)), None)
    return Path(found) if found else None


def _required_program() -> Path:
    program = _program()
    if program is None:
        raise DeviceError(f"{PROGRAM} is not here", expected=f"it in PATH or {', '.join(FOLDERS)}")
    return program


@lru_cache(maxsize=4)
def _version(program: Path) -> str:
    """The version that is installed where JetPack's program is, else the one in the program's banner.

    That is `[TensorRT v8502]` or `[TensorRT v100300]`. Raises DeviceError where it has none.
    """
    if str(program.parent) in FOLDERS:
        installed = {path.name.partition(".so.")[2] for path in Path("/").glob(LIBRARIES)}
        if len(installed) == 1:  # asking the program takes as long as loading TensorRT
            return installed.pop()
    said = _started([str(program), "--help"])
    found = _BANNER.search(said.stdout + said.stderr)
    if not found:
        raise DeviceError(f"{program} does not say its version", expected="[TensorRT v8502] or the like")
    number = int(found["number"])
    step = 10_000 if number >= 100_000 else 1000  # NV_TENSORRT_VERSION was widened with 10
    return f"{number // step}.{number % step // 100}.{number % 100}"


def _built(command: Sequence[str], engine: Path) -> BuilderLog:
    """Build an engine; what the program warned of. Raises BuildFailedError, DeviceError."""
    done = _started(command)
    log = _log_of(done.stdout + done.stderr)
    if done.returncode or not engine.is_file():
        if not log.errors:
            log.add(ERROR, f"exit code {done.returncode}, and no engine, of: {' '.join(command)}")
        raise build_failure(PROGRAM, log)
    return log


def _log_of(printed: str) -> BuilderLog:
    """The warnings and errors among the lines that the program prints: `[date] [E] [TRT] message`."""
    log = BuilderLog()
    for line in printed.splitlines():
        for severity in (WARNING, ERROR):
            if f"[{severity}]" in line:
                log.add(severity, re.sub(r"^(\[[^]]*\] )+", "", line.strip()))
    return log


def _run(command: Sequence[str], what: str) -> None:
    """Raises DeviceError with what it complains about."""
    done = _started(command)
    if done.returncode:
        said = _log_of(done.stdout + done.stderr).cause or f"exit code {done.returncode}"
        raise DeviceError(f"{PROGRAM} cannot {what}", found=said, fix=f"see what `{' '.join(command)}` prints")


def _started(command: Sequence[str]) -> Any:
    import subprocess

    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{PROGRAM} took more than {PATIENCE_S:.0f} seconds", fix="close other programs") from error
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started", found=error.strerror or str(error)) from error


@contextmanager
def _folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        yield Path(folder)


def _copied_cache(cache: Path | None, folder: Path) -> Path | None:
    """A copy of the timing cache for it to work on: a power cut must not leave half of one."""
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
    """Milliseconds by layer in an exported profile, whose first entry counts the runs; empty where there is none."""
    if not profile.is_file():
        return {}
    found: dict[str, float] = {}
    for each in _json(profile):
        if isinstance(each, dict) and "name" in each:
            found[str(each["name"])] = found.get(str(each["name"]), 0.0) + float(each.get("averageMs", 0))
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8", "replace"))
