"""Checkpoints that take gigabytes of memory, or hours, are refused from what their directory and pickle state."""

from __future__ import annotations

import _codecs
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.core.errors import SpecError
from edgekd.detectors.checkpoint_scan import scan_checkpoint
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics.nn.tasks")


class Calls:
    """Pickled, this is a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Made:
    """Pickled, this is a call of `kind` without arguments, which is then given `state`."""

    def __init__(self, kind: type, state: Any) -> None:
        self.parts = (kind, (), state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Path:
    """Write the records of a checkpoint anew, each by `change`."""
    with zipfile.ZipFile(path) as archive:
        records = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in records:
            change(archive, entry, content)
    return path


def compressed(folder: Path) -> Path:
    path = saved({"model": torch.nn.Linear(1, 1), "w": torch.zeros(1 << 24)}, folder)
    return rewritten(path, lambda archive, entry, data: archive.writestr(entry.filename, data, zipfile.ZIP_DEFLATED))


def shorter(folder: Path) -> Path:
    def change(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
        archive.writestr(entry.filename, data[:4] if entry.filename.endswith("/data/0") else data)

    return rewritten(saved({"w": torch.zeros(1 << 16)}, folder), change)


def repeated(folder: Path) -> Path:
    def change(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
        archive.writestr(entry.filename, data)
        if entry.filename.endswith("/data/0"):
            archive.writestr(entry.filename, data + data)

    with pytest.warns(UserWarning, match="Duplicate"):
        return rewritten(saved({"w": torch.zeros(4)}, folder), change)


def without_pickle(folder: Path) -> Path:
    def change(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
        if not entry.filename.endswith("data.pkl"):
            archive.writestr(entry.filename, data)

    return rewritten(saved({}, folder), change)


def repeating_one_number(folder: Path) -> Path:
    layer = torch.nn.Linear(1, 1)
    layer.weight = torch.nn.Parameter(torch.zeros(1).expand(1 << 15, 1 << 15))
    return saved({"model": layer}, folder)


def sparse(folder: Path) -> Path:
    return saved({"w": torch.sparse_coo_tensor([[0], [0]], [1.0], (1 << 20, 1 << 20))}, folder)


def bytes_of_nothing(folder: Path) -> Path:
    return saved({"w": Calls(bytearray, 1 << 40)}, folder)


def encoded_again(folder: Path) -> Path:
    text = "a" * 100_000
    return saved([Calls(_codecs.encode, text) for _ in range(1_000)], folder)


def copied_sets(folder: Path) -> Path:
    items = list(range(100_000))
    return saved([Calls(set, items) for _ in range(1_000)], folder)


def copied_attributes(folder: Path) -> Path:
    state = {str(index): None for index in range(20_000)}
    return saved([Made(torch.nn.Identity, state) for _ in range(1_000)], folder)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (compressed, "compressed"),
        (shorter, "whose record has 4"),
        (repeated, "repeat"),
        (without_pickle, "data.pkl"),
        (repeating_one_number, "storage of 1 elements"),
        (sparse, "_rebuild_sparse_tensor"),
        (bytes_of_nothing, "bytearray"),
        (encoded_again, "copy"),
        (copied_sets, "copy"),
        (copied_attributes, "copy"),
    ],
)
def test_a_checkpoint_that_takes_more_memory_than_disk_is_refused_unread(
    make: Callable[[Path], Path], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("PyTorch got the file")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(SpecError, match=found) as caught:
        load_checkpoint(path)
    assert len(str(caught.value)) < 1_000


def test_layers_that_are_met_without_end_are_refused(tmp_path: Path) -> None:
    inner = torch.nn.Sequential(torch.nn.Identity())
    for _ in range(40):
        inner = torch.nn.Sequential(torch.nn.Sequential(inner), torch.nn.Sequential(inner))
    with pytest.raises(SpecError, match="times"):
        load_checkpoint(saved({"model": inner}, tmp_path))
    circle = torch.nn.Sequential(torch.nn.Identity())
    circle._modules["1"] = circle
    with pytest.raises(SpecError, match="inside itself"):
        load_checkpoint(saved({"model": circle}, tmp_path))


def test_layers_may_share_one_activation(tmp_path: Path) -> None:
    act = torch.nn.SiLU()
    network = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(2, 2), act) for _ in range(50)))
    assert len(list(load_checkpoint(saved({"model": network}, tmp_path)).model.children())) == 50


def test_views_of_one_storage_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    path = saved(
        {"a": base[2:6], "b": base.reshape(3, 4).T, "c": base[:0], "d": base[5].clone(), "e": {1, 2}}, tmp_path
    )
    assert scan_checkpoint(path) == frozenset()


@pytest.mark.parametrize("name", ["pipe", "folder", "a" * 5_000, "huge"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "huge":
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
    with pytest.raises(SpecError):
        scan_checkpoint(path)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved({"model": torch.nn.Linear(2, 2)}, tmp_path_factory.mktemp("honest")).read_bytes()


def test_a_record_that_begins_after_the_end_is_refused(honest: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged.pt").write_bytes(honest[:28] + b"\xff\xff" + honest[30:])  # length of the header's extra field
    with pytest.raises(SpecError, match="cut short"):
        scan_checkpoint(tmp_path / "damaged.pt")


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_checkpoint_is_an_error_of_one_kind(honest: bytes, tmp_path: Path, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(honest) - 1))
    damaged = honest[:place] + data.draw(st.binary(max_size=6)) + honest[place + data.draw(st.integers(0, 6)) :]
    (tmp_path / "damaged.pt").write_bytes(damaged)
    with suppress(SpecError):
        scan_checkpoint(tmp_path / "damaged.pt")
