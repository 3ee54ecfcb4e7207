"""What runs on a camera around the agent: by itself, under the oldest Python that it must speak in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pythons import interpreter

from edgekd.deploy.devices import camera_side
from edgekd.deploy.devices.connection import Settings

SOURCE = Path(camera_side.__file__).read_text("utf-8")


def test_it_is_python_3_6_with_the_standard_library() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 6))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_its_command_line_is_short() -> None:
    """Dropbear, which many cameras have, takes no more than 9000 bytes."""
    assert len(Settings("python3", 30.0).shell_command()) < 500


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.13"])
def test_it_receives_and_runs(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    folder, sha256 = str(tmp_path / "upload"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    requests = [
        {"do": "claim", "folder": folder, "wait_s": 0},
        {"do": "receive", "folder": folder, "sha256": sha256, "count": 3, "keep": [sha256]},
        {"begin": 0},
    ]
    said = "\n".join(map(json.dumps, requests)) + "\nabc\n\n"
    said += json.dumps({"do": "run", "command": ["sh", "-c", f"cat {folder}/{sha256}; echo no >&2; exit 3"]}) + "\n"
    # The end of stdin ends what runs, so that stays open until there is an answer.
    with subprocess.Popen(
        Settings(python).command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(SOURCE.encode() + said.encode())
        process.stdin.flush()
        told = [json.loads(process.stdout.readline()) for _ in range(5)]
        assert process.communicate(timeout=30) == (b"", b"")
    assert told[0]["python"][:2] == [int(part) for part in version.split(".")]
    assert told[1:4] == [{}, {"kept": 0, "sha256": None}, {"path": f"{folder}/{sha256}"}]
    assert told[4] == {"code": 3, "out": "abc", "err": "no\n"}


def test_what_comes_damaged_is_thrown_away(tmp_path: Path) -> None:
    requests = [
        {"do": "receive", "folder": str(tmp_path), "sha256": "0" * 64, "count": 3, "keep": []},
        {"begin": 0},
    ]
    said = SOURCE + "\n".join(map(json.dumps, requests)) + "\nabc"
    done = subprocess.run(Settings(sys.executable).command(), input=said.encode(), capture_output=True, timeout=30)
    problem = json.loads(done.stdout.splitlines()[-1])["problem"]
    assert problem["what"].endswith("changed during transfer")
    assert list(tmp_path.iterdir()) == []
