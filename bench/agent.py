"""What the agent weighs, how soon it answers, and how long it takes over a bundle of 12 MB on one core.

The bundle is made here: its graph has nothing but INT8 weights as fp4x stores them, drawn at random, which is the most
that there can be to expand in that many bytes. Each command is a process of its own, timed from its start to its last
byte, as are an interpreter that does nothing and one that imports NumPy; all take turns, so that a busy machine slows
all alike.

    python bench/agent.py [--python PYTHON ...]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bundles import manifest_of
from common import RESULTS, conditions, conditions_lines, table, use_cores, write_results
from onnx import helper, numpy_helper

from edgekd.core.bundle.archive import pack
from edgekd.core.formats import fp4x, packed_graph
from edgekd.deploy.agent_zipapp import NAME, agent_archive, agent_modules

BUNDLE_BYTES = 12_000_000
LIMITS = {"bytes": 225_000, "start_s": 0.3, "verify_and_unpack_s": 5.0}
SHAPE = (256, 256, 3, 3)
SEED = 0


@dataclass(frozen=True)
class Task:
    """One command line to be timed: its name, and what follows the interpreter."""

    name: str
    arguments: tuple[str, ...]


def random_codes(rng: np.random.Generator) -> np.ndarray:
    """INT8 codes of SHAPE that fp4x can store: every multiplier and every magnitude equally often."""
    count = int(np.prod(SHAPE))
    halves = np.array([2 * value for value in fp4x.MAGNITUDES], np.int8)
    blocks = rng.integers(1, fp4x.MULTIPLIERS + 1, count // fp4x.BLOCK).astype(np.int8)
    signs = rng.choice(np.array([-1, 1], np.int8), count)
    return (rng.choice(halves, count) * signs * blocks.repeat(fp4x.BLOCK)).reshape(SHAPE)


def write_bundle(folder: Path) -> Path:
    """A bundle of about BUNDLE_BYTES with the agent in it."""
    rng = np.random.default_rng(SEED)
    each = sum(fp4x.packed_bytes(SHAPE))
    tensors = [numpy_helper.from_array(random_codes(rng), f"w{index}") for index in range(-(-BUNDLE_BYTES // each))]
    graph = helper.make_graph([helper.make_node("Identity", ["w0"], ["y"])], "weights", [], [], tensors)
    content = helper.make_model(graph, producer_version=onnx.__version__).SerializeToString()
    sources = {NAME: folder / NAME, "graph.packed": folder / "graph.packed"}
    sources[NAME].write_bytes(agent_archive())
    sources["graph.packed"].write_bytes(packed_graph.pack(content))
    manifest = manifest_of("weights", sources, {NAME: "agent", "graph.packed": "graph"})
    pack(manifest, sources, folder / "weights.edgekd")
    return folder / "weights.edgekd"


def tasks(agent: Path, bundle: Path, state: Path) -> list[Task]:
    """What is timed; `unpack` each time into an empty state."""
    return [
        Task("interpreter", ("-c", "pass")),
        Task("import numpy", ("-c", "import numpy")),
        Task("status", (str(agent), "status", "--state", str(state / "none"), "--runtime", "null")),
        Task("verify", (str(agent), "verify", str(bundle))),
        Task("unpack", (str(agent), "unpack", str(bundle), "--state", str(state))),
    ]


def once(python: str, task: Task, state: Path) -> float:
    """Seconds of wall time of one process."""
    shutil.rmtree(state, ignore_errors=True)
    began = time.perf_counter()
    done = subprocess.run([python, *task.arguments], stdout=subprocess.PIPE)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{task.name} failed: {done.stdout.decode()}")
    return seconds


def measure(pythons: Sequence[str], agent: Path, bundle: Path, state: Path, rounds: int) -> dict[str, Any]:
    """For each interpreter and task the median, 90th percentile and best of `rounds`, in turns."""
    asked = tasks(agent, bundle, state)
    seen: dict[tuple[str, str], list[float]] = {(p, t.name): [] for p in pythons for t in asked}
    for _ in range(rounds):
        for python in pythons:
            for task in asked:
                seen[python, task.name].append(once(python, task, state))
    found: dict[str, Any] = {}
    for python in pythons:
        rows = {}
        for task in asked:
            samples = seen[python, task.name]
            p50, p90 = np.percentile(samples, (50, 90)).round(4).tolist()
            rows[task.name] = {"p50_s": p50, "p90_s": p90, "min_s": round(min(samples), 4)}
        found[versions(python)] = rows
    return found


def versions(python: str) -> str:
    """Which Python and NumPy an interpreter has."""
    script = "import platform, numpy; print(f'Python {platform.python_version()}, NumPy {numpy.__version__}')"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [name, task, *(f"{row[part]:.3f}" for part in ("p50_s", "p90_s", "min_s"))]
        for name, tasks_of in found["seconds"].items()
        for task, row in tasks_of.items()
    ]
    bundle, graph = found["bundle_bytes"] / 1e6, found["graph_bytes"] / 1e6
    return [
        "# The agent: size, start, and a bundle of 12 MB",
        "",
        f"`{found['command']}`",
        "",
        f"The agent has {found['bytes']:,} bytes (limit {LIMITS['bytes']:,}) and {found['modules']} modules.",
        f"The bundle has {bundle:.2f} MB, its graph {graph:.2f} MB in fp4x. One core; {found['rounds']} rounds.",
        "",
        *table(["", "process", "median, s", "90th percentile", "best"], rows),
        "",
        f"Limits, by medians: `status` {LIMITS['start_s']} s; `verify` and `unpack` together "
        f"{LIMITS['verify_and_unpack_s']} s. `unpack` includes flushing all of it to the disk.",
        "",
        *conditions_lines(found),
    ]


def within(found: Mapping[str, Any]) -> bool:
    """Whether every limit is kept, for every interpreter."""
    return found["bytes"] <= LIMITS["bytes"] and all(
        rows["status"]["p50_s"] <= LIMITS["start_s"]
        and rows["verify"]["p50_s"] + rows["unpack"]["p50_s"] <= LIMITS["verify_and_unpack_s"]
        for rows in found["seconds"].values()
    )


def main() -> int:
    """0 when all limits are kept, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters with NumPy")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "agent.json")
    given = parser.parse_args()
    use_cores(1)
    now = conditions(threads=1)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        bundle = write_bundle(Path(scratch))
        agent = Path(scratch) / NAME
        found = {
            "question": "how large is the agent, how soon does it answer, how long does a bundle of 12 MB take?",
            "command": f"python bench/agent.py --rounds {given.rounds}",
            "bytes": agent.stat().st_size,
            "modules": len(agent_modules()),
            "bundle_bytes": bundle.stat().st_size,
            "graph_bytes": (Path(scratch) / "graph.packed").stat().st_size,
            "rounds": given.rounds,
            "seed": SEED,
            "limits": LIMITS,
            "seconds": measure(given.python, agent, bundle, Path(scratch) / "state", given.rounds),
            **now,
        }
    write_results(given.out, found, page(found))
    return 0 if within(found) else 1


if __name__ == "__main__":
    sys.exit(main())
