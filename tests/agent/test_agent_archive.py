"""The agent's archive: the same bytes each time, small, with all that it needs and nothing else, in Python 3.8."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgekd
from edgekd.deploy import agent_zipapp
from edgekd.deploy.agent_zipapp import agent_modules

PACKAGE = Path(edgekd.__file__).parent
LIMIT = 298_000  # bytes; 9,000 check networks against hostile files, 32,000 are the service of several cameras


@pytest.fixture(scope="module")
def archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(agent_zipapp.agent_archive()))


def names_in(archive: zipfile.ZipFile) -> set[str]:
    return set(archive.namelist()) - {"__main__.py"}


def test_it_is_the_same_each_time_and_whatever_the_time_of_its_sources(tmp_path: Path) -> None:
    copy = shutil.copytree(PACKAGE, tmp_path / "edgekd", ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    for path in copy.rglob("*.py"):
        os.utime(path, (0, 0))
        path.chmod(0o700)
    script = (
        "import sys; from edgekd.deploy.agent_zipapp import agent_archive; sys.stdout.buffer.write(agent_archive())"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, check=True
    )
    assert made.stdout == agent_zipapp.agent_archive()


def test_it_is_small() -> None:
    assert len(agent_zipapp.agent_archive()) <= LIMIT


def test_it_has_every_module_of_the_agent_as_it_is(archive: zipfile.ZipFile) -> None:
    own = {path.relative_to(PACKAGE.parent).as_posix() for path in (PACKAGE / "agent").rglob("*.py")}
    assert own - {"edgekd/agent/__main__.py"} <= names_in(archive)
    assert archive.read("__main__.py") == (PACKAGE / "agent" / "__main__.py").read_bytes()
    for name in names_in(archive):
        assert archive.read(name) == (PACKAGE.parent / name).read_bytes()


def test_it_has_what_the_agent_shares_and_nothing_of_the_host(archive: zipfile.ZipFile) -> None:
    shared = {name for name in names_in(archive) if not name.startswith("edgekd/agent/")}
    assert {"edgekd/core/formats/packed_graph.py", "edgekd/core/bundle/archive.py", "edgekd/core/errors.py"} <= shared
    for name in shared:
        said = " ".join((ast.get_docstring(ast.parse(archive.read(name))) or "").lower().split())
        assert "shared with the device" in said or name.endswith("__init__.py"), name


def test_an_import_is_followed_where_it_would_be_carried_out() -> None:
    modules = agent_modules()
    assert "edgekd.agent.runtimes.null" in modules
    assert "edgekd.core.formats.golden_set" in modules, "imported in a function of the agent"
    assert "edgekd.core.detection" in modules, "the package of a module"
    assert not [name for name in modules if name.startswith(("edgekd.detectors", "edgekd.graph"))], "of the host"


def test_it_runs_from_any_folder(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(agent_zipapp.agent_archive())
    done = subprocess.run([sys.executable, "-I", path, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, edgekd.__version__ + "\n")


def test_every_module_parses_as_python_3_8(archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        ast.parse(archive.read(name), feature_version=(3, 8))


def test_no_module_uses_a_library_function_newer_than_python_3_8(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """Vermin knows since when there is what a module uses. Methods of objects are found by running: test_pythons.py."""
    vermin = Path(sys.executable).with_name("vermin")
    archive.extractall(tmp_path)
    done = subprocess.run([vermin, "--target=3.8-", "--violations", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "newer.py").write_text("import functools\nprint(functools.cache)\n", "ascii")
    assert subprocess.run([vermin, "--target=3.8-", "--violations", tmp_path], capture_output=True).returncode == 1


def test_only_its_runtimes_import_what_runs_networks(archive: zipfile.ZipFile) -> None:
    allowed = {"edgekd", "numpy", "cv2", *sys.stdlib_module_names}
    for name in names_in(archive):
        for node in ast.walk(ast.parse(archive.read(name))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            other = {each.split(".")[0] for each in imported} - allowed
            assert not other or name.startswith("edgekd/agent/runtimes/"), f"{name}: {other}"
