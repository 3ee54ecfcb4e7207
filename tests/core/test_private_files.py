"""Other users of the machine can neither hold a lock, nor put a link, a pipe or a file of theirs in the way."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekd.core import atomic_files
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import SpecError
from edgekd.core.private_files import lock_file, lock_holder, private_file, private_folder, read_private

OTHER = 54321
"""Another user's id, for files and processes."""
HOLD = """
import fcntl, os, sys
os.setuid(int(sys.argv[2]))
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def holding(path: Path, user: int) -> Iterator[None]:
    """Hold the lock on a file, opened for reading, by a process of a user."""
    command = [sys.executable, "-c", HOLD, str(path), str(user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate(b"")


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError where the block hangs."""

    def hung(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_created_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "new" / "folder")
        os.close(private_file(tmp_path / "file"))
    finally:
        os.umask(before)
    assert mode(tmp_path / "new" / "folder") == 0o700
    assert mode(tmp_path / "file") == 0o600


def test_an_open_folder_is_closed_where_it_is_known_to_be_ours(tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    (tmp_path / "other").mkdir()
    tmp_path.chmod(0o755)
    with pytest.raises(SpecError, match="has files of others"):
        private_folder(tmp_path, ("lock",))
    assert mode(tmp_path) == 0o755, "a folder of the system is not closed"
    private_folder(tmp_path, ("slots",))
    assert mode(tmp_path) == 0o700
    tmp_path.chmod(0o1777)
    with pytest.raises(SpecError, match="has files of others"):
        private_folder(tmp_path, ("slots",))


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(SpecError, match=f"belongs to another user.*found user {OTHER}"):
        private_folder(folder)
    (tmp_path / "own").mkdir(0o755)
    (tmp_path / "link").symlink_to("own")
    os.chown(tmp_path / "link", OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(SpecError, match="belongs to another user"):
        private_folder(tmp_path / "link")
    assert mode(tmp_path / "own") == 0o755


def test_a_link_or_a_second_name_is_no_private_file(tmp_path: Path) -> None:
    goal = tmp_path / "goal"
    goal.write_bytes(b"content")
    (tmp_path / "link").symlink_to(goal)
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    os.link(goal, tmp_path / "second")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "second", "pipe"):
        with limited(), pytest.raises(SpecError, match="cannot be used"):
            private_file(tmp_path / name)
    assert not (tmp_path / "made").exists()
    for name in ("link", "dangling", "pipe", "missing"):
        with limited():
            assert read_private(tmp_path / name, 100) in (None, b"")
    assert read_private(goal, 100) == b"content"
    assert read_private(goal, 3) is None


@as_root
def test_a_file_of_another_user_is_no_private_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    os.chown(tmp_path / "file", OTHER, OTHER)
    with pytest.raises(SpecError, match="belongs to another user"):
        private_file(tmp_path / "file")
    assert read_private(tmp_path / "file", 100) is None


def test_a_lock_that_is_held_is_waited_for_with_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    handle = lock_file(path)
    assert handle is not None
    with limited():
        assert lock_file(path, 0.1) is None
    assert lock_holder(path) in (None, f"process {os.getpid()} of user {os.geteuid()}")
    os.close(handle)
    handle = lock_file(path)
    assert handle is not None
    os.close(handle)


@as_root
def test_a_lock_that_another_user_holds_is_replaced(shared: Path) -> None:
    path = shared / "lock"
    path.write_bytes(b"")
    path.chmod(0o644)
    with holding(path, OTHER), limited():
        if not lock_holder(path):
            pytest.skip("this kernel does not list who holds a lock")
        handle = lock_file(path)
        assert handle is not None, "whoever cannot change the state must not stop those who can"
        assert mode(path) == 0o600
        os.close(handle)


@as_root
def test_a_lock_of_an_older_version_that_root_holds_is_kept(shared: Path) -> None:
    path = shared / "lock"
    path.write_bytes(b"")
    path.chmod(0o644)
    with holding(path, 0), limited():
        assert lock_file(path) is None
    handle = lock_file(path)
    assert handle is not None
    assert mode(path) == 0o600, "whoever had opened the old file has nothing of it"
    os.close(handle)


def test_a_temporary_file_that_another_locks_first_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches a folder can be quicker than the writer, and hold the lock for ever."""
    flock, stolen = fcntl.flock, []

    def late(handle: int, kind: int) -> None:
        if not stolen:
            stolen.append(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY))
            flock(stolen[0], fcntl.LOCK_SH)
        flock(handle, kind)

    monkeypatch.setattr(atomic_files.fcntl, "flock", late)
    with limited():
        write_file(tmp_path / "file", b"content")
    os.close(stolen[0])
    assert (tmp_path / "file").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pipe_with_the_name_of_a_leftover_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".file.12345678.edgekd-tmp")
    with limited():
        write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@as_root
def test_leftovers_of_another_user_stay(tmp_path: Path) -> None:
    leftover = tmp_path / ".file.12345678.edgekd-tmp"
    leftover.write_bytes(b"theirs")
    os.chown(leftover, OTHER, OTHER)
    write_file(tmp_path / "file", b"content")
    assert leftover.read_bytes() == b"theirs"
