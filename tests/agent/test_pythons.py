"""The agent as it travels, under the Pythons and with the NumPy that cameras have: as a program, and test by test."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cameras import BUNDLE, identity_of, options, repacked
from pythons import interpreter, wheels
from running import Built
from test_json_contract import assert_documented

from edgekd.core.bundle.archive import extract
from edgekd.deploy.agent_zipapp import NAME, agent_archive
from edgekd.deploy.delta import run as make_delta

HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """Python and NumPy of the Ubuntu that a JetPack has; pytest: the newest that still runs there, where it is used."""

    python: str
    numpy: str
    pytest: str = ""


NAMES = (
    *("camera_scheduling", "camera_tracking", "commands", "device", "fetching", "installation", "models", "parity"),
    *("precision", "rebuild_engine", "runtimes", "strict", "trust_state", "evidence"),
)
"""Of the tests that a camera could run; not those of power cuts, which take long and are of files, not of Python."""
PROCESSES = ("validation",)
"""Tests that start the agent dozens of times; of them, the test of every command has a whole validation."""
OLDEST = System("3.8", "1.17.4", "8.3.5")
SYSTEMS = (
    OLDEST,
    *(
        pytest.param(system, marks=pytest.mark.release)
        for system in (System("3.10", "1.21.5"), System("3.12", "1.26.4"))
    ),
)
"""Ubuntu 20.04, 22.04, 24.04: JetPack 5, 6, 7."""


@dataclass(frozen=True)
class Camera:
    """A system, its interpreter, and the folder with NumPy for it."""

    system: System
    python: str
    numpy: Path


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda system: system.python)
def camera(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Camera:
    """One of the systems. Where the interpreter or its wheels cannot be had, it skips and says so."""
    system: System = request.param
    python = interpreter(system.python)
    # pip holds what NumPy requires of Python against the one that pip itself runs on.
    numpy = wheels(tmp_path_factory, system.python, f"numpy=={system.numpy}", "--ignore-requires-python")
    return Camera(system, python, numpy)


def run(camera: Camera, path: list[Path], *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the camera's Python with only these folders and archives to import from besides the standard library."""
    # -S: the interpreter's own packages must not help.
    command = [camera.python, "-S", "-W", "error", *map(str, arguments)]
    variables = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=900)


@pytest.fixture(scope="module")
def archive(tiny_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, taken out of a bundle."""
    folder = tmp_path_factory.mktemp("unpacked") / "bundle"
    extract(tiny_build.bundle, folder)
    return folder / NAME


def test_the_bundle_carries_the_agent_of_this_checkout(archive: Path) -> None:
    assert archive.read_bytes() == agent_archive()


def test_every_command_of_the_agent_in_a_bundle(
    camera: Camera, archive: Path, tiny_build: Built, tmp_path: Path
) -> None:
    def agent(command: str, *arguments: object) -> Any:
        given = options(command, tmp_path / "state", tmp_path)
        done = run(camera, [camera.numpy], archive, command, *arguments, *given)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == "" or command == "validate", done.stderr
        return json.loads(done.stdout)["result"]

    assert agent("verify", tiny_build.bundle)["identity"] == identity_of(tiny_build.bundle)
    assert agent("unpack", tiny_build.bundle)["changed"]
    assert agent("build")["changed"]
    assert agent("selftest")["passed"]
    assert agent("bench", "--iterations", 10, "--seconds", 0)["iterations"] == 10
    assert agent("activate")["active"] == "a"
    assert agent("renew")["changed"] is False
    assert agent("install", tiny_build.bundle)["changed"] is False
    assert agent("boot")["trial"] is None
    assert agent("commit")["changed"] is False
    newer = repacked(tiny_build.bundle, tmp_path / "newer", name="newer")
    make_delta(tiny_build.bundle, newer, tmp_path / "delta")
    assert agent("patch", tmp_path / "delta", "--out", tmp_path / "again")["identity"] == identity_of(newer)
    assert agent("fetch", newer.as_uri(), "--out", tmp_path / "fetched")["identity"] == identity_of(newer)
    assert agent("status")["active"]["identity"] == identity_of(tiny_build.bundle)
    assert agent("validate", tiny_build.bundle, "--out", tmp_path / "result.json", "--quick")["complete"]
    done = run(camera, [camera.numpy], archive, "rollback", "--state", tmp_path / "state")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["kind"] == "RollbackError"
    done = run(camera, [camera.numpy], archive, "status", "--state", tmp_path / "state")
    assert json.loads(done.stdout)["result"]["runtime"] is None, "nothing but NumPy is there"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(NAMES, marks=pytest.mark.slow, id="in-process"),
        pytest.param(PROCESSES, marks=pytest.mark.release, id="processes"),
    ],
)
@pytest.mark.parametrize("camera", [OLDEST], indirect=True, ids=lambda system: system.python)
def test_the_agents_own_tests(
    camera: Camera,
    names: tuple[str, ...],
    archive: Path,
    tiny_build: Built,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The tests beside this one that a camera could run, with the archive as the only source of edgekd."""
    tests = [HERE / f"test_{name}.py" for name in names]
    flags = ("-q", "-m", "not slow and not release", "-p", "no:cacheprovider", "--confcutdir", HERE)
    flags += ("--basetemp", tmp_path / "tests")
    told = {BUNDLE: str(tiny_build.bundle), "OPENBLAS_NUM_THREADS": "1"}  # threads and processes of one's own clash
    of_tests = wheels(
        tmp_path_factory, camera.system.python, f"pytest=={camera.system.pytest}", "exceptiongroup", "tomli"
    )
    path = [archive, camera.numpy, of_tests, HERE.parent]  # the last for what tests share
    done = run(camera, path, "-m", "pytest", *flags, *tests, **told)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("command", ["status", "verify"])
def test_what_needs_no_numpy_starts_without_it(camera: Camera, archive: Path, tiny_build: Built, command: str) -> None:
    given = (tiny_build.bundle,) if command == "verify" else ("--state", archive.parent / "none")
    done = run(camera, [], archive, command, *given)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["install", "unpack", "bench", "selftest", "validate"])
def test_what_needs_numpy_says_so_in_one_json_object(
    camera: Camera, archive: Path, tiny_build: Built, tmp_path: Path, command: str
) -> None:
    bundle, out = tiny_build.bundle, ("--out", tmp_path / "result.json")
    given = {"install": (bundle,), "unpack": (bundle,), "validate": (bundle, *out)}.get(command, ())
    done = run(camera, [], archive, command, *given, *options(command, tmp_path / "state", tmp_path))
    assert done.returncode != 0
    answer = json.loads(done.stdout)
    assert_documented(answer, "agent")
    assert answer["error"]["kind"] == ("ValidationError" if command == "validate" else "DeviceError")
    assert "No module named 'numpy'" in answer["error"]["found"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
@pytest.mark.parametrize("call", [("rollback", "--state", "none"), ("--help",)])
def test_a_python_that_is_too_old_prints_one_json_object(archive: Path, version: str, call: tuple[str, ...]) -> None:
    path = {"PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    for program in ([str(archive)], ["-m", "edgekd.agent"])[: 1 if version == "2.7" else 2]:
        done = subprocess.run([interpreter(version), *program, *call], capture_output=True, text=True, env=path)
        answer = json.loads(done.stdout)
        assert_documented(answer, "agent")
        assert (answer["error"]["kind"], answer["error"]["found"]) == ("DeviceError", f"Python {version}")
        assert (done.returncode, done.stdout.count("\n"), done.stderr) == (1, 1, "")
