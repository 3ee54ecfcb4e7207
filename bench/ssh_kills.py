"""What a connection that breaks at a random moment leaves on a camera, and what the next run makes of it.

The camera is OpenSSH's server on the loopback interface, as in the tests, behind a wire of limited speed. The
connection is broken at `--kills` moments, drawn with a seed, of the upload, the build and the timing, each time into an
empty state: reset, or silent from then on. Then nothing may go on running there, and the same command again has to end
with what a run that nobody disturbed ends with.

    edgekd demo
    python bench/ssh_kills.py runs/demo/detector-xavier.edgekd
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, RESULTS, conditions, conditions_lines, table, use_cores, without_folders, write_results

sys.path.insert(0, str(HERE.parent / "tests"))
from loopback import Loopback, loopback
from wire import Wire, wire_to

from edgekd.agent.runtimes import chosen
from edgekd.core.bundle.archive import MANIFEST
from edgekd.core.bundle.manifest import from_json
from edgekd.core.canonical import file_sha256
from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.detection.types import spec_from_json
from edgekd.core.errors import DeviceError
from edgekd.core.progress import SilentProgress
from edgekd.deploy.devices.ssh import SshDevice, parse
from edgekd.deploy.engine import UPLOAD, EngineJob, run

STEPS = ("upload", "build", "bench")
SEED = 0
SILENCE_S, KEEPALIVE_S = 3.0, 0.5
BYTES_PER_S = 1e6
TIMED_S = 2.0
QUIET_S = 10.0


@dataclass(frozen=True)
class Kill:
    """One broken connection.

    at: how far into the step, as a share; way: `reset` or `silent`; quiet_s: until nothing ran on the camera any more,
    counted from when the host knew; kept_bytes: of bundle and agent on the camera then; again_bytes: what crossed the
    wire in both runs beyond what an undisturbed one sends; left: what still ran.
    """

    step: str
    at: float
    way: str
    error: str
    quiet_s: float
    left: list[str]
    kept_bytes: int
    sent_bytes: int
    again_bytes: int
    identical: bool


class Breaking(SilentProgress):
    """Breaks the wire some seconds after a step begins."""

    def __init__(self, step: str, after_s: float, act: Any) -> None:
        self._step, self._timer = step, threading.Timer(after_s, act)

    def note(self, text: str) -> None:
        if text.startswith(f"{self._step} on "):
            self._timer.start()

    def stop(self) -> None:
        """Leave it whole, where the step is over already."""
        self._timer.cancel()


@dataclass(frozen=True)
class Bench:
    """A camera, a bundle for it, and what a run without disturbance gave."""

    camera: Loopback
    bundle: Path
    scratch: Path
    runtime: str

    def job(self, wire: Wire, state: Path) -> EngineJob:
        """The bundle over a wire into a state."""
        name = self.camera.address(wire.port)
        device = SshDevice(name, parse(name), silence_s=SILENCE_S, keepalive_s=KEEPALIVE_S)
        return EngineJob(self.bundle, device, self.runtime, True, str(state), iterations=10, seconds=TIMED_S)

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        """A new wire to the camera."""
        with wire_to(self.camera.port, BYTES_PER_S) as wire:
            yield wire

    def undisturbed(self) -> tuple[dict[str, Any], int]:
        """The result of a run, and what crossed the wire."""
        state = self.scratch / "undisturbed"
        with self.wire() as wire:
            return run(self.job(wire, state)), wire.sent_bytes

    def kill(self, index: int, rng: random.Random, reference: Mapping[str, Any], crossed: int) -> Kill:
        """Break one connection, look at what is left, and run again."""
        step, at, way = STEPS[index % len(STEPS)], rng.uniform(0.02, 0.95), rng.choice(("reset", "silent"))
        state = self.scratch / f"kill{index}"
        with self.wire() as wire:
            act = wire.cut if way == "reset" else wire.go_dead
            seconds = next(each["seconds"] for each in reference["steps"] if each["name"] == step)
            progress = Breaking(step, at * seconds, act)
            if step == "upload":
                wire.after(int(at * reference["upload"]["bytes"]), act)
            try:
                run(self.job(wire, state), progress)
                raise SystemExit(f"kill {index}: the run ended before its connection broke")
            except DeviceError as broken:
                error, began = without_folders(str(broken), self.scratch), time.perf_counter()
            finally:
                progress.stop()
            left = self.camera.quiet(QUIET_S)
            quiet_s, first = time.perf_counter() - began, wire.sent_bytes
        kept = sum(path.stat().st_size for path in (state / UPLOAD).iterdir()) if (state / UPLOAD).is_dir() else 0
        with self.wire() as wire:
            again = run(self.job(wire, state))
            second = wire.sent_bytes
        return Kill(
            step=step,
            at=round(at, 3),
            way=way,
            error=error.split(": ", 1)[1].split(";")[0],
            quiet_s=round(quiet_s, 2),
            left=left + self.camera.quiet(QUIET_S),
            kept_bytes=kept,
            sent_bytes=again["upload"]["sent_bytes"],
            again_bytes=max(first + second - crossed, 0),
            identical=outcome(again) == outcome(reference),
        )


def outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    """What two installations of one bundle on one camera have in common, to the last bit of the engine's output.

    ONNX Runtime writes the same engine in another order each time, so its file is no part of that.
    """
    told = {name: result[name] for name in ("identity", "fits", "basis", "runtime", "self_test", "activated")}
    engine = {name: result["engine"][name] for name in ("slot", "key", "bytes", "layers")}
    file = Path(result["engine"]["file"])
    slot = file.parents[2]
    spec = spec_from_json(from_json((slot / "bundle" / MANIFEST).read_bytes()).detector)
    size = (spec.preprocess.height, spec.preprocess.width, 3)
    frame = np.random.default_rng(SEED).integers(0, 256, size, np.uint8)
    runtime = chosen(result["runtime"]["name"])
    assert runtime
    with closing(runtime.load(file)) as session:
        output = session.run(to_tensor(frame, spec.preprocess))
    digests = {"graph": file_sha256(slot / "graph.onnx"), "output": hashlib.sha256(output.tobytes()).hexdigest()}
    return {**told, **engine, **digests}


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [
            f"{kill['step']}, {kill['at']:.0%}",
            kill["way"],
            f"{kill['quiet_s']:.2f}",
            str(len(kill["left"])),
            f"{kill['kept_bytes']:,}",
            f"{kill['sent_bytes']:,}",
            f"{kill['again_bytes']:,}",
            "yes" if kill["identical"] else "NO",
        ]
        for kill in found["kills"]
    ]
    header = ["broken in", "how", "quiet after, s", "left running", "kept, bytes", "sent by the next run", "again"]
    return [
        "# Connections that break",
        "",
        f"`{found['command']}`",
        "",
        f"Bundle and agent have {found['bytes']:,} bytes; an undisturbed run sends {found['crossed_bytes']:,} through",
        f"its connection, at {found['bytes_per_s'] / 1e6:g} MB/s. *Kept* is what the camera has of them when all is",
        "quiet there, *again* what both runs send beyond an undisturbed one, a second login included. A *silent*",
        "connection is one that nothing comes through any more; here the camera waits",
        f"{found['silence_s']:g} s for a sign of life, 30 s by default. *Quiet after* counts from when the host knows.",
        "",
        *table([*header, "as undisturbed"], rows),
        "",
        "*As undisturbed*: the same bundle in service in the same slot, the same graph, an engine with the same output",
        "for a random frame, bit for bit, and the same errors in the self-test, by",
        f"{found['runtime']['name']} {found['runtime']['version']} on the camera.",
        "",
        *conditions_lines(found),
    ]


def packages() -> list[Path]:
    """Where this Python finds its packages."""
    return [Path(folder) for folder in sys.path if folder.endswith("site-packages")]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing was left running, everything was resumed and all results are the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--python", default=os.path.realpath(sys.executable), help="the camera's interpreter")
    parser.add_argument("--packages", type=Path, nargs="+", default=packages(), help="where that finds NumPy")
    parser.add_argument("--out", type=Path, default=RESULTS / "ssh_kills.json")
    given = parser.parse_args(arguments)
    use_cores(1)
    now = conditions(threads=1)
    rng = random.Random(SEED)
    with (
        tempfile.TemporaryDirectory(prefix="edgekd-") as scratch,
        loopback(Path(scratch, "camera"), given.python, given.packages) as camera,
    ):
        os.environ["HOME"] = str(camera.home)
        os.environ.pop("SSH_AUTH_SOCK", None)
        bench = Bench(camera, given.bundle, Path(scratch), given.runtime)
        reference, crossed = bench.undisturbed()
        kills = [bench.kill(index, rng, reference, crossed) for index in range(given.kills)]
    found = {
        "question": "what does a connection that breaks leave on a camera, and what does the next run make of it?",
        "command": f"python bench/ssh_kills.py {given.bundle.name} --kills {given.kills} --runtime {given.runtime}",
        "seed": SEED,
        "bytes": reference["upload"]["bytes"],
        "crossed_bytes": crossed,
        "bytes_per_s": BYTES_PER_S,
        "silence_s": SILENCE_S,
        "keepalive_s": KEEPALIVE_S,
        "runtime": reference["runtime"],
        "steps": reference["steps"],
        "kills": [asdict(kill) for kill in kills],
        **now,
    }
    write_results(given.out, found, page(found))
    resumed = all(kill.sent_bytes + kill.kept_bytes == found["bytes"] for kill in kills)
    return 0 if resumed and all(kill.identical and not kill.left for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
