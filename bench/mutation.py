"""Mutation testing: the share of small faults in eight modules that the tests of each module detect.

Cosmic Ray lists the faults that it can put into a module: another operator, another number, a condition reversed. A
sample of them is tried, drawn with a fixed seed, at most one at each place of the source. The tests of the module run
with each fault and stop at the first failure. A fault that no test detects has survived. Some survive because they
change nothing that could be observed.

    python bench/mutation.py before b9c9277                  # all tests of the modules, at a revision
    python bench/mutation.py after HEAD --marked "not slow"  # those that `make test` runs

It needs `cosmic-ray` beside edgekd and what its tests need. Each run is kept in the result beside the others. Operators
of `|` are left out: most stand in annotations, which are never evaluated. Hypothesis draws the same examples in every
run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy
import pytest
from common import HERE, RESULTS, SHARED, conditions, conditions_lines, table, write_results
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = HERE.parent
OUT = RESULTS / "mutation.json"
SEED = 22
MAX_CPU_S = 90
MAX_S = 900
"""A fault that keeps the tests from ending is detected. Without one they take up to 30 seconds of a core."""
MODULES = {
    "edgekd/core/bundle/manifest.py": ("tests/core/bundle/test_manifest.py",),
    "edgekd/core/bundle/archive.py": ("tests/core/bundle/test_archive.py",),
    "edgekd/core/bundle/trust.py": ("tests/core/bundle/test_trust.py",),
    "edgekd/core/formats/fp4x.py": ("tests/core/formats/test_fp4x.py",),
    "edgekd/core/detection/decode.py": ("tests/core/detection/test_decode.py",),
    "edgekd/compress/quantization/placement.py": ("tests/compress/quantization/test_placement.py",),
    "edgekd/builds/stage_store.py": ("tests/builds/test_stage_store.py",),
    "edgekd/agent/state/slots.py": ("tests/agent/test_commands.py", "tests/agent/test_installation.py"),
}
"""Each module, and the files with its tests."""
BUILD = """
import pathlib, subprocess, running, tiny
folder = pathlib.Path("..")
(folder / "data").mkdir()
model, data = tiny.write_model(folder / "tiny.onnx"), tiny.write_data(folder / "data")
subprocess.run(running.build_command(model, data, folder / "out"), check=True, capture_output=True)
"""
"""Builds the bundle of the agent's tests: once, not for each fault."""


@dataclass(frozen=True)
class Fault:
    """A fault: its place in the module, and Cosmic Ray's operator and number for it. outcome: killed or survived."""

    line: int
    column: int
    operator: str
    occurrence: int
    outcome: str = ""


def main() -> int:
    """Try the sample on one revision, keep the result beside those of other revisions, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of this run in the result")
    parser.add_argument("revision")
    parser.add_argument("--marked", default="", help="pytest's -m: which of the tests")
    parser.add_argument("--sample", type=int, default=24, help="faults a module, at most")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the paths of modules; others keep their result")
    parser.add_argument("--shared", type=Path, default=SHARED)
    given = parser.parse_args()
    revision = output("git", "rev-parse", "--short", given.revision)
    found: dict[str, Any] = json.loads(OUT.read_bytes()) if OUT.is_file() else {"runs": {}}
    run: dict[str, Any] = {"revision": revision, "marked": given.marked, "seed": SEED, "sample": given.sample}
    run |= {"tool": f"Cosmic Ray {metadata.version('cosmic-ray')}", "conditions": conditions(1)}
    run["modules"] = found["runs"].get(given.name, {}).get("modules", {})
    found["runs"][given.name] = run
    with tempfile.TemporaryDirectory() as scratch:
        checkout = check_out(revision, Path(scratch), given.shared)
        for module, tests in MODULES.items():
            if not given.only or any(part in module for part in given.only):
                started = time.monotonic()
                faults = [asdict(fault) for fault in tried(checkout, module, tests, given.marked, given.sample)]
                seconds = round(time.monotonic() - started, 1)
                run["modules"][module] = {"tests": tests, "seconds": seconds, "faults": faults}
                write_results(OUT, found, page(found))
    return 0


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def check_out(revision: str, folder: Path, shared: Path) -> Path:
    """Write a revision to a folder, with `shared` beside it and the bundle of the agent's tests in the environment."""
    checkout = folder / "checkout"
    checkout.mkdir()
    (folder / "shared").symlink_to(shared.resolve())
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=checkout, input=archive, check=True)
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'tests'}"}
    subprocess.run([sys.executable, "-c", BUILD], cwd=checkout, env=environment, check=True)
    # For the tests, and for the processes that they start.
    os.environ |= {"EDGEKD_TEST_BUNDLE": str(folder / "out" / "tiny-xavier.edgekd"), "PYTHONPATH": str(checkout)}
    os.environ["OMP_NUM_THREADS"] = "1"
    # Modules are compiled once, except for the one with faults, and loaded from __pycache__ by each process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for plugin in metadata.entry_points(group="pytest11"):
        plugin.load()
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no search for the smallest example
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, deadline=None, phases=phases)
    hypothesis.settings.load_profile("mutation")
    return checkout


def tried(checkout: Path, module: str, tests: Sequence[str], marked: str, count: int) -> Iterator[Fault]:
    """Put a sample of faults into a module of a checkout, one at a time, and yield each with its outcome."""
    path = checkout / module
    source = path.read_text("utf-8")
    chosen = list(faults_of(source))
    random.Random(f"{SEED} {module}").shuffle(chosen)
    places = {(fault.line, fault.column): fault for fault in chosen}
    if not passes(checkout, tests, marked):
        raise SystemExit(f"{module}: its tests fail without a fault")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for fault in sorted(list(places.values())[:count], key=lambda fault: (fault.line, fault.column)):
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        path.write_text(mutate_code(source, get_operator(fault.operator)(), fault.occurrence), "utf-8")
        outcome = "survived" if passes(checkout, tests, marked) else "killed"
        yield Fault(fault.line, fault.column, fault.operator, fault.occurrence, outcome)
    path.write_text(source, "utf-8")
    del os.environ["PYTHONDONTWRITEBYTECODE"]


def faults_of(source: str) -> Iterator[Fault]:
    """Yield every fault that can be put into a module."""
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if "BinaryOperator_BitOr" not in name and not kind.arguments():
            positions = (start for node in nodes for start, _ in kind().mutation_positions(node))
            yield from (Fault(*position, name, occurrence) for occurrence, position in enumerate(positions))


def passes(checkout: Path, tests: Sequence[str], marked: str) -> bool:
    """Return whether tests pass in a process forked from this one, which has the libraries loaded already."""
    child = os.fork()
    if not child:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
        os.chdir(checkout)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("edgekd", "common")]:
            del sys.modules[name]
        sys.path[:0] = [str(checkout)]
        sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
        flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marked]
        os._exit(int(pytest.main([*flags, *tests])))
    deadline = time.monotonic() + MAX_S
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def page(found: Mapping[str, Any]) -> list[str]:
    """Return the result as Markdown: a row for each module, a column for each run."""
    runs = found["runs"]
    lines = ["# Mutation testing", ""]
    for name, run in runs.items():
        marked = f"tests marked `{run['marked']}`" if run["marked"] else "all tests"
        flags = f" --marked {shlex.quote(run['marked'])}" if run["marked"] else ""
        lines += [f"`python bench/mutation.py {name} {run['revision']}{flags} --sample {run['sample']}`: {marked} of"]
        lines += [f"each module, seed {run['seed']}, {run['tool']}.", ""]
    lines += ["Faults that the tests detected, of those that were put in:", ""]
    rows = [
        [f"`{module}`", *(rate(run["modules"].get(module, {}).get("faults", [])) for run in runs.values())]
        for module in MODULES
    ]
    whole = [[fault for one in run["modules"].values() for fault in one["faults"]] for run in runs.values()]
    lines += [*table(["module", *runs], [*rows, ["all", *map(rate, whole)]]), ""]
    for name, run in runs.items():
        lines += [f"{name}: {conditions_lines(run['conditions'])[0]}", ""]
    return [*lines, *conditions_lines(run["conditions"])[2:]]


def rate(faults: Sequence[Mapping[str, Any]]) -> str:
    """Return how many faults were detected, of how many, and the share."""
    if not faults:
        return "-"
    killed = Counter(fault["outcome"] for fault in faults)["killed"]
    return f"{killed} of {len(faults)}, {100 * killed / len(faults):.0f} %"


if __name__ == "__main__":
    sys.exit(main())
