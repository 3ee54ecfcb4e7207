"""Which agent runs where: that of a bundle is a program of whoever made the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Built, EdgeKD

from edgekd.commands.engine import engine
from edgekd.core.bundle.archive import extract, file_entry, pack
from edgekd.core.errors import DeviceError, HashError, SignatureError
from edgekd.core.progress import Progress
from edgekd.deploy import engine as engines
from edgekd.deploy.agent_zipapp import agent_archive
from edgekd.deploy.devices.connection import ProgramResult, Upload
from edgekd.deploy.signing import load_signers
from edgekd.deploy.signing.key_files import make_key
from edgekd.deploy.signing.signed import sign_bundle

QUICK = ("--iterations", 3, "--seconds", 0)


@pytest.fixture
def hostile(tiny_build: Built, tmp_path: Path) -> tuple[Path, Path]:
    """A whole bundle, unsigned, whose agent writes a file; and that file."""
    folder, mark = tmp_path / "files", tmp_path / "it-ran"
    manifest = extract(tiny_build.bundle, folder)
    (folder / "agent.pyz").write_text(f"open({str(mark)!r}, 'w').close()\n", "utf-8")
    files = tuple(
        file_entry(entry.path, folder / entry.path, entry.role) if entry.role == "agent" else entry
        for entry in manifest.files
    )
    bundle = tmp_path / "hostile.edgekd"
    pack(replace(manifest, files=files), {entry.path: folder / entry.path for entry in files}, bundle)
    return bundle, mark


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Public keys by name; `release` has signed `tmp_path / "signed.edgekd"`, `other` has not."""
    return {name: make_key(tmp_path / "keys", name, None).public for name in ("release", "other")}


@pytest.fixture
def signed(hostile: tuple[Path, Path], keys: dict[str, Path], tmp_path: Path) -> Path:
    """The hostile bundle, signed by `release`."""
    signers = load_signers([str(keys["release"].with_suffix(".key"))])
    sign_bundle(hostile[0], signers, tmp_path / "signed.edgekd")
    return tmp_path / "signed.edgekd"


class Recording:
    """A camera that keeps the hashes of what is sent to it, and then gives no answer."""

    name, runtime, remote, python = "cam", None, True, "python3"

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    @contextmanager
    def connect(self, python: str | None, stop: object = None) -> Iterator[Recording]:
        yield self

    def claim(self, folder: str) -> None: ...

    def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress) -> Upload:
        self.sent[file.suffix] = hashlib.sha256(file.read_bytes()).hexdigest()
        return Upload(f"{folder}/{file.name}", 1, 1)

    def run(self, doing: str, command: Sequence[str], limit_s: float) -> ProgramResult:
        return ProgramResult(1, "", "not well")


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """The device of every name."""
    device = Recording()
    monkeypatch.setattr("edgekd.commands.engine.device_named", lambda name: device)
    monkeypatch.setattr("edgekd.deploy.fleet.device_named", lambda name: device)
    return device


def agent_sent(camera: Recording, bundle: Path, **flags: Any) -> str:
    with pytest.raises(DeviceError, match="not well"):
        engine(bundle, device="ssh://cam", **flags)
    return camera.sent[".pyz"]


OURS = hashlib.sha256(agent_archive()).hexdigest()


@pytest.mark.parametrize("device", ["local", "null"])
@pytest.mark.parametrize("flags", [(), ("--allow-unsigned",)])
def test_no_agent_of_a_bundle_runs_on_this_machine(
    edgekd: EdgeKD, hostile: tuple[Path, Path], tmp_path: Path, device: str, flags: tuple[str, ...]
) -> None:
    bundle, mark = hostile
    given = ("--device", device, "--state", tmp_path / "state", "--runtime", "null", *flags, *QUICK)
    ran = edgekd("engine", bundle, *given)
    assert not mark.exists(), "the bundle's agent ran"
    assert ran.code == 0, ran.err


def test_a_signature_gives_the_agent_of_a_bundle_no_access_to_this_machine(
    edgekd: EdgeKD, signed: Path, hostile: tuple[Path, Path], keys: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--device", "null", "--state", tmp_path / "state", "--key", keys["release"], *QUICK)
    ran = edgekd("engine", signed, *flags)
    assert not hostile[1].exists()
    assert ran.code == 0, ran.err


def test_the_agent_of_an_unsigned_bundle_goes_to_a_camera_by_request_only(
    camera: Recording, hostile: tuple[Path, Path]
) -> None:
    theirs = hashlib.sha256(Path(hostile[0].parent, "files", "agent.pyz").read_bytes()).hexdigest()
    assert agent_sent(camera, hostile[0]) == OURS
    assert agent_sent(camera, hostile[0], allow_unsigned=True) == theirs


def test_the_agent_of_a_bundle_that_a_key_vouches_for_goes_to_the_camera(
    camera: Recording, signed: Path, keys: dict[str, Path]
) -> None:
    theirs = hashlib.sha256(Path(signed.parent, "files", "agent.pyz").read_bytes()).hexdigest()
    assert agent_sent(camera, signed, keys=keys["release"]) == theirs
    assert agent_sent(camera, signed) == OURS, "a signature by a key that nobody named counts for nothing"


@pytest.mark.parametrize("flags", [{}, {"allow_unsigned": True}])
def test_nothing_is_sent_of_a_bundle_without_the_signatures_that_are_required(
    camera: Recording, signed: Path, hostile: tuple[Path, Path], keys: dict[str, Path], flags: dict[str, Any]
) -> None:
    for bundle in (hostile[0], signed):
        with pytest.raises(SignatureError, match=r"not signed by other\.pub"):
            engine(bundle, device="ssh://cam", keys=keys["other"], **flags)
    assert camera.sent == {}


def test_profile_and_fleet_require_the_same(
    edgekd: EdgeKD, hostile: tuple[Path, Path], keys: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "fleet.toml").write_text('[[boards]]\nname = "a"\ndevice = "null"\n', "utf-8")
    commands = (
        ("engine", hostile[0], "--fleet", tmp_path / "fleet.toml", "--out", tmp_path / "out"),
        ("profile", hostile[0], "--device", "local", "--out", tmp_path / "table.toml"),
    )
    for command in commands:
        ran = edgekd(*command, "--key", keys["release"])
        assert ran.code == 2
        assert "not signed by release.pub" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_refused_without_any_key(camera: Recording, tiny_build: Built, tmp_path: Path) -> None:
    content = bytearray(tiny_build.bundle.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.edgekd").write_bytes(content)
    with pytest.raises(HashError):
        engine(tmp_path / "damaged.edgekd", device="ssh://cam")
    assert camera.sent == {}


def test_a_fleet_does_not_reuse_what_another_agent_measured(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    from edgekd.deploy.fleet import Board, Fleet, FleetJob

    device: Any = Recording()
    board = Board("a", "ssh://cam")
    job = FleetJob(Fleet((board,)), engines.EngineJob(hostile[0], device), tmp_path)
    other = replace(job, usual=replace(job.usual, allow_unsigned=True))
    assert job.kept(board) != other.kept(board)
