"""The state folder is closed to other users, and so are its lock and a partial download."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cameras import Agent

from edgekd.agent.state.slots import State
from edgekd.agent.trust_state import held_trust
from edgekd.core.errors import SignatureError

OTHER = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("existing", [None, 0o755, 0o777])
def test_the_state_folder_and_its_lock_are_private(tmp_path: Path, existing: int | None) -> None:
    state = State.of(tmp_path / "state", "night")
    if existing:
        (tmp_path / "state" / "models").mkdir(parents=True)
        (tmp_path / "state").chmod(existing)
    with state.locked():
        pass
    assert mode(tmp_path / "state") == 0o700
    assert mode(state.root / "lock") == 0o600


@as_root
def test_a_state_folder_of_another_user_is_refused(agent: Agent, bundle: Path, state: State) -> None:
    state.root.mkdir()
    os.chown(state.root, OTHER, OTHER)
    error = agent("unpack", bundle).error
    assert (error["kind"], error["found"]) == ("SpecError", f"user {OTHER}")
    assert list(state.root.iterdir()) == []


def test_a_lock_that_is_a_link_is_refused(agent: Agent, bundle: Path, state: State, tmp_path: Path) -> None:
    state.root.mkdir()
    (state.root / "lock").symlink_to(tmp_path / "goal")
    assert agent("unpack", bundle).error["found"] == "a symbolic link"
    assert not (tmp_path / "goal").exists()


def test_whoever_holds_the_lock_is_named(agent: Agent, state: State) -> None:
    with state.locked():
        assert agent("boot").error["found"] in (None, f"process {os.getpid()} of user {os.geteuid()}")


def test_a_partial_download_is_private_and_no_link(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    part, goal, url = tmp_path / "got.part", tmp_path / "goal", bundle.resolve().as_uri()
    goal.write_bytes(b"content of somebody")
    part.symlink_to(goal)
    assert agent("fetch", url, "--out", tmp_path / "got").error["found"] == "a symbolic link"
    assert goal.read_bytes() == b"content of somebody"
    part.unlink()
    os.link(goal, part)
    assert agent("fetch", url, "--out", tmp_path / "got").error["found"] == "a file with several names"
    assert goal.read_bytes() == b"content of somebody"
    part.unlink()
    before = os.umask(0o022)
    try:
        assert agent("fetch", url, "--out", tmp_path / "got").code == 0
    finally:
        os.umask(before)
    assert mode(tmp_path / "got") == 0o644, "complete, it is as any other file"


@as_root
def test_a_trust_file_that_cannot_be_read_is_not_a_missing_one(state: State, tmp_path: Path) -> None:
    """Else `verify` by a user who cannot open the state folder would accept every bundle."""
    with state.locked():
        pass
    parents = [folder for folder in state.root.parents if folder.stat().st_uid == 0 and folder.stat().st_mode & 1 == 0]
    before = [(folder, mode(folder)) for folder in parents]
    for folder, bits in before:
        folder.chmod(bits | 0o011)
    os.seteuid(OTHER)
    try:
        with pytest.raises(SignatureError, match=r"trust\.json: cannot read"):
            held_trust(state, tmp_path / "root")
    finally:
        os.seteuid(0)
        for folder, bits in before:
            folder.chmod(bits)
    assert held_trust(state, tmp_path / "root") is None
