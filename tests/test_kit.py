"""`make kit`: the same bytes each time, and a result whatever Python and shell there are."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit_runs import ROOT, SHELLS, bare_path, run_kit, unpacked_kit
from pythons import interpreter, wheels
from running import Built
from test_json_contract import assert_documented

from edgekd.deploy.agent_zipapp import agent_archive

RUNTIMES = {"3.13": ("numpy==2.2.6", "onnxruntime==1.22.1")}
"""Wheels of a recent Python. The oldest one runs the same agent in `agent/test_pythons.py`."""


@pytest.fixture(scope="module")
def packed(tiny_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of the tiny bundle, not to be changed."""
    return unpacked_kit(tiny_build.bundle, tmp_path_factory.mktemp("kit"))


@pytest.fixture
def kit(packed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(packed, tmp_path / "kit")


def result_of(path: Path) -> Any:
    """A result, which must be as the schema says."""
    document = json.loads(path.read_text("utf-8"))
    assert_documented(document, "validation")
    return document


def test_the_same_sources_give_the_same_bytes(packed: Path, tiny_build: Built, tmp_path: Path) -> None:
    again = unpacked_kit(tiny_build.bundle, tmp_path)
    archives = [folder.with_name("kit.tar.gz").read_bytes() for folder in (packed, again)]
    assert archives[0] == archives[1]
    assert archives[0][4:8] == bytes(4), "no time in the header of gzip"


def test_it_has_the_bundle_its_hash_the_agent_and_predictions(packed: Path, tiny_build: Built) -> None:
    assert {path.name for path in packed.iterdir()} == {
        *("LICENSE", "README.md", "SHA256SUMS", "agent.pyz", "kit.json", "run.sh", tiny_build.bundle.name),
    }
    assert (packed / "agent.pyz").read_bytes() == agent_archive()
    sums = dict(reversed(line.split("  ")) for line in (packed / "SHA256SUMS").read_text("ascii").splitlines())
    assert sums[tiny_build.bundle.name] == hashlib.sha256(tiny_build.bundle.read_bytes()).hexdigest()
    predicted = {each["target"]: each for each in json.loads((packed / "kit.json").read_text("utf-8"))["predictions"]}
    assert predicted["xavier"]["power_mode"] == {"name": "MAXN", "id": 0}
    assert 0 < predicted["xavier"]["low_ms"] < predicted["xavier"]["latency_ms"] < predicted["xavier"]["high_ms"]


@pytest.mark.parametrize(
    "shell", [SHELLS[0], *(pytest.param(shell, marks=pytest.mark.release) for shell in SHELLS[1:])]
)
def test_every_shell_runs_it(shell: str, kit: Path, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} on this host")
    path = bare_path(tmp_path / "bin", {"python3": sys.executable}, shell)
    done = run_kit(kit, path, "--quick", shell=shell)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = result_of(kit / "result.json")
    assert found["complete"]
    assert {each["runtime"] for each in found["verdicts"] if each["outcome"] == "confirmed"} == {"onnxruntime"}
    assert "verdict: every claim that could be tested is confirmed (exit code 0)" in done.stderr
    unchanged = {"LICENSE", "README.md", "SHA256SUMS", "agent.pyz", "kit.json", "run.sh", "result.json"}
    assert {path.name for path in kit.iterdir() if path.suffix != ".edgekd"} == unchanged, "nothing else is left"


@pytest.mark.release
@pytest.mark.parametrize("version", RUNTIMES)
def test_old_and_new_pythons_run_it(
    version: str, kit: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python, packages = interpreter(version), wheels(tmp_path_factory, version, *RUNTIMES[version])
    path = bare_path(tmp_path / "bin", {"python3": interpreter("3.6"), f"python{version}": python})
    done = run_kit(kit, path, "--quick", packages=packages)
    assert done.returncode == 0, done.stderr
    found = result_of(kit / "result.json")
    assert found["system"]["versions"]["python"].startswith(f"{version}.")
    assert found["system"]["versions"]["numpy"] == RUNTIMES[version][0].partition("==")[2]
    assert [each["form"] for each in found["attempts"][-3:]] == ["float", "fp32-weights", "int8-constants"]


def test_python_36_alone_is_said_in_one_line_and_in_the_result(kit: Path, tmp_path: Path) -> None:
    done = run_kit(kit, bare_path(tmp_path / "bin", {"python3": interpreter("3.6")}))
    found = result_of(kit / "result.json")
    assert done.returncode == 3
    assert (found["complete"], found["problem"]["kind"], found["attempts"]) == (True, "no-python", [])
    assert "no Python 3.8 or newer with NumPy; python3 (3.6." in found["problem"]["message"]
    assert done.stderr.splitlines()[0] == f"run.sh: {found['problem']['message']}"
    assert "SyntaxError" not in done.stderr


def test_no_python_at_all_and_one_without_numpy_are_told_apart(kit: Path, tmp_path: Path) -> None:
    assert run_kit(kit, bare_path(tmp_path / "bin", {})).returncode == 3
    assert "no python3 at all" in result_of(kit / "result.json")["problem"]["message"]
    crashing = tmp_path / "crashing"
    crashing.write_text("#!/bin/sh\nkill -ILL $$\n", "utf-8")
    crashing.chmod(0o755)
    pythons = {"python3": interpreter("3.8"), "python3.12": crashing}
    assert run_kit(kit, bare_path(tmp_path / "more", pythons)).returncode == 3
    message = result_of(kit / "result.json")["problem"]["message"]
    assert "has no NumPy that can be imported" in message
    assert "python3.12 (that ends with exit code 132)" in message


@pytest.mark.parametrize("name", ["kit.json", "agent.pyz"])
def test_a_damaged_kit_is_not_run(name: str, kit: Path, tmp_path: Path) -> None:
    (kit / name).write_bytes((kit / name).read_bytes() + b" ")
    done = run_kit(kit, bare_path(tmp_path / "bin", {"python3": sys.executable}))
    assert done.returncode == 2
    assert result_of(kit / "result.json")["problem"]["kind"] == "damaged-kit"


def test_an_agent_that_cannot_even_start_leaves_a_result(kit: Path, tmp_path: Path) -> None:
    (kit / "agent.pyz").write_bytes(b"no archive")
    sums = (kit / "SHA256SUMS").read_text("ascii").splitlines()
    ours = hashlib.sha256(b"no archive").hexdigest()
    lines = [f"{ours}  agent.pyz" if line.endswith("  agent.pyz") else line for line in sums]
    (kit / "SHA256SUMS").write_text("\n".join(lines) + "\n", "ascii")
    done = run_kit(kit, bare_path(tmp_path / "bin", {"python3": sys.executable}))
    found = result_of(kit / "result.json")
    assert (done.returncode, found["complete"], found["problem"]["kind"]) == (4, False, "crashed")
    assert "exit code 1" in found["problem"]["message"]


def test_the_result_goes_where_it_is_asked_for_and_options_are_few(kit: Path, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bin", {})
    (tmp_path / "else where").mkdir()
    run_kit(kit, path, "--out", "mine.json", cwd=tmp_path / "else where")
    assert result_of(tmp_path / "else where" / "mine.json")["problem"]["kind"] == "no-python"
    assert run_kit(kit, path, "--out=none/mine.json").returncode == 2
    assert run_kit(kit, path, "--nonsense").returncode == 2
    assert run_kit(kit, path, "--help").stdout.startswith("usage: sh run.sh")


def test_the_script_is_clean() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    if not program:
        pytest.skip("no shellcheck on this host")
    done = subprocess.run([program, "--shell=sh", str(ROOT / "kit" / "run.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
