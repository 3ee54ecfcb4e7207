"""What the wheel carries: code, and all the data that the code reads."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def source_files() -> list[str]:
    """The files of this checkout that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built from a copy so that no build folder is left in it."""
    place = tmp_path_factory.mktemp("wheel")
    for name in source_files():
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(place), str(place / "source")], check=True)
    return zipfile.ZipFile(next(place.glob("*.whl")))


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
