"""What the wheel carries: code, and all the data that the code reads."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built from a copy so that no build folder is left in it."""
    place = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(place), str(place / "source")], check=True)
    return zipfile.ZipFile(next(place.glob("*.whl")))


def test_every_source_file_and_data_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    carried = set(wheel.namelist())
    for folder, package in (("edgekd", "edgekd"), ("targets", "edgekd/targets"), ("calibration", "edgekd/calibration")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
                assert name in carried, f"{path.relative_to(ROOT)} is missing in the wheel"


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert {folder.split("-")[0] for folder in folders} == {"edgekd"}


def test_the_wheel_is_small_enough_to_carry_the_demo(wheel: zipfile.ZipFile) -> None:
    detector = wheel.getinfo("edgekd/demo/detector.onnx")
    assert detector.file_size <= 4_000_000
