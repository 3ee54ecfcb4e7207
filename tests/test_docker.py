"""The Dockerfiles for Jetson, as far as they can be held to what they say without building them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pythons import interpreter, wheels

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker" / "jetson"
FILES = sorted(FOLDER.glob("Dockerfile.*"))
VERSIONS = [path.name.removeprefix("Dockerfile.jetpack") for path in FILES]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, and the stage that it is in, counted from 0; -1 before the first."""

    stage: int
    word: str
    rest: str


def instructions(path: Path) -> list[Instruction]:
    """What is in a file, without comments, each on one line."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], -1
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            stage += word == "FROM"
            found.append(Instruction(stage, word, rest.strip()))
    return found


def commands(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of every command that a file runs, and its stage."""
    for each in instructions(path):
        if each.word == "RUN":
            words = shlex.split(each.rest, posix=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield each.stage, words[:end]
                words = words[end + 1 :]


def installed(path: Path) -> set[tuple[str, str, str]]:
    """What a file installs: package, apt or pip, and `built` or `kept`."""
    found = set()
    last = max(each.stage for each in instructions(path))
    for stage, words in commands(path):
        if words[:2] == ["apt-get", "install"]:
            names = [word for word in words[2:] if not word.startswith("-")]
            found |= {(name, "apt", "kept" if stage == last else "built") for name in names}
        if words[1:4] == ["-m", "pip", "install"]:
            # What goes into a folder is copied into the image.
            kept = "--target" in words
            names = [word.partition("==")[0] for word in words[4:] if "==" in word]
            found |= {(name, "pip", "kept" if kept else "built") for name in names}
            rest = [word for word in words[4:] if "==" not in word and not word.startswith("-")]
            assert rest == (["/opt/edgekd/python"] if kept else []), "every package of pip has a version"
    return found


def rows(header: str) -> list[dict[str, str]]:
    """A table of the README by its header's first cell."""
    lines = (FOLDER / "README.md").read_text("utf-8").splitlines()
    (begin,) = [at for at, line in enumerate(lines) if line.startswith(f"| {header} |")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[begin:]]
    end = next(at for at, line in enumerate([*lines[begin:], ""]) if not line.startswith("|"))
    return [dict(zip(cells[0], each, strict=True)) for each in cells[2:end]]


@pytest.mark.parametrize("path", FILES, ids=VERSIONS)
def test_everything_that_is_installed_is_listed_and_the_other_way_round(path: Path) -> None:
    version = path.name.removeprefix("Dockerfile.jetpack")
    listed = {
        (row["package"], row["from"], when)
        for row in rows("package")
        for when in filter(None, (word.strip() for word in row[version].split(",")))
    }
    assert installed(path) == listed


@pytest.mark.parametrize("path", FILES, ids=VERSIONS)
def test_images_and_versions_are_arguments_with_defaults(path: Path) -> None:
    told = instructions(path)
    arguments = dict(each.rest.split("=", 1) for each in told if each.word == "ARG")
    assert all(arguments.values())
    images = [each.rest.split()[0] for each in told if each.word == "FROM"]
    assert images
    for image in images:
        (name,) = re.findall(r"^\$\{(\w+)\}$", image)
        assert re.fullmatch(r"nvcr\.io/nvidia/[\w-]+:[\w.-]+", arguments[name])
        assert f"`{arguments[name]}`" in (FOLDER / "README.md").read_text("utf-8")
    for _, words in commands(path):
        for word in [word for word in words if "==" in word and words[2] == "pip"]:
            package, _, version = word.partition("==")
            assert version == "${" + package.upper().replace("-", "_") + "}"
    (row,) = [row for row in rows("file") if row["file"] == path.name]
    assert row["base image"] == arguments["BASE"]
    assert arguments.get("NUMPY", row["NumPy"]) == row["NumPy"]


@pytest.mark.parametrize("path", FILES, ids=VERSIONS)
def test_what_is_copied_is_there(path: Path) -> None:
    told = instructions(path)
    for each in told:
        if each.word == "COPY":
            words = each.rest.split()
            if words[0] == "--from=build":
                assert any(words[1] in other.rest for other in told if other.stage == 0 and other.word == "RUN")
            else:
                assert all((ROOT / source).exists() for source in words[:-1])


def test_every_generation_has_a_row_and_a_file() -> None:
    assert [row["file"] for row in rows("file")] == [path.name for path in FILES]
    assert list(rows("package")[0])[2:-1] == VERSIONS


@pytest.mark.parametrize(
    "path",
    [FILES[0], *(pytest.param(path, marks=pytest.mark.release) for path in FILES[1:])],  # old Pythons lack most
    ids=VERSIONS,
)
def test_the_python_in_it_runs_with_the_python_and_numpy_of_the_table(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (row,) = [row for row in rows("file") if row["file"] == path.name]
    python = interpreter(row["Python"])
    numpy = wheels(tmp_path_factory, row["Python"], f"numpy=={row['NumPy']}", "--ignore-requires-python")
    programs = [words for _, words in commands(path) if words[1:2] == ["-c"]]
    assert len(programs) == 2, "one makes the agent, one tries it"
    (entry,) = [json.loads(each.rest) for each in instructions(path) if each.word == "ENTRYPOINT"]
    (usual,) = [json.loads(each.rest) for each in instructions(path) if each.word == "CMD"]
    for words in (*programs, [*entry, *usual, "--state", "/none", "--runtime", "null"]):
        assert words[0] in ("python3", f"python{row['Python']}")
        moved = [word.replace("/opt/edgekd/agent.pyz", str(tmp_path / "agent.pyz")) for word in words[1:]]
        told = {"PYTHONPATH": str(numpy), "PYTHONDONTWRITEBYTECODE": "1"}
        # -S: the interpreter's own packages must not help.
        done = subprocess.run([python, "-S", *moved], cwd=ROOT, env=told, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["runtime"]["name"] == "null"
