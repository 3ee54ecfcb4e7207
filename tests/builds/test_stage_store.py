"""A stage is done once, survives being killed at any moment, and is never handed out damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.builds.ledger import Ledger, LedgerStage, ledger_row, read_ledger, write_ledger
from edgekd.builds.stage_store import (
    AnyStage,
    FileHashes,
    Stage,
    StageFile,
    StageKind,
    StageResult,
    StageSummary,
    Store,
    put_result,
    read_stage,
    readable_json,
)
from edgekd.core.canonical import file_sha256, json_sha256
from edgekd.core.errors import DataError, SpecError
from edgekd.core.host_facts import HostFacts
from edgekd.core.progress import PlainProgress


@dataclass(frozen=True)
class Written(StageResult):
    map50_95: float
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Loose(StageResult):
    value: Any


def kind(name: str, version: int = 1) -> StageKind[Written]:
    return StageKind(name, version, Written)


EXPORT = kind("export")


class Counted:
    """A stage's work, which counts how often it is done."""

    def __init__(self, content: bytes = b"graph") -> None:
        self.content, self.times = content, 0

    def __call__(self, folder: Path) -> Written:
        self.times += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "graph.onnx").write_bytes(self.content)
        return Written(0.4, (1, 3))


class Notes(PlainProgress):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def visible(root: Path) -> list[str]:
    """All names in a store but the lock files."""
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_a_stage_is_done_once_and_found_again(tmp_path: Path) -> None:
    run = Counted()
    first = Store(tmp_path).stage(EXPORT, {"opset": 17}, run)
    again = Store(tmp_path).stage(EXPORT, {"opset": 17}, run)
    assert run.times == 1
    assert (first.cached, again.cached) == (False, True)
    assert first.path == again.path == tmp_path / f"export-{first.key[:16]}"
    assert first.result == again.result == Written(0.4, (1, 3))
    record = json.loads((first.path / "stage.json").read_text())
    assert record["results"] == first.results == {"map50_95": 0.4, "shape": [1, 3], "tools": {}}
    assert first.files == again.files == {"sub/graph.onnx": StageFile(5, file_sha256(first.path / "sub/graph.onnx"))}
    assert first.sha256 == again.sha256
    assert first.seconds == pytest.approx(again.seconds, abs=0.001)


def test_the_key_depends_on_name_version_and_inputs_only(tmp_path: Path) -> None:
    store, run = Store(tmp_path), Counted()
    keys = [
        store.stage(kind(name, version), inputs, run).key
        for name, version, inputs in [
            ("a", 1, {"x": 1, "y": 2}),
            ("b", 1, {"x": 1, "y": 2}),
            ("a", 2, {"x": 1, "y": 2}),
            ("a", 1, {"x": 1, "y": 3}),
            ("a", 1, {"y": 2, "x": 1}),
        ]
    ]
    assert len(set(keys[:4])) == 4
    assert keys[4] == keys[0]
    assert run.times == 4


def test_the_identity_is_that_of_files_and_results(tmp_path: Path) -> None:
    def slow(folder: Path) -> Written:
        time.sleep(0.01)
        return Counted()(folder)

    def other(folder: Path) -> Written:
        return replace(Counted()(folder), map50_95=0.5)

    works: list[Callable[[Path], Written]] = [Counted(), slow, Counted(b"other"), other]
    identities = [Store(tmp_path).stage(kind("s", index), {}, work).sha256 for index, work in enumerate(works)]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_fresh_does_each_stage_once_more(tmp_path: Path) -> None:
    old = Store(tmp_path).stage(EXPORT, {}, Counted(b"old"))
    run = Counted(b"new")
    store = Store(tmp_path, fresh=True)
    first, again = (store.stage(EXPORT, {}, run) for _ in range(2))
    assert run.times == 1
    assert (first.cached, again.cached) == (False, True)
    assert (old.path / "sub" / "graph.onnx").read_bytes() == b"new"
    assert visible(tmp_path) == [old.path.name]


def edit_record(stage: AnyStage, **changes: Any) -> None:
    record = json.loads((stage.path / "stage.json").read_text())
    (stage.path / "stage.json").write_text(json.dumps({**record, **changes}))


DAMAGES: dict[str, Callable[[AnyStage], object]] = {
    "flipped": lambda stage: (stage.path / "sub/graph.onnx").write_bytes(b"grapi"),
    "shortened": lambda stage: (stage.path / "sub/graph.onnx").write_bytes(b"grap"),
    "removed": lambda stage: (stage.path / "sub/graph.onnx").unlink(),
    "added": lambda stage: (stage.path / "extra").write_bytes(b""),
    "no record": lambda stage: (stage.path / "stage.json").unlink(),
    "half a record": lambda stage: os.truncate(stage.path / "stage.json", 40),
    "record of other results": lambda stage: edit_record(stage, results={"map50_95": 0.9}),
    "record of another stage": lambda stage: edit_record(stage, key="0" * 64),
    "record that is a list": lambda stage: (stage.path / "stage.json").write_text("[]"),
    "emptied": lambda stage: [shutil.rmtree(stage.path), stage.path.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_stage_is_done_again_and_says_so(tmp_path: Path, damage: Callable[[AnyStage], object]) -> None:
    run, notes = Counted(), Notes()
    good = Store(tmp_path).stage(EXPORT, {}, run)
    damage(good)
    again = Store(tmp_path, progress=notes).stage(EXPORT, {}, run)
    assert run.times == 2
    assert (again.cached, again.sha256) == (False, good.sha256)
    assert notes.texts == [f"export: {good.path} is damaged, or of another user; doing this stage again"]
    assert Store(tmp_path).stage(EXPORT, {}, run).cached
    assert visible(tmp_path) == [good.path.name]


def test_a_stage_whose_files_are_of_no_use_any_more_is_done_again(tmp_path: Path) -> None:
    run = Counted()
    first = Store(tmp_path).stage(EXPORT, {}, run)
    again = Store(tmp_path).stage(EXPORT, {}, run, fits=lambda folder: folder != first.path)
    assert (run.times, again.cached) == (2, False)
    assert again.key == first.key
    assert Store(tmp_path).stage(EXPORT, {}, run, fits=lambda folder: folder == first.path).cached


def test_a_result_of_an_earlier_run_does_not_outlive_it(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    place = tmp_path / "plan.toml"
    put_result(tmp_path / "new", place)
    assert place.read_bytes() == b"new"
    for _ in range(2):
        put_result(None, place)
        assert not place.exists()


@pytest.mark.parametrize(
    "results", [{"map50_95": 0.4}, {"map50_95": 0.4, "shape": "wide"}], ids=["lacks", "other type"]
)
def test_a_stage_of_an_older_version_is_done_again(tmp_path: Path, results: dict[str, Any]) -> None:
    """Its hashes fit, but its results are not those of the kind."""
    run = Counted()
    first = Store(tmp_path).stage(EXPORT, {}, run)
    files = {name: {"length": file.length, "sha256": file.sha256} for name, file in first.files.items()}
    results = {**results, "tools": {}}
    edit_record(first, results=results, sha256=json_sha256({"files": files, "results": results}))
    assert read_stage(first.path, EXPORT) is None
    assert Store(tmp_path).stage(EXPORT, {}, run).result == first.result
    assert run.times == 2


def test_numbers_are_kept_as_they_were_written(tmp_path: Path) -> None:
    """An integer where a float is expected stays one: the identity of a stage that is read is that of its record."""
    first = Store(tmp_path).stage(EXPORT, {}, lambda folder: Written(1, (1,)))
    again = Store(tmp_path).stage(EXPORT, {}, Counted())
    assert again.cached
    assert type(again.result.map50_95) is int
    assert again.sha256 == first.sha256


@pytest.mark.parametrize(
    "error", [ValueError("bug"), KeyboardInterrupt(), DataError("bad label"), FileNotFoundError(errno.ENOENT, "image")]
)
def test_what_the_work_raises_passes_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def run(folder: Path) -> Written:
        Counted()(folder)
        raise error

    with pytest.raises(type(error)) as caught:
        Store(tmp_path).stage(EXPORT, {}, run)
    assert caught.value is error
    assert visible(tmp_path) == []


def test_results_that_json_cannot_hold_leave_nothing(tmp_path: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            Store(tmp_path).stage(StageKind("loose", 1, Loose), {}, lambda folder, value=value: Loose(value))  # type: ignore[misc]
    assert visible(tmp_path) == []


@pytest.mark.parametrize("kind", [Stage, StageFile, StageSummary])
def test_what_a_stage_has_left_cannot_be_changed(kind: type) -> None:
    assert kind.__hash__ is not None, "frozen: equal ones are one key"


def test_text_stays_readable_in_a_document() -> None:
    assert readable_json({"class": "Fußgänger"}) == '{\n  "class": "Fußgänger"\n}\n'.encode()


def test_a_live_stage_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    def run(folder: Path) -> Loose:
        (folder / "file").write_text("kept")
        Store(tmp_path).stage(kind("other"), {}, Counted())
        return Loose((folder / "file").read_text())

    assert Store(tmp_path).stage(StageKind("export", 1, Loose), {}, run).result == Loose("kept")


# Builds two stages in the store argv[2], and does something in the middle of the N-th operation on the file system, for
# N = 1, 2, ... until a build ends undisturbed. Prints a JSON line for each N: what the build after the disturbed one
# found, did and left.
DISTURBED = """
import contextlib, errno, json, os, shutil, signal, sys
from dataclasses import dataclass
from pathlib import Path
from edgekd.core.errors import SpecError
from edgekd.builds.stage_store import StageKind, StageResult, Store

@dataclass(frozen=True)
class Named(StageResult):
    name: str

kind, base, prepared = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "fresh"
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "fcntl.flock"}
left = 0

def disturb(event, arguments):
    global left
    if left and event in EVENTS:
        left -= 1
        if left == 0:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device")

def build(root, fresh=False):
    done = []
    def work(name, content):
        def run(folder):
            done.append(name)
            (folder / "sub").mkdir()
            for index in range(2):
                (folder / "sub" / str(index)).write_bytes(content * 1000)
            return Named(name)
        return run
    store = Store(root, fresh)
    first = store.stage(StageKind("first", 1, Named), {}, work("first", b"1"))
    second = store.stage(StageKind("second", 1, Named), {"first": first.sha256}, work("second", first.sha256.encode()))
    return done, second.sha256

sys.addaudithook(disturb)
for count in range(1, 1000):
    root = base / str(count)
    if prepared:
        build(root)
    child = os.fork()
    if child == 0:
        left = count
        code = 0
        try:
            build(root, fresh=prepared)
        except SpecError as error:
            code = 1 if "No space left" in str(error) else 4
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 3
        # Recovered from: an error in what is optional, such as looking for leftovers.
        os._exit(code if left == 0 else 9)
    status = os.waitpid(child, 0)[1]
    found = sorted(path.name.split("-")[0] for path in root.glob("[!.]*")) if root.exists() else []
    done, identity = build(root)
    names = sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    print(json.dumps({"code": code, "found": found, "done": done, "identity": identity, "names": names}))
    shutil.rmtree(root)
    if code == 9:
        break
"""


def disturbed(kind: str, prepared: str, folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", DISTURBED, kind, folder, prepared]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.mark.parametrize("prepared", ["new", "fresh"])
@pytest.mark.parametrize(("kind", "codes"), [("kill", {-9}), ("full", {0, 1})])
def test_disturbed_at_any_moment_the_next_build_resumes_and_gives_the_same(
    tmp_path: Path, kind: str, codes: set[int], prepared: str
) -> None:
    *builds, undisturbed = disturbed(kind, prepared, tmp_path)
    assert undisturbed["code"] == 9
    assert undisturbed["done"] == []
    assert len(builds) > 30
    for build in builds:
        assert build["code"] in codes
        assert build["identity"] == undisturbed["identity"]
        assert build["names"] == undisturbed["names"]
        assert set(build["done"]) == {"first", "second"} - set(build["found"])
    assert any(build["found"] == ["first"] for build in builds)


TWO_BUILDERS = """
import sys, time
from pathlib import Path
from edgekd.core.progress import PlainProgress
from edgekd.builds.stage_store import StageKind, StageResult, Store

def run(folder):
    with open(sys.argv[2], "a") as log:
        log.write("done\\n")
    for index in range(20):
        (folder / str(index)).write_text("content")
        time.sleep(0.03)
    return StageResult()

stage = Store(Path(sys.argv[1]), progress=PlainProgress()).stage(StageKind("slow", 1, StageResult), {}, run)
print(stage.cached, len(stage.files), stage.sha256)
"""


def test_of_two_builders_of_one_stage_one_works_and_the_other_waits(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_BUILDERS, tmp_path / "store", tmp_path / "log"]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [builder.communicate(timeout=300) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], answers
    printed = sorted(out.split() for out, _ in answers)
    assert [line[:2] for line in printed] == [["False", "20"], ["True", "20"], ["True", "20"]]
    assert len({line[2] for line in printed}) == 1
    assert (tmp_path / "log").read_text() == "done\n"
    assert sum("another build is doing this" in err for _, err in answers) == 2


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 256 KiB. Skips where one cannot be made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("making a small file system needs root; a simulated full disk is tested elsewhere here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_that_names_the_place_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as root:
        small = Store(root).stage(kind("small"), {}, Counted())
        with pytest.raises(SpecError) as caught:
            Store(root).stage(kind("large"), {}, Counted(bytes(1 << 20)))
        assert str(caught.value).startswith(f"{root}/large-")
        assert "cannot write; found No space left on device; fix: free some space there" in str(caught.value)
        assert visible(root) == [small.path.name]
        assert Store(root).stage(kind("small"), {}, Counted()).cached


def test_a_place_that_cannot_be_written_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/edgekd")):
        with pytest.raises(SpecError, match=f"{root}: cannot write.*fix: choose a place"):
            Store(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_the_right_to_write_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tmp_path.chmod(0o500)
    with pytest.raises(SpecError, match="Permission denied"):
        store.stage(EXPORT, {}, Counted())


def test_the_ledger_has_a_row_for_each_stage(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage(EXPORT, {}, Counted())
    assert ledger_row(stage) == LedgerStage(
        name="export",
        version=1,
        key=stage.key,
        seconds=round(stage.seconds, 3),
        bytes=5,
        map50_95=0.4,
        map50=None,
        sha256=stage.sha256,
        files={"sub/graph.onnx": stage.files["sub/graph.onnx"].sha256},
        cached=False,
        cpu_seconds=round(stage.cpu_seconds or 0.0, 2),
    )
    host = HostFacts(
        device="local",
        engine="e",
        cpu="c",
        cores=1,
        threads=1,
        governor=None,
        clock_mhz=None,
        memory_bytes=None,
        board=None,
        os="o",
        kernel="k",
        machine="m",
        python="3",
    )
    ledger = Ledger(model="m.onnx", target="xavier", bundle="b", budget=(), host=host, stages=(ledger_row(stage),))
    path = write_ledger(tmp_path, ledger)
    assert read_ledger(tmp_path) == ledger
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "newer": 1}), "utf-8")
    assert read_ledger(tmp_path) == ledger
    with pytest.raises(SpecError, match="cannot write"):
        write_ledger(tmp_path / "missing", ledger)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds have passed since any file changed."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10_000_000_000)


def cached_reads(path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many files a cache read from disk reads to hash `file`, having checked that the hash is right."""
    read: list[Path] = []

    def counted(target: Path) -> str:
        read.append(target)
        return file_sha256(target)

    with monkeypatch.context() as patch:
        patch.setattr("edgekd.builds.stage_store.file_sha256", counted)
        hashes = FileHashes(path)
        assert hashes.sha256(file) == file_sha256(file)
        hashes.save()
    return len(read)


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, file = tmp_path / "hashes.json", tmp_path / "image.jpg"
    file.write_bytes(b"image")
    assert [cached_reads(cache, file, monkeypatch) for _ in range(3)] == [1, 0, 0]
    file.write_bytes(b"other image")
    assert [cached_reads(cache, file, monkeypatch) for _ in range(2)] == [1, 0]


@pytest.mark.usefixtures("settled")
def test_another_file_of_the_same_size_and_time_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, file, other = tmp_path / "hashes.json", tmp_path / "image.jpg", tmp_path / "other.jpg"
    file.write_bytes(b"image")
    cached_reads(cache, file, monkeypatch)
    facts = file.stat()
    time.sleep(0.02)  # more than a tick of the kernel's clock
    other.write_bytes(b"IMAGE")
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(file)
    assert cached_reads(cache, file, monkeypatch) == 1


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, file = tmp_path / "hashes.json", tmp_path / "image.jpg"
    file.write_bytes(b"image")
    assert [cached_reads(cache, file, monkeypatch) for _ in range(2)] == [1, 1]
    assert not cache.exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"NAME": 1}', b'{"NAME": [1, 2, 3, "zz"]}']
)
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, file = tmp_path / "hashes.json", tmp_path / "image.jpg"
    file.write_bytes(b"image")
    cache.write_bytes(content.replace(b"NAME", str(file).encode()))
    assert [cached_reads(cache, file, monkeypatch) for _ in range(2)] == [1, 0]


def test_a_file_that_cannot_be_hashed_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image\.jpg: cannot read"):
        FileHashes(tmp_path / "hashes.json").sha256(tmp_path / "image.jpg")


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another user own a file: by root, or as this user sees it."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.mark.parametrize("file", [".", "stage.json", "sub", "sub/graph.onnx"])
def test_a_stage_of_another_user_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    work = Counted()
    stage = Store(tmp_path).stage(EXPORT, {"model": "m"}, work)
    give_away(stage.path / file, monkeypatch)
    assert read_stage(stage.path, EXPORT) is None
    again = Store(tmp_path).stage(EXPORT, {"model": "m"}, work)
    assert (work.times, again.cached) == (2, False)


def test_hashes_that_another_user_wrote_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"content")
    now = file.stat()
    entry = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, "0" * 64]
    cache.write_text(json.dumps({str(file): entry}), "utf-8")
    assert FileHashes(cache).sha256(file) == "0" * 64
    give_away(cache, monkeypatch)
    assert FileHashes(cache).sha256(file) == file_sha256(file)
