"""Helpers of the tests of firmware systems: programs, keys, and a camera on this machine."""

from __future__ import annotations

import compileall
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipapp
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import pytest

from edgekd.agent.cli import main
from edgekd.core.bundle.archive import read_head
from edgekd.deploy.agent_zipapp import agent_archive

COMPATIBLE = "nvidia,jetson-agx-xavier"


def need(*programs: str) -> None:
    """Skip the test if a program is not installed; fail it if CI is set, where all of them are installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(*command: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program and capture its output."""
    told = [str(word) for word in command]
    given = {**os.environ, **(environment or {})}
    return subprocess.run(told, capture_output=True, text=True, errors="replace", timeout=300, env=given)


def accepted(*command: object) -> str:
    """Run a program that must succeed, and return its output."""
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_keys(folder: Path) -> Path:
    """Write private and public keys: `ours` and `theirs` with certificates, `rsa`, and `mender` in Mender's format."""
    folder.mkdir(exist_ok=True)
    for name in ("ours", "theirs"):
        given = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650")
        names = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", f"/O=Test/CN={name}")
        accepted("openssl", "req", "-x509", *given, *names)
    accepted("openssl", "genrsa", "-out", folder / "rsa.key", "2048")
    accepted("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", folder / "mender.key")
    for key in folder.glob("*.key"):
        accepted("openssl", "pkey", "-in", key, "-pubout", "-out", key.with_suffix(".pub"))
    return folder


CHAIN = """[authority]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign
[signer]
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=emailProtection
"""


def make_chain(folder: Path) -> Path:
    """Write a chain of certificates: `root`, `middle`, `leaf`."""
    (folder / "chain.conf").write_text(CHAIN, "utf-8")
    by = "root"
    for name, kind in (("root", "authority"), ("middle", "authority"), ("leaf", "signer")):
        key, request, made = (folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        accepted("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
        accepted("openssl", "req", "-new", "-key", key, "-subj", f"/O=Test/CN={name}", "-out", request)
        told = ("-extfile", folder / "chain.conf", "-extensions", kind, "-days", "3650", "-out", made)
        signed = ("-CA", folder / f"{by}.pem", "-CAkey", folder / f"{by}.key", "-CAcreateserial")
        accepted("openssl", "x509", "-req", "-in", request, *(signed if name != by else ("-signkey", key)), *told)
        by = name
    return folder


def flipped(source: Path, out: Path, at: int, bit: int = 0) -> Path:
    """Write a copy of a file with one bit flipped in the byte at `at`; negative: from the end."""
    content = bytearray(source.read_bytes())
    content[at] ^= 1 << bit
    out.write_bytes(content)
    return out


def place_in(made: Path, content: bytes) -> int:
    """Return the offset of a byte string in a file."""
    at = made.read_bytes().find(content)
    assert at >= 0
    return at


@cache
def compiled_agent() -> bytes:
    """Return the agent's archive with compiled modules: the shipped one is compiled at each of hundreds of starts."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(agent_archive())).extractall(folder)
        how = PycInvalidationMode.UNCHECKED_HASH
        assert compileall.compile_dir(folder, quiet=1, legacy=True, invalidation_mode=how)
        out = io.BytesIO()
        zipapp.create_archive(folder, out)
    return out.getvalue()


@dataclass(frozen=True)
class OnCamera:
    """A folder with a camera's firmware files: an agent, its settings, and a state folder."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "it's the state"

    @property
    def conf(self) -> Path:
        return self.folder / "install.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make scripts read the settings here, and not in /etc."""
        return {"EDGEKD_CONF": str(self.conf), "OMP_NUM_THREADS": "1"}

    def settle(self, **more: object) -> None:
        """Write the settings; `more` replaces or adds some."""
        told = {
            "agent": self.folder / "agent.pyz",
            "python": sys.executable,
            "runtime": "null",
            "root": self.folder / "root",
            **more,
        }
        self.conf.write_text("".join(f"{name}={shlex.quote(str(value))}\n" for name, value in told.items()), "utf-8")

    def agent(self, command: str, *arguments: object) -> Any:
        """Run a command of the agent in this process and return its result. Scripts start their own agent."""
        given = (*arguments, "--state", self.state, "--root", self.folder / "root")
        said = io.StringIO()
        with redirect_stdout(said):
            code = main([command, *map(str, given)])
        assert code == 0, said.getvalue()
        return json.loads(said.getvalue())["result"]

    def status(self) -> Any:
        """Result of the agent's `status`."""
        return self.agent("status", "--runtime", "null")

    def become_another(self) -> None:
        """Change the device to one that no bundle here is for."""
        told = self.folder / "root" / "etc" / "edgekd"
        told.mkdir(parents=True)
        (told / "compatible").write_text("another,device\n", "utf-8")

    def serves(self, bundle: Path) -> bool:
        """Return whether a bundle is in service, with an engine that has passed its self-test."""
        active = self.status()["active"]
        return bool(
            active and active["identity"] == read_head(bundle).identity and active["engine"]["self_test"]["passed"]
        )


def serving(folder: Path, bundle: Path) -> OnCamera:
    """Return a camera with a bundle in service."""
    camera = new_camera(folder)
    runtime = ("--runtime", "null")
    for command in (("unpack", bundle), ("build", *runtime), ("selftest", *runtime), ("activate", *runtime)):
        camera.agent(*command)
    return camera


def new_camera(folder: Path) -> OnCamera:
    """Return a camera without an installed model."""
    folder.mkdir(exist_ok=True)
    (folder / "root").mkdir()
    (folder / "agent.pyz").write_bytes(compiled_agent())
    camera = OnCamera(folder)
    camera.settle()
    return camera
