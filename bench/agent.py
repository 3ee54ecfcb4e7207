"""Measure size and start of the agent, and how long it takes over a bundle of 12 MB on one core.

The graph has random INT8 weights as fp4x stores them: the most that so many bytes can expand to. Each command is a
process, interleaved with an interpreter that does nothing and one that imports NumPy.
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

from edgekd.deploy.agent_zipapp import NAME, agent_modules

BUNDLE_BYTES = 12_000_000
LIMITS = {"bytes": AGENT_BYTES, "start_s": 0.3, "verify_and_unpack_s": 5.0}


def write_bundle(folder: Path) -> Path:
    return write_with_agent(folder, "weights", packed_noise(BUNDLE_BYTES))


def tasks(agent: Path, bundle: Path, state: Path) -> dict[str, tuple[str, ...]]:
    """Return what is timed: the interpreter's arguments by name; `unpack` starts with an empty state each time."""
    return {
        "interpreter": ("-c", "pass"),
        "import numpy": ("-c", "import numpy"),
        "status": (str(agent), "status", "--state", str(state / "none"), "--runtime", "null"),
        "verify": (str(agent), "verify", str(bundle)),
        "unpack": (str(agent), "unpack", str(bundle), "--state", str(state)),
    }


def measure(pythons: Sequence[str], agent: Path, bundle: Path, state: Path, rounds: int) -> dict[str, Any]:
    """Time every task with every interpreter, interleaved; the summaries by interpreter and task."""
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


def versions(python: str) -> str:
    script = "import platform, numpy; print(f'Python {platform.python_version()}, NumPy {numpy.__version__}')"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def page(found: Document) -> Blocks:
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
    return found.bytes <= LIMITS["bytes"] and all(
        rows.status.p50_s <= LIMITS["start_s"]
        and rows.verify.p50_s + rows.unpack.p50_s <= LIMITS["verify_and_unpack_s"]
        for rows in found.seconds.values()
    )


def run(given: Given) -> Result:
    bundle, agent = write_bundle(given.scratch), given.scratch / NAME
    return {
        "bytes": agent.stat().st_size,
        "modules": len(agent_modules()),
        "bundle_bytes": bundle.stat().st_size,
        "graph_bytes": (given.scratch / "graph.packed").stat().st_size,
        "seconds": measure(given.python, agent, bundle, given.scratch / "state", given.rounds),
    }


if __name__ == "__main__":
    options = (Option("--python", [sys.executable], "interpreters with NumPy"), Option("--rounds", 15))
    main(run, page, *options, holds=within, cores=1)
