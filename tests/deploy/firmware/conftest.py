"""Fixtures of the tests of firmware systems."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from firmware import OnCamera, make_chain, make_keys, new_camera, serving
from running import Built


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys of firmware systems. Do not change it."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain of certificates. Do not change it."""
    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def on_camera(tmp_path: Path) -> OnCamera:
    """A camera without an installed model, with the null runtime."""
    return new_camera(tmp_path / "camera")


@pytest.fixture(scope="session")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a camera with the bundle in service. Do not change it; copy it."""
    return serving(tmp_path_factory.mktemp("served") / "camera", bundle).state


@pytest.fixture
def in_service(served: Path, on_camera: OnCamera) -> OnCamera:
    """A camera with the bundle in service."""
    shutil.copytree(served, on_camera.state, symlinks=True)
    return on_camera


@pytest.fixture(scope="session")
def bundle(tiny_build: Built) -> Path:
    """A real bundle of the tiny detector. Do not change it."""
    return tiny_build.bundle


@pytest.fixture(scope="session")
def newer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a higher counter, and so with another identity."""
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
