"""Measure the agent's size and start time, and how long it takes for a bundle of 12 MB on one core.

The graph has random INT8 weights in fp4x, the format that expands the most. Each command runs in its own process,
interleaved with an interpreter that does nothing and one that imports NumPy.

With `--bundles` (bundles of real builds) it measures instead the peak memory of commands and of serving, and the disk
space of one model, of its update and of a second model. Engines are those of ONNX Runtime.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bundles import AGENT_BYTES, packed_noise, write_with_agent
from common import durations, summary_s
from frame import Blocks, Document, Given, Option, Result, head, main, table

from edgekd.commands.pack import pack
from edgekd.deploy.agent_zipapp import NAME, agent_modules

BUNDLE_BYTES = 12_000_000
RUNTIME = "onnxruntime"
MODEL = "second"
PEAK = """import runpy, sys
report, sys.argv = sys.argv[1], sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    open(report, "w").write(peak)
"""
"""Script that runs a program and writes its peak resident memory in KiB to a file."""
SERVE = """import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from edgekd.agent.serving import Served
with Served(sys.argv[2]) as served:
    for _ in range(20):
        served.detect(np.zeros((1080, 1920, 3), np.uint8))
"""
LIMITS = {"bytes": AGENT_BYTES, "start_s": 0.3, "verify_and_unpack_s": 5.0}


def write_bundle(folder: Path) -> Path:
    return write_with_agent(folder, "weights", packed_noise(BUNDLE_BYTES))


def tasks(agent: Path, bundle: Path, state: Path) -> dict[str, tuple[str, ...]]:
    """Return the interpreter's arguments by task name."""
    return {
        "interpreter": ("-c", "pass"),
        "import numpy": ("-c", "import numpy"),
        "status": (str(agent), "status", "--state", str(state / "none"), "--runtime", "null"),
        "verify": (str(agent), "verify", str(bundle)),
        "unpack": (str(agent), "unpack", str(bundle), "--state", str(state)),
    }


def measure(pythons: Sequence[str], agent: Path, bundle: Path, state: Path, rounds: int) -> dict[str, Any]:
    """Time every task with every interpreter, interleaved. Return the summaries by interpreter and task."""
    works = tasks(agent, bundle, state)
    samples: dict[tuple[str, str], list[float]] = {(python, name): [] for python in pythons for name in works}
    for _ in range(rounds):
        for (python, name), seconds in samples.items():
            shutil.rmtree(state, ignore_errors=True)
            command = [python, *works[name]]
            seconds += durations(partial(subprocess.run, command, stdout=subprocess.PIPE, check=True), 1)
    found: dict[str, Any] = {}
    for (python, name), seconds in samples.items():
        found.setdefault(versions(python), {})[name] = summary_s(seconds)
    return found


def peak_mb(python: str, *command: object, scratch: Path) -> float:
    """Run a program and return its peak resident memory in 10^6 bytes. Raises CalledProcessError."""
    report = scratch / "peak"
    words = [python, "-c", PEAK, *map(str, (report, *command))]
    subprocess.run(words, stdout=subprocess.PIPE, check=True)
    return round(int(report.read_text("ascii")) * 1024 / 1e6, 1)


def disk_bytes(folder: Path) -> int:
    """Return the allocated disk space below a folder in bytes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def resources(python: str, source: Path, agent: Path, scratch: Path) -> Result:
    """Install a bundle, its update and a second model. Return the memory of commands and the disk space after each."""
    state, serve = scratch / f"state of {source.stem}", scratch / "serve.py"
    serve.write_text(SERVE, "utf-8")
    bundle, update = scratch / "slim.edgekd", scratch / "update.edgekd"
    for counter, out in enumerate((bundle, update), 1):
        pack(source, out, version_counter=counter, slim=True)
    peak, options = partial(peak_mb, python, scratch=scratch), ("--state", state, "--runtime", RUNTIME, "--tries", 0)
    peaks = {"verify": peak(agent, "verify", bundle), "install": peak(agent, "install", bundle, *options)}
    graph, engine = (state / "active" / name for name in ("graph.onnx", "engine/model.engine"))
    sizes = {"bundle": bundle.stat().st_size, "graph": graph.stat().st_size, "engine": engine.stat().st_size}
    disk = {"one bundle": disk_bytes(state)}
    peaks["serve"] = peak(serve, agent, state)
    subprocess.run([python, agent, "install", update, *map(str, options)], stdout=subprocess.PIPE, check=True)
    disk["two slots"] = disk_bytes(state)
    for each in (bundle, update):
        words = [python, agent, "install", each, *map(str, options), "--model", MODEL]
        subprocess.run(words, stdout=subprocess.PIPE, check=True)
    disk["two models"] = disk_bytes(state)
    return {"bundle": source.stem, "bytes": sizes, "peak_mb": peaks, "disk": disk}


def versions(python: str) -> str:
    script = "import platform, numpy; print(f'Python {platform.python_version()}, NumPy {numpy.__version__}')"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def resources_page(found: Document) -> Blocks:
    yield from head("The agent: memory and disk", found)
    yield (
        f"Slim bundles, engines of `{RUNTIME}`. Memory is the largest resident set of the process, in MB; `serve` "
        "detects objects in 20 frames of 1920 x 1080 pixels by `Served`. Disk is that of the state folder, in MB."
    )
    yield table(
        "bundle | its MB | graph | engine | memory: verify | install | serve | "
        "disk: one bundle | two slots | two models | 2 n (bundle + graph + engine), n = 2",
        (
            " | ".join(
                [row.bundle]
                + [f"{row.bytes[name] / 1e6:.1f}" for name in ("bundle", "graph", "engine")]
                + [f"{row.peak_mb[name]:.0f}" for name in ("verify", "install", "serve")]
                + [f"{size / 1e6:.1f}" for size in row.disk.values()]
                + [f"{4 * sum(row.bytes.values()) / 1e6:.1f}"]
            )
            for row in found.resources
        ),
    )
    yield f"An interpreter that imports NumPy takes {found.numpy_mb:.0f} MB."


def page(found: Document) -> Blocks:
    if "resources" in found:
        yield from resources_page(found)
        return
    yield from head("The agent: size, start, and a bundle of 12 MB", found)
    yield (
        f"The agent has {found.bytes:,} bytes (limit {LIMITS['bytes']:,}) and {found.modules} modules.\n"
        f"The bundle has {found.bundle_bytes / 1e6:.2f} MB, its graph {found.graph_bytes / 1e6:.2f} MB in fp4x. "
        f"One core; {found.rounds} rounds."
    )
    yield table(
        " | process | median, s | 90th percentile | best",
        (
            f"{name} | {task} | {row.p50_s:.3f} | {row.p90_s:.3f} | {row.min_s:.3f}"
            for name, rows in found.seconds.items()
            for task, row in rows.items()
        ),
    )
    yield (
        f"Limits, by medians: `status` {LIMITS['start_s']} s; `verify` and `unpack` together "
        f"{LIMITS['verify_and_unpack_s']} s. `unpack` includes flushing all of it to the disk."
    )


def within(found: Document) -> bool:
    if "resources" in found:
        return True
    return found.bytes <= LIMITS["bytes"] and all(
        rows.status.p50_s <= LIMITS["start_s"]
        and rows.verify.p50_s + rows.unpack.p50_s <= LIMITS["verify_and_unpack_s"]
        for rows in found.seconds.values()
    )


def run(given: Given) -> Result:
    bundle, agent = write_bundle(given.scratch), given.scratch / NAME
    if given.bundles:
        python, empty = given.python[0], given.scratch / "empty.py"
        empty.write_text("import numpy", "utf-8")
        rows = [resources(python, each, agent, given.scratch) for each in given.bundles]
        return {"resources": rows, "numpy_mb": peak_mb(python, empty, scratch=given.scratch)}
    return {
        "bytes": agent.stat().st_size,
        "modules": len(agent_modules()),
        "bundle_bytes": bundle.stat().st_size,
        "graph_bytes": (given.scratch / "graph.packed").stat().st_size,
        "seconds": measure(given.python, agent, bundle, given.scratch / "state", given.rounds),
    }


if __name__ == "__main__":
    options = (
        Option("--python", [sys.executable], "interpreters with NumPy"),
        Option("--rounds", 15),
        Option("--bundles", [], "builds whose memory and disk are measured", type=Path),
    )
    main(run, page, *options, holds=within, cores=1)
