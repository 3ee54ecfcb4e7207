"""mender-artifact takes our artifacts and refuses them changed; Mender's own client installs one on this machine."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from firmware import COMPATIBLE, OnCamera, accepted, flipped, need, run
from running import EdgeKD

MODULES, SETTINGS = "/usr/share/mender/modules/v3", "/etc/mender"
Client = Callable[..., tuple[int, str]]


@pytest.fixture
def artifact(edgekd: EdgeKD, bundle: Path, keys: Path, on_camera: OnCamera, tmp_path: Path) -> Path:
    """A signed artifact, and the update module that a camera needs beside it."""
    need("mender-artifact")
    out = tmp_path / "model.mender"
    told = ("--firmware-key", keys / "mender.key", "--state", on_camera.state, "--mender-module", tmp_path / "edgekd")
    ran = edgekd("pack", bundle, "--out", out, *told)
    assert ran.code == 0, ran.err
    return out


def test_it_is_accepted_and_says_what_it_is(artifact: Path, keys: Path) -> None:
    assert "validated successfully" in accepted("mender-artifact", "validate", "-k", keys / "mender.pub", artifact)
    told = accepted("mender-artifact", "read", "-k", keys / "mender.pub", artifact)
    for each in (
        COMPATIBLE,
        "Name: tiny-0-",
        "signed and verified correctly",
        "edgekd.tiny.version: 0",
        "bundle.edgekd",
    ):
        assert each in told, told


def test_another_key_is_refused(artifact: Path, keys: Path) -> None:
    assert run("mender-artifact", "validate", "-k", keys / "theirs.pub", artifact).returncode != 0


def test_changed_ones_are_refused(artifact: Path, bundle: Path, keys: Path, tmp_path: Path) -> None:
    chance, size = random.Random(0), bundle.stat().st_size
    for _ in range(5):
        bad = flipped(artifact, tmp_path / "bad.mender", -chance.randrange(4096, size), chance.randrange(8))
        assert run("mender-artifact", "validate", "-k", keys / "mender.pub", bad).returncode != 0


def test_an_unsigned_one_is_made_and_not_taken_by_who_wants_a_signature(
    edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path
) -> None:
    need("mender-artifact")
    out = tmp_path / "model.mender"
    flags = ("--compatible", "one", "--compatible", "two")
    assert "mender: no signature" in edgekd("pack", bundle, "--out", out, *flags).err
    ran = edgekd("pack", bundle, "--out", out, *flags, "--firmware-unsigned")
    assert ran.code == 0, ran.err
    assert "not signed; for one, two" in ran.out
    assert "no signature" in accepted("mender-artifact", "read", out)
    assert run("mender-artifact", "validate", "-k", keys / "mender.pub", out).returncode != 0


def test_the_module_is_a_program(artifact: Path, tmp_path: Path) -> None:
    assert os.access(tmp_path / "edgekd", os.X_OK)
    assert accepted(tmp_path / "edgekd", "SupportsRollback", tmp_path) == "Yes\n"


@pytest.fixture
def client(on_camera: OnCamera, keys: Path, tmp_path: Path) -> Client:
    """Mender's client, in a view of the file system with its module and its settings where it looks for them."""
    need("mender", "unshare")
    folder = on_camera.folder / "mender"
    for name in ("data", "modules", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "device_type").write_text(f"device_type={COMPATIBLE}\n", "utf-8")
    (folder / "etc" / "artifact_info").write_text("artifact_name=factory\n", "utf-8")
    mounts = f"mount --bind {folder}/modules {MODULES} && mount --bind {folder}/etc {SETTINGS}"
    if run("unshare", "--mount", "sh", "-c", mounts).returncode:
        pytest.skip("no right to mount here")

    def call(*arguments: object, key: str = "mender") -> tuple[int, str]:
        shutil.copy(tmp_path / "edgekd", folder / "modules" / "edgekd")
        told = {"ServerURL": "https://localhost", "ArtifactVerifyKey": str(keys / f"{key}.pub")}
        (folder / "etc" / "mender.conf").write_text(json.dumps(told), "utf-8")
        mender = ("mender", "--no-syslog", "--data", folder / "data", *arguments)
        words = " ".join(shlex.quote(str(word)) for word in mender)
        done = run("unshare", "--mount", "sh", "-c", f"{mounts} && {words}", environment=on_camera.environment)
        return done.returncode, done.stdout + done.stderr

    return call


def test_menders_client_installs_and_commits(artifact: Path, bundle: Path, client: Client, on_camera: OnCamera) -> None:
    for arguments in (("install", artifact), ("commit",)):
        code, said = client(*arguments)
        assert code == 0, said
        assert on_camera.serves(bundle)
    assert "tiny-0-" in client("show-artifact")[1]
    assert "edgekd.tiny.version=0" in client("show-provides")[1]


def test_menders_client_refuses_another_key(artifact: Path, client: Client, on_camera: OnCamera) -> None:
    assert client("install", artifact, key="theirs")[0] != 0
    assert on_camera.status()["active"] is None


def test_menders_client_rolls_back(
    edgekd: EdgeKD, artifact: Path, bundle: Path, newer: Path, keys: Path, client: Client, in_service: OnCamera
) -> None:
    second = artifact.with_name("newer.mender")
    told = ("--firmware-key", keys / "mender.key", "--state", in_service.state)
    assert edgekd("pack", newer, "--out", second, *told).code == 0
    code, said = client("install", second)
    assert code == 0, said
    assert in_service.serves(newer)
    code, said = client("rollback")
    assert code == 0, said
    assert in_service.serves(bundle)


def test_menders_client_is_told_of_a_failed_installation(
    artifact: Path, bundle: Path, client: Client, in_service: OnCamera
) -> None:
    in_service.become_another()
    code, said = client("install", artifact)
    assert code != 0
    assert "for another device" in said
    assert in_service.serves(bundle)
