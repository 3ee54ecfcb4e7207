"""Mutation testing: the share of small faults in eight modules that the tests of each module detect.

Cosmic Ray lists the faults that it can inject into a module: a changed operator or number, a negated condition. Its
operators for `|` are left out: most are in annotations, which are never evaluated. The tests run with one fault at a
time and stop at the first failure. Some faults survive because they do not change the observable behaviour.

    python bench/mutation.py before b9c9277                  # all tests of the modules, at a revision
    python bench/mutation.py after HEAD --marked "not slow"  # those that `make test` runs

Runs under other names in `--out` are kept. Needs `pip install cosmic-ray`, and the packages of edgekd's tests.
"""

import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy
import pytest
from common import HERE, conditions
from frame import Blocks, Document, Given, Option, Result, main, read, table

ROOT = HERE.parent
SEED = 22
MAX_CPU_S = 90  # CPU limit of a test run, which takes up to 30 s; a fault that exceeds it counts as detected
MAX_S = 900  # wall-time limit, for tests that wait
MODULES = {
    "edgekd/core/bundle/manifest.py": "edgekd/bundle/manifest.py",
    "edgekd/core/bundle/archive.py": "edgekd/bundle/archive.py",
    "edgekd/core/bundle/trust.py": "edgekd/bundle/trust.py",
    "edgekd/core/formats/fp4x.py": "edgekd/formats/fp4x.py",
    "edgekd/core/detection/decode.py": "edgekd/detectors/decode.py",
    "edgekd/compress/quantization/placement.py": "edgekd/compress/placement.py",
    "edgekd/builds/stage_store.py": "edgekd/store.py",
    "edgekd/agent/state/slots.py": "edgekd/agent/slots.py",
}
"""Each module, and its path in revisions before the package was divided into regions."""
TESTS = {"slots.py": ("tests/agent/test_commands.py", "tests/agent/test_installation.py")}
"""Test files of modules that have no test file of the same name."""
BUILD = """
import pathlib, subprocess, running, tiny
folder = pathlib.Path("..")
(folder / "data").mkdir()
model, data = tiny.write_model(folder / "tiny.onnx"), tiny.write_data(folder / "data")
subprocess.run(running.build_command(model, data, folder / "out"), check=True, capture_output=True)
"""
"""Builds the bundle of the agent's tests once for all faults."""


@dataclass(frozen=True)
class Fault:
    """A fault: its position in the module, Cosmic Ray's operator and occurrence. outcome: killed or survived."""

    line: int
    column: int
    operator: str
    occurrence: int
    outcome: str = ""


def run(given: Given) -> Iterator[Result]:
    revision = subprocess.run(
        ["git", "rev-parse", "--short", given.revision], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    runs = read(given.out.read_text("utf-8")).runs if given.out.is_file() else Document()
    modules = runs.get(given.name, {}).get("modules", {})
    tool = f"Cosmic Ray {metadata.version('cosmic-ray')}"
    runs[given.name] = {"revision": revision, "marked": given.marked, "sample": given.sample, "tool": tool}
    runs[given.name].update(date=conditions(1)["date"], modules=modules)
    checkout = check_out(revision, given.scratch, given.shared)
    for name, earlier in MODULES.items():
        if not given.only or any(part in name for part in given.only):
            module = name if (checkout / name).is_file() else earlier
            began = time.monotonic()
            faults = [asdict(fault) for fault in tried(checkout, module, given.marked, given.sample)]
            modules[name] = {"seconds": round(time.monotonic() - began, 1), "faults": faults}
            yield {"runs": runs}


def check_out(revision: str, folder: Path, shared: Path) -> Path:
    """Check out a revision into a folder, link `shared` beside it, and build the bundle for the agent's tests."""
    checkout = folder / "checkout"
    checkout.mkdir()
    (folder / "shared").symlink_to(shared.resolve())
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=checkout, input=archive, check=True)
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'tests'}"}
    subprocess.run([sys.executable, "-c", BUILD], cwd=checkout, env=environment, check=True)
    # For the tests, and for processes that they start.
    os.environ |= {"EDGEKD_TEST_BUNDLE": str(folder / "out" / "tiny-xavier.edgekd"), "PYTHONPATH": str(checkout)}
    os.environ["OMP_NUM_THREADS"] = "1"
    # Modules are compiled once, except for the one with faults, and loaded from __pycache__ by each process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for plugin in metadata.entry_points(group="pytest11"):
        plugin.load()
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no shrinking
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, deadline=None, phases=phases)
    hypothesis.settings.load_profile("mutation")
    return checkout


def tests_of(module: str) -> tuple[str, ...]:
    """Return the test files of a module: by default the one that mirrors its path."""
    path = Path(module)
    return TESTS.get(path.name, (str(Path("tests", *path.parts[1:-1], f"test_{path.name}")),))


def tried(checkout: Path, module: str, marked: str, count: int) -> Iterator[Fault]:
    """Inject a sample of faults into a module one at a time, at most one per position; yield each with its outcome."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    path, tests = checkout / module, tests_of(module)
    source = path.read_text("utf-8")
    chosen = list(faults_of(source))
    random.Random(f"{SEED} {path.name}").shuffle(chosen)
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
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if "BinaryOperator_BitOr" not in name and not kind.arguments():
            positions = (start for node in nodes for start, _ in kind().mutation_positions(node))
            yield from (Fault(*position, name, occurrence) for occurrence, position in enumerate(positions))


def passes(checkout: Path, tests: Sequence[str], marked: str) -> bool:
    """Return whether the tests pass in a forked process, which has the libraries already loaded."""
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


def page(found: Document) -> Blocks:
    yield "# Mutation testing"
    for name, run in found.runs.items():
        marked = f"tests marked `{run.marked}`" if run.marked else "all tests"
        flags = f" --marked '{run.marked}'" if run.marked else ""
        yield (
            f"`python bench/mutation.py {name} {run.revision}{flags} --sample {run.sample}`: {marked} of each module, "
            f"{run.tool}, {run.date}."
        )
    yield "Faults that the tests detected, of those that were put in; the samples are drawn with a fixed seed:"
    faults = [{module: each.faults for module, each in run.modules.items()} for run in found.runs.values()]
    lines = [[f"`{module}`", *(rate(by_module.get(module, [])) for by_module in faults)] for module in MODULES]
    lines.append(["all", *(rate([fault for each in by_module.values() for fault in each]) for by_module in faults)])
    yield table(" | ".join(["module", *found.runs]), map(" | ".join, lines))


def rate(faults: Sequence[Mapping[str, Any]]) -> str:
    killed = sum(fault["outcome"] == "killed" for fault in faults)
    return f"{killed} of {len(faults)}, {killed / len(faults):.0%}" if faults else "-"


if __name__ == "__main__":
    options = (
        Option("name", help="of this run in the result"),
        Option("revision"),
        Option("--marked", "", "pytest's -m: which of the tests"),
        Option("--sample", 24, "faults of each module, at most"),
        Option("--only", [], "parts of the paths of modules; others keep their result", nargs="*"),
    )
    main(run, page, *options, cores=1)
