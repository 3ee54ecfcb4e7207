"""Break connections to a camera at random moments, and check processes left there and the result of the next run.

The camera is an OpenSSH server on the loopback interface behind a slow proxy. No process may keep running there, and
the repeated command must end like an undisturbed run. Make the bundle with `edgekd demo`.
"""

import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, without_folders
from frame import Blocks, Document, Given, Option, Result, head, main, table, yes

sys.path.insert(0, str(HERE.parent / "tests"))
from loopback import Loopback, loopback
from wire import Wire, wire_to

from edgekd.agent.runtimes import select_runtime
from edgekd.core.bundle.archive import MANIFEST
from edgekd.core.bundle.manifest import from_json
from edgekd.core.canonical import file_sha256
from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.detection.types import spec_from_json
from edgekd.core.errors import DeviceError
from edgekd.core.progress import SilentProgress
from edgekd.deploy.devices.ssh import SshDevice, parse
from edgekd.deploy.engine import UPLOAD, EngineJob
from edgekd.deploy.engine import run as run_engine

STEPS = ("upload", "build", "bench")
SEED = 0
SILENCE_S, KEEPALIVE_S = 3.0, 0.5
BYTES_PER_S = 1e6
TIMED_S = 2.0
QUIET_S = 10.0


class Breaking(SilentProgress):
    """Calls `act`, which breaks the connection, some seconds after a step begins."""

    def __init__(self, step: str, after_s: float, act: Any) -> None:
        self._step, self._timer = step, threading.Timer(after_s, act)

    def note(self, text: str) -> None:
        if text.startswith(f"{self._step} on "):
            self._timer.start()

    def stop(self) -> None:
        """Cancel the break, if it has not happened yet."""
        self._timer.cancel()


@dataclass(frozen=True)
class Bench:
    """A camera, a bundle for it, and the name of the runtime there."""

    camera: Loopback
    bundle: Path
    scratch: Path
    runtime: str

    def job(self, wire: Wire, state: Path) -> EngineJob:
        """Return the job that installs the bundle over a wire into a state folder."""
        name = self.camera.address(wire.port)
        device = SshDevice(name, parse(name), silence_s=SILENCE_S, keepalive_s=KEEPALIVE_S)
        return EngineJob(self.bundle, device, self.runtime, True, str(state), iterations=10, seconds=TIMED_S)

    def undisturbed(self, state: Path) -> tuple[dict[str, Any], int]:
        """Run over a new wire. Return the result, and the bytes sent."""
        with wire_to(self.camera.port, BYTES_PER_S) as wire:
            return asdict(run_engine(self.job(wire, state))), wire.sent_bytes

    def kill(self, index: int, rng: random.Random, reference: Mapping[str, Any], crossed: int) -> dict[str, Any]:
        """Break a connection, check the camera, and run again. Return the row.

        `at`: share of the step before the break; `quiet_s`: seconds from the host's error until no process ran on the
        camera; `left`: processes still running; `kept_bytes`: bytes of bundle and agent on the camera then;
        `sent_bytes`: bytes of them that the second run sends; `again_bytes`: bytes sent by both runs beyond those of an
        undisturbed run.
        """
        step, at, way = STEPS[index % len(STEPS)], rng.uniform(0.02, 0.95), rng.choice(("reset", "silent"))
        state = self.scratch / f"kill{index}"
        with wire_to(self.camera.port, BYTES_PER_S) as wire:
            act = wire.cut if way == "reset" else wire.go_dead
            seconds = next(each["seconds"] for each in reference["steps"] if each["name"] == step)
            progress = Breaking(step, at * seconds, act)
            if step == "upload":
                wire.after(int(at * reference["upload"]["bytes"]), act)
            try:
                run_engine(self.job(wire, state), progress)
                raise SystemExit(f"kill {index}: the run ended before its connection broke")
            except DeviceError as broken:
                error, began = without_folders(str(broken), self.scratch), time.perf_counter()
            finally:
                progress.stop()
            left = self.camera.quiet(QUIET_S)
            quiet_s, first = time.perf_counter() - began, wire.sent_bytes
        kept = sum(path.stat().st_size for path in (state / UPLOAD).iterdir()) if (state / UPLOAD).is_dir() else 0
        again, second = self.undisturbed(state)
        return {
            "step": step,
            "at": round(at, 3),
            "way": way,
            "error": error.split(": ", 1)[1].split(";")[0],
            "quiet_s": round(quiet_s, 2),
            "left": left + self.camera.quiet(QUIET_S),
            "kept_bytes": kept,
            "sent_bytes": again["upload"]["sent_bytes"],
            "again_bytes": max(first + second - crossed, 0),
            "identical": outcome(again) == outcome(reference),
        }


def outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal in two installations of one bundle on one camera, including a hash of the output.

    The engine's file is not compared: ONNX Runtime writes it in a different order each time.
    """
    parts = {name: result[name] for name in ("identity", "fits", "basis", "runtime", "self_test", "activated")}
    parts |= {name: result["engine"][name] for name in ("slot", "key", "bytes", "layers")}
    file = Path(result["engine"]["file"])
    slot = file.parents[2]
    spec = spec_from_json(from_json((slot / "bundle" / MANIFEST).read_bytes()).detector)
    size = (spec.preprocess.height, spec.preprocess.width, 3)
    frame = np.random.default_rng(SEED).integers(0, 256, size, np.uint8)
    runtime = select_runtime(result["runtime"]["name"])
    assert runtime
    with closing(runtime.load(file)) as session:
        output = session.run(to_tensor(frame, spec.preprocess))
    return {**parts, "graph": file_sha256(slot / "graph.onnx"), "output": hashlib.sha256(output.tobytes()).hexdigest()}


def page(found: Document) -> Blocks:
    yield from head("Connections that break", found)
    yield f"""\
Bundle and agent have {found.bytes:,} bytes; an undisturbed run sends {found.crossed_bytes:,} through
its connection, at {found.bytes_per_s / 1e6:g} MB/s. *Kept* is what the camera has of them when all is
quiet there, *again* what both runs send beyond an undisturbed one, a second login included. A *silent*
connection is one that nothing comes through any more; here the camera waits
{found.silence_s:g} s for a sign of life, 30 s by default. *Quiet after* counts from when the host knows."""
    yield table(
        "broken in | how | quiet after, s | left running | kept, bytes | sent by the next run | again | as undisturbed",
        (
            f"{kill.step}, {kill.at:.0%} | {kill.way} | {kill.quiet_s:.2f} | {len(kill.left)} | {kill.kept_bytes:,} | "
            f"{kill.sent_bytes:,} | {kill.again_bytes:,} | {yes(kill.identical, 'NO')}"
            for kill in found.kills
        ),
    )
    yield f"""\
*As undisturbed*: the same bundle in service in the same slot, the same graph, an engine with the same output
for a random frame, bit for bit, and the same errors in the self-test, by
{found.runtime.name} {found.runtime.version} on the camera."""


def packages() -> list[Path]:
    return [Path(folder) for folder in sys.path if folder.endswith("site-packages")]


def run(given: Given) -> Result:
    rng = random.Random(SEED)
    with loopback(given.scratch / "camera", given.python, given.packages) as camera:
        os.environ["HOME"] = str(camera.home)
        os.environ.pop("SSH_AUTH_SOCK", None)
        bench = Bench(camera, given.bundle, given.scratch, given.runtime)
        reference, crossed = bench.undisturbed(given.scratch / "undisturbed")
        kills = [bench.kill(index, rng, reference, crossed) for index in range(given.kills)]
    return {
        "bytes": reference["upload"]["bytes"],
        "crossed_bytes": crossed,
        "bytes_per_s": BYTES_PER_S,
        "silence_s": SILENCE_S,
        "keepalive_s": KEEPALIVE_S,
        "runtime": reference["runtime"],
        "steps": reference["steps"],
        "kills": kills,
    }


def resumed(found: Document) -> bool:
    """Return whether no process was left, every upload was resumed, and all results are the same."""
    return all(
        kill.identical and not kill.left and kill.sent_bytes + kill.kept_bytes == found.bytes for kill in found.kills
    )


if __name__ == "__main__":
    options = (
        Option("bundle", type=Path),
        Option("--kills", 20),
        Option("--runtime", "onnxruntime"),
        Option("--python", os.path.realpath(sys.executable), "the camera's interpreter"),
        Option("--packages", packages(), "where that finds NumPy", type=Path),
    )
    main(run, page, *options, holds=resumed, cores=1)
