"""Fixtures of the tests of firmware systems."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from firmware import OnCamera, make_chain, make_keys, new_camera, serving
from running import Built


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys of firmware systems: not to be changed."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates of which each has signed the next: not to be changed."""
    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def on_camera(tmp_path: Path) -> OnCamera:
    """A camera on which nothing is installed, with the null runtime."""
    return new_camera(tmp_path / "camera")


@pytest.fixture(scope="session")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a camera on which the bundle is in service: not to be changed, but to be copied."""
    return serving(tmp_path_factory.mktemp("served") / "camera", bundle).state


@pytest.fixture
def in_service(served: Path, on_camera: OnCamera) -> OnCamera:
    """A camera on which the bundle is in service."""
    shutil.copytree(served, on_camera.state, symlinks=True)
    return on_camera


@pytest.fixture(scope="session")
def bundle(tiny_build: Built) -> Path:
    """A real bundle, of the tiny detector: not to be changed."""
    return tiny_build.bundle


@pytest.fixture(scope="session")
def newer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a higher counter, so that it is another bundle."""
    from edgekd.commands.pack import pack

    out = tmp_path_factory.mktemp("newer") / "newer.edgekd"
    pack(bundle, out, version_counter=7, name="tiny, newer")
    return out


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trust file."""
    from edgekd.commands.keygen import keygen
    from edgekd.commands.trust import trust

    folder = tmp_path_factory.mktemp("trust")
    keygen("root", out=folder)
    table = "version = 1\nissued = 2026-01-01\n[keys.root]\nfile = 'root.pub'\n"
    (folder / "trust.toml").write_text(table + "[bundle]\nkeys = ['root']\n[trust]\nkeys = ['root']\n", "utf-8")
    trust(folder / "trust.toml", out=folder / "trust.json", key=folder / "root.key")
    return folder / "trust.json"
