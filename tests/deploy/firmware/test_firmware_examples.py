"""The other files of `examples/firmware`, and the Yocto layer beside it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from firmware import OnCamera, accepted, need, run
from running import EdgeKD

from edgekd.deploy.agent_zipapp import agent_archive
from edgekd.deploy.firmware.types import camera_script

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FIRMWARE, LAYER = EXAMPLES / "firmware", EXAMPLES / "meta-edgekd"

# ------------------------------------------------------------------------------------------------------ a program in C


def test_a_program_in_c_finds_the_model_in_service(in_service: OnCamera, newer: Path, tmp_path: Path) -> None:
    need("cc")
    program = tmp_path / "active_model"
    accepted("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", program, FIRMWARE / "active_model.c")
    for counter in (0, 7):
        found = re.fullmatch(r"counter (\d+), engine (\S.*), (\d+) bytes\n", accepted(program, in_service.state))
        assert found
        engine = Path(found[2])
        assert (int(found[1]), engine.is_file(), engine.stat().st_size) == (counter, True, int(found[3]))
        in_service.agent("install", newer, "--runtime", "null")
    done = run(program, tmp_path)
    assert (done.returncode, "no model in service" in done.stderr) == (1, True)


# ------------------------------------------------------------------------------------------------ the agent's update


@pytest.fixture
def data_agent(on_camera: OnCamera, trust: Path) -> Path:
    """The place of an agent on the data partition, of a camera that holds a trust file."""
    place = on_camera.folder / "data" / "agent.pyz"
    etc = on_camera.folder / "root" / "etc" / "edgekd"
    etc.mkdir(parents=True)
    shutil.copy(trust, etc / "trust.json")
    settings = {
        "firmware_agent": on_camera.folder / "agent.pyz",
        "agent": place,
        "python": sys.executable,
        "state": on_camera.state,
        "root": on_camera.folder / "root",
    }
    on_camera.conf.write_text("".join(f'{name}="{value}"\n' for name, value in settings.items()), "utf-8")
    return place


def update_agent(on_camera: OnCamera, bundle: Path) -> subprocess.CompletedProcess[str]:
    return run("sh", FIRMWARE / "update_agent.sh", bundle, environment=on_camera.environment)


@pytest.fixture
def signed(edgekd: EdgeKD, bundle: Path, trust: Path, tmp_path: Path) -> Path:
    out = tmp_path / "signed.edgekd"
    assert edgekd("sign", bundle, "--key", trust.with_name("root.key"), "--out", out).code == 0
    return out


def test_an_agent_on_the_data_partition_is_that_of_a_signed_bundle(
    on_camera: OnCamera, data_agent: Path, signed: Path
) -> None:
    for _ in range(2):
        done = update_agent(on_camera, signed)
        assert done.returncode == 0, done.stderr
        assert data_agent.read_bytes() == agent_archive()
    assert [path.name for path in data_agent.parent.iterdir()] == ["agent.pyz"]


def test_the_agent_of_an_unsigned_bundle_is_not_taken(on_camera: OnCamera, data_agent: Path, bundle: Path) -> None:
    done = update_agent(on_camera, bundle)
    assert (done.returncode, "SignatureError" in done.stderr) == (1, True)
    (on_camera.folder / "root" / "etc" / "edgekd" / "trust.json").unlink()
    done = update_agent(on_camera, bundle)
    assert (done.returncode, "no trust file" in done.stderr) == (1, True)
    assert not data_agent.exists()


def test_an_agent_that_does_not_work_here_is_not_taken(
    edgekd: EdgeKD, on_camera: OnCamera, data_agent: Path, signed: Path, trust: Path, tmp_path: Path
) -> None:
    assert update_agent(on_camera, signed).returncode == 0
    folder, bad = tmp_path / "folder", tmp_path / "bad.edgekd"
    shutil.unpack_archive(signed, folder, "tar")
    with zipfile.ZipFile(folder / "agent.pyz", "w") as archive:
        archive.writestr("__main__.py", "raise SystemExit('needs Python 4')")
    assert edgekd("pack", folder, "--out", bad, "--sign", trust.with_name("root.key")).code == 0
    done = update_agent(on_camera, bad)
    assert (done.returncode, "does not work" in done.stderr) == (1, True), done.stderr
    assert data_agent.read_bytes() == agent_archive()


# ---------------------------------------------------------------------------------------------------- the Yocto layer

PACKAGES = {
    "python3-asyncio": {"concurrent"},
    "python3-core": {
        *("__future__", "abc", "argparse", "array", "bisect", "collections", "contextlib", "dataclasses", "errno"),
        *("functools", "gc", "glob", "importlib", "itertools", "math", "os", "pathlib", "platform", "re", "shutil"),
        *("signal", "stat", "struct", "subprocess", "sys", "threading", "time", "types", "typing", "zlib"),
    },
    "python3-crypt": {"hashlib"},
    "python3-ctypes": {"ctypes"},
    "python3-datetime": {"datetime"},
    "python3-difflib": {"difflib"},
    "python3-fcntl": {"fcntl"},
    "python3-io": {"io", "socket", "tempfile"},
    "python3-json": {"json"},
    "python3-mmap": {"mmap"},
    "python3-netclient": {"http", "secrets", "urllib"},
    "python3-numpy": {"numpy"},
    "python3-opencv": {"cv2"},
    "python3-statistics": {"statistics"},
    "python3-threading": {"queue"},
}
"""Modules of each package of OpenEmbedded, by python3-manifest.json beside the recipe of python3 in its core layer."""
OPTIONAL = {"onnxruntime", "openvino", "pycuda", "tensorrt"}
"""Runtimes, of which a camera has one at most."""
SUPPLIED = {"agent.pyz", "model.edgekd", "trust.json", "compatible"}
"""Files that are no part of the layer: whoever builds the image puts them there."""


def variables(recipe: Path) -> dict[str, list[str]]:
    """The words of each variable of a recipe or configuration; fails on a line that is no known syntax."""
    text = re.sub(r"\\\n", " ", recipe.read_text("utf-8"))
    text = re.sub(r"^do_\w+\(\) \{\n.*?^\}$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = {}
    for line in text.splitlines():
        assigned = re.fullmatch(r'([\w:${}-]+) *(?::|\?|\.|\+)?= *"([^"]*)"', line)
        assert assigned or re.fullmatch(r"(#.*|inherit [\w ]+)?", line), f"{recipe.name}: {line}"
        if assigned:
            found[assigned[1]] = assigned[2].split()
    return found


def imported(source: str) -> set[str]:
    """The top-level modules that a program imports, but for edgekd's own."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - {"edgekd"}


def test_the_recipe_lists_the_packages_of_what_the_agent_imports(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    with zipfile.ZipFile(tmp_path / "agent.pyz") as archive:
        sources = [archive.read(name).decode() for name in archive.namelist()]
    sources += [(FIRMWARE / "commit_when_healthy.py").read_text("utf-8")]
    sources += [(EXAMPLES / "camera_service.py").read_text("utf-8")]
    used = set().union(*map(imported, sources)) - OPTIONAL
    package_of = {module: package for package, modules in PACKAGES.items() for module in modules}
    assert used <= set(package_of), "say in which package the module is"
    recipe = variables(LAYER / "recipes-edgekd" / "edgekd" / "edgekd_0.1.bb")
    listed = {*recipe["RDEPENDS:${PN}"], *recipe["RDEPENDS:${PN}-camera"]}
    assert {name for name in listed if name.startswith("python3-")} == {package_of[module] for module in used}


@pytest.mark.parametrize("name", ["edgekd_0.1.bb", "edgekd-model_0.1.bb"])
def test_the_recipe_fetches_what_it_installs(name: str) -> None:
    folder = LAYER / "recipes-edgekd" / "edgekd"
    recipe = variables(folder / name)
    fetched = {word[len("file://") :] for word in recipe["SRC_URI"]}
    places = (folder / "files", FIRMWARE, FIRMWARE / "systemd", EXAMPLES)
    missing = {file for file in fetched if not any((place / file).is_file() for place in places)}
    assert missing <= SUPPLIED
    if name.startswith("edgekd_"):
        units = {path.name for path in (FIRMWARE / "systemd").iterdir() if path.suffix in (".service", ".timer")}
        assert units == {file for file in fetched if file.endswith((".service", ".timer"))}


def test_the_layer_is_one_and_the_image_has_its_packages() -> None:
    layer = variables(LAYER / "conf" / "layer.conf")
    assert {"BBFILES", "BBFILE_COLLECTIONS", "BBFILE_PATTERN_edgekd", "LAYERSERIES_COMPAT_edgekd"} <= set(layer)
    image = variables(LAYER / "recipes-core" / "images" / "edgekd-image.inc")["IMAGE_INSTALL:append"]
    assert image == ["edgekd", "edgekd-camera", "edgekd-model"]


def test_settings_of_the_image_are_settings() -> None:
    settings = (LAYER / "recipes-edgekd" / "edgekd" / "files" / "install.conf").read_text("utf-8")
    names = {line.split("=")[0] for line in settings.splitlines() if not line.startswith("#")}
    assert names <= set(re.findall(r"^(\w+)=", camera_script("rauc").decode(), re.MULTILINE))
