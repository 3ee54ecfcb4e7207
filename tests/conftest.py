"""Shared fixtures."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from once import once
from running import BRIEFLY, Built, EdgeKD, Ran, build_command

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SHARED = Path(__file__).resolve().parents[2] / "shared"
# Ray creates a token at its first start, and looks for one at its first import, so the order of tests would matter.
# The tests' clusters listen only on this machine.
os.environ["RAY_AUTH_MODE"] = "disabled"
# No deadline for examples: the machine may be busy.
hypothesis.settings.register_profile("unhurried", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unhurried")
# In a shell's background job SIGINT is ignored, also in child processes, which some tests interrupt.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Each pytest-xdist worker and its processes get one core: with more, threads would spin while they wait for others.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the top-level files first: some of their tests take minutes, and would run alone at the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """Freeze imported objects, so that garbage collections do not traverse them."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def timed_briefly() -> None:
    """Time graphs in this process as briefly as in the processes that tests start."""
    runpy.run_path(str(Path(__file__).parent / "timed_briefly" / "sitecustomize.py"))


@pytest.fixture(scope="session", autouse=True)
def trusted_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skip the trial run in a child process for the tests' models, and convert in this process: both save seconds."""
    records = tmp_path_factory.mktemp("rehearsed")
    from edgekd.graph import opset, rehearsal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "run_limited", lambda *_, **__: None)
        patch.setattr(rehearsal, "_records", lambda: records)
        patch.setattr(opset, "run_limited", lambda _, arguments, *__: opset.convert_file(*arguments))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real models and data beside the checkout. Without it tests skip, or fail if CI is set."""
    if not SHARED.is_dir():
        message = f"no real models and data: {SHARED} is missing"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture
def edgekd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> EdgeKD:
    """Run the command line in this process, and capture the real stdout and stderr."""
    from edgekd.commands.cli import main

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["edgekd", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def schema_generator() -> ModuleType:
    """The module docs/schemas/generate.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "docs" / "schemas"))
        return importlib.import_module("generate")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of 64x64 pixels that finds the squares of `tiny_data`. Do not change it."""
    import tiny

    return once(tmp_path_factory, "tiny-model", lambda folder: tiny.write_model(folder / "tiny.onnx")) / "tiny.onnx"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set of 12 training and 8 validation scenes with red and green squares. Do not change it."""
    import tiny

    return once(tmp_path_factory, "tiny-data", tiny.write_data)


@pytest.fixture(scope="session")
def tiny_build(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build of `tiny_model` and `tiny_data` for xavier, by its own process. Do not change it; copy it."""

    def build(folder: Path) -> None:
        command = build_command(tiny_model, tiny_data, folder / "out", "--json")
        # The order of sets of strings differs between processes; a build's files must not depend on it.
        environment = {**os.environ, **BRIEFLY, "PYTHONHASHSEED": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        (folder / "stdout.json").write_text(done.stdout, "utf-8")

    folder = once(tmp_path_factory, "tiny-build", build)
    out = folder / "out"
    return Built(out, out / "tiny-xavier.edgekd", json.loads((folder / "stdout.json").read_bytes()))


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A browser, per module: while it is open, an event loop runs in this process, and no other can be started."""
    if not CHROMIUM.exists():
        message = f"no browser: {CHROMIUM} is missing (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield running
        running.close()
