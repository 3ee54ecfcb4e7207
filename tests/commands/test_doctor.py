"""The doctor names what is missing and the command that adds it, quickly and without torch."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgekd.commands import doctor
from edgekd.commands.doctor import Check, Requirement, diagnose, parse_requirements
from edgekd.core.host_facts import Gpu
from edgekd.graph.runtimes import runtimes


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def hide(monkeypatch, *modules: str) -> None:
    """Let find_spec not find `modules`."""
    really = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else really(name))


def test_every_group_is_looked_at_and_what_is_missing_has_its_command() -> None:
    checks = diagnose()
    assert list(dict.fromkeys(check.group for check in checks)) == [
        "python",
        "base",
        "extras",
        "engines",
        "gpu",
        "device",
    ]
    assert {check.name for check in checks if check.group == "engines"} == {engine.name for engine in runtimes()}
    for check in checks:
        assert check.state == "ok" or check.fix or check.name == "nvidia driver" or "engine" in check.detail, check
        assert "\n" not in check.detail


def test_what_is_installed_is_ok_with_its_version() -> None:
    numpy = named(diagnose(), "numpy")
    assert (numpy.state, numpy.detail, numpy.fix) == ("ok", metadata.version("numpy"), None)


def test_a_source_tree_that_is_not_installed_says_so(monkeypatch) -> None:
    def nothing_is_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing_is_installed)
    monkeypatch.setattr(metadata, "requires", nothing_is_installed)
    check = named(diagnose(), "edgekd")
    assert (check.state, check.fix) == ("missing", "pip install -e .")


def test_a_base_package_that_is_not_there_is_missing(monkeypatch) -> None:
    hide(monkeypatch, "onnxslim")
    check = named(diagnose(), "onnxslim")
    assert check.state == "missing"
    assert re.fullmatch(r"pip install 'onnxslim>=[\d.]+'", check.fix or "")


def test_an_extra_says_which_of_its_packages_it_lacks(monkeypatch) -> None:
    hide(monkeypatch, "torch", "ultralytics")
    check = named(diagnose(), "train")
    assert check.state == "missing"
    assert "torch>=" in check.detail
    assert "ultralytics>=" in check.detail
    assert "torchvision" not in check.detail.replace("torch>=", "")
    assert check.fix is not None
    assert check.fix.startswith("pip install 'torch>=")


def test_a_package_that_is_too_old_is_broken(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: [Requirement("numpy", "999")])
    check = named(diagnose(), "numpy")
    assert (check.state, check.fix) == ("broken", "pip install 'numpy>=999'")


def test_opencv_without_libgl_gets_the_system_package(monkeypatch) -> None:
    really = importlib.import_module

    def without_libgl(name: str):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return really(name)

    monkeypatch.setattr("importlib.import_module", without_libgl)
    check = named(diagnose(), "reading images")
    assert check.state == "broken"
    assert check.fix == "sudo apt-get install -y libgl1 libglib2.0-0"


def test_an_engine_that_is_not_installed_is_missing_and_one_that_does_not_import_is_broken(monkeypatch) -> None:
    engine = runtimes()[2]
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(type(engine), "version", lambda self: None)
    assert named(diagnose(), engine.name).state == "missing"
    monkeypatch.setattr(type(engine), "version", lambda self: "2026.0")
    check = named(diagnose(), engine.name)
    assert (check.state, check.fix) == ("broken", "pip install openvino")


def test_a_gpu_is_named_with_its_driver(monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    gpu = Gpu(name="NVIDIA L4", driver="550.54", compute_capability="8.9", memory_bytes=24 << 30)
    monkeypatch.setattr(doctor, "gpus", lambda: (gpu,))
    check = named(diagnose(), "nvidia driver")
    assert (check.state, check.detail) == ("ok", "550.54: NVIDIA L4 (compute capability 8.9)")
    monkeypatch.setattr(doctor, "gpus", tuple)
    assert named(diagnose(), "nvidia driver").state == "broken"


def test_a_jetson_is_known_by_its_release_file_and_trtexec_is_found_where_jetpack_puts_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n")
    trtexec = tmp_path / "usr/src/tensorrt/bin/trtexec"
    trtexec.parent.mkdir(parents=True)
    trtexec.touch()
    checks = diagnose(root=tmp_path)
    assert named(checks, "jetson").detail == "Jetson with L4T 35.4.1"
    assert named(checks, "trtexec").state == "ok"
    assert "not a Jetson" in named(diagnose(root=tmp_path / "empty"), "jetson").detail
    (tmp_path / "etc/nv_tegra_release").write_bytes(b"")
    assert named(diagnose(root=tmp_path), "jetson").detail == "Jetson: "


def test_requirements_come_from_the_metadata() -> None:
    lines = [
        "numpy>=1.26",
        "tomli>=2; python_version < '3.11'",
        'torch>=2.4; extra == "train"',
        'edgekd[train]; extra == "all"',
        'pytest>=8; extra == "dev"',
        "anything",
    ]
    newer = [Requirement("numpy", "1.26"), Requirement("torch", "2.4", "train"), Requirement("anything")]
    assert parse_requirements(lines, (3, 11)) == newer
    assert parse_requirements(lines, (3, 10)) == [newer[0], Requirement("tomli", "2"), *newer[1:]]


@pytest.mark.parametrize(
    ("version", "minimum", "older"),
    [
        ("2.4.0", "2.4", False),
        ("2.13.0+cpu", "2.4", False),
        ("1.9", "1.10", True),
        ("3", "", False),
        ("5.0rc1", "5", False),
    ],
)
def test_versions_compare_by_number(version: str, minimum: str, older: bool) -> None:
    assert doctor._older(version, minimum) is older


def test_it_does_not_import_torch() -> None:
    """Which takes seconds."""
    script = "import sys; from edgekd.commands.doctor import diagnose; diagnose(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
