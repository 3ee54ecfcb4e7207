"""The wheel: it carries code and all the data that the code reads, and works where the checkout is not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pythons import here, interpreter
from running import BRIEFLY

from edgekd import __version__

ROOT = Path(__file__).resolve().parents[1]


def source_files() -> list[str]:
    """The files of this checkout that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy so that no build folder is left in it."""
    place = tmp_path_factory.mktemp("wheel")
    for name in source_files():
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(place), str(place / "source")], check=True)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    """What is in it."""
    return zipfile.ZipFile(wheel_file)


def environment(python: str, folder: Path) -> Path:
    """Return the programs of a new and empty environment."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder / "bin"


def run(place: Path, *command: str | Path) -> str:
    """Run a program in a folder without the checkout; its benchmarks are short. Returns its output."""
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=place, env={**elsewhere, **BRIEFLY}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def use(edgekd: Path, place: Path) -> None:
    """Use what needs the data in the package: targets, the demo's detector and scenes, templates of the report."""
    assert __version__ in run(place, edgekd, "--version")
    assert "xavier" in run(place, edgekd, "targets")
    run(place, edgekd, "demo", "--out", "demo")
    assert {"report.html", "detector-xavier.edgekd"} <= {path.name for path in (place / "demo").iterdir()}


def test_every_source_file_and_data_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    carried = set(wheel.namelist())
    packages = {"edgekd": "edgekd", "targets": "edgekd/targets", "calibration": "edgekd/calibration"}
    for name in source_files():
        folder, _, rest = name.partition("/")
        if folder in packages:
            assert f"{packages[folder]}/{rest}" in carried, f"{name} is missing in the wheel"


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert {folder.split("-")[0] for folder in folders} == {"edgekd"}


def test_the_wheel_is_small_enough_to_carry_the_demo(wheel: zipfile.ZipFile) -> None:
    sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    assert sizes["edgekd/data/demo/detector.onnx"] <= 4_000_000
    assert sum(size for name, size in sizes.items() if name.startswith("edgekd/data/demo/scenes/")) <= 1_500_000


@pytest.mark.slow
def test_it_works_without_the_checkout(wheel_file: Path, tmp_path: Path) -> None:
    """Its dependencies are those of this environment, by their path alone: an editable install there is not found."""
    python, packages = here()
    programs = environment(python, tmp_path / "env")
    run(tmp_path, programs / "pip", "install", "--quiet", "--no-deps", wheel_file)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in packages))
    use(programs / "edgekd", tmp_path)


@pytest.mark.release
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_it_installs_in_an_empty_environment(version: str, wheel_file: Path, tmp_path: Path) -> None:
    programs = environment(interpreter(version), tmp_path / "env")
    run(tmp_path, programs / "pip", "install", "--quiet", wheel_file)
    use(programs / "edgekd", tmp_path)


@pytest.mark.release
@pytest.mark.parametrize("tool", [("uv", "tool", "install"), ("pipx", "install")], ids=lambda tool: tool[0])
def test_tools_that_install_programs_take_it(
    tool: tuple[str, ...], wheel_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UV_CACHE_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR", "PIPX_HOME", "PIPX_BIN_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "programs" if name.endswith("BIN_DIR") else tmp_path / name))
    programs = environment(sys.executable, tmp_path / "env")
    run(tmp_path, programs / "pip", "install", "--quiet", tool[0])
    run(tmp_path, programs / tool[0], *tool[1:], wheel_file)
    use(tmp_path / "programs" / "edgekd", tmp_path)
