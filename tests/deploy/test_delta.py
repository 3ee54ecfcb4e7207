"""A delta gives the new bundle byte for byte, is smaller, and whatever it says, nothing but that bundle comes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.core.bundle.archive import (
    END,
    extract,
    file_entry,
    head_members,
    member,
    pack,
    read_head,
    replace_signatures,
)
from edgekd.core.bundle.delta import (
    COPY,
    DATA,
    DOCUMENT,
    FREE_RECORDS,
    MAX_PIECE,
    NEAR,
    NEW,
    PART,
    RECORD,
    XOR,
    DeltaRecord,
    OldBundle,
    is_delta,
    opening,
    read_delta_head,
    rebuild,
)
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.bundle.signatures import Signature
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import BundleError, HashError, SignatureError
from edgekd.core.formats import packed_graph
from edgekd.core.formats.onnx_bytes import initializers
from edgekd.deploy.delta import chunks, run


@pytest.fixture(scope="module")
def old(tiny_build: Built) -> Path:
    return tiny_build.bundle


def changed(bundle: Path, folder: Path, how: Callable[[Path, Manifest], dict[str, Any]]) -> Path:
    """The bundle with something else in its files and its manifest, which `how` gives."""
    folder.mkdir(exist_ok=True)
    manifest = extract(bundle, folder / "files")
    new = replace(manifest, **how(folder / "files", manifest))
    sources = {entry.path: folder / "files" / entry.path for entry in new.files}
    files = tuple(file_entry(entry.path, sources[entry.path], entry.role) for entry in new.files)
    pack(replace(new, files=files), sources, folder / "new.edgekd")
    return folder / "new.edgekd"


def retrained(share: float) -> Callable[[Path, Manifest], dict[str, Any]]:
    """Move some weights of the network by one."""

    def how(folder: Path, manifest: Manifest) -> dict[str, Any]:
        path = folder / manifest.graph.path
        graph = np.frombuffer(packed_graph.unpack(path.read_bytes()), np.uint8).copy()
        rng = np.random.default_rng(0)
        for found in initializers(graph.tobytes()):
            if found.end - found.begin >= packed_graph.MIN_CUT:
                moved = rng.random(found.end - found.begin) < share
                graph[found.begin : found.end] ^= moved.astype(np.uint8)
        path.write_bytes(packed_graph.pack(graph.tobytes()))
        return {"name": "retrained"}

    return how


@pytest.fixture(scope="module")
def new(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(old, tmp_path_factory.mktemp("new"), retrained(0.02))


@pytest.fixture(scope="module")
def delta(old: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("delta") / "update.edgekd-delta"
    run(old, new, out)
    return out


@pytest.fixture(scope="module")
def before(old: Path, tmp_path_factory: pytest.TempPathFactory) -> OldBundle:
    folder = tmp_path_factory.mktemp("before") / "bundle"
    extract(old, folder)
    return OldBundle(folder)


def test_it_leads_to_the_new_bundle(delta: Path, before: OldBundle, new: Path, tmp_path: Path) -> None:
    assert is_delta(delta)
    assert not is_delta(new)
    assert read_delta_head(delta) == read_head(new)
    assert rebuild(delta, before, tmp_path / "again.edgekd").identity == read_head(new).identity
    assert (tmp_path / "again.edgekd").read_bytes() == new.read_bytes()
    assert delta.stat().st_size < new.stat().st_size / 3


def test_the_same_bundles_give_the_same_delta(old: Path, new: Path, delta: Path, tmp_path: Path) -> None:
    run(old, new, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == delta.read_bytes()


def test_what_is_told_of_it(edgekd: EdgeKD, old: Path, new: Path, delta: Path, tmp_path: Path) -> None:
    told = edgekd("delta", old, new, "--out", tmp_path / "delta", "--json").json
    assert_documented(told, "delta")
    assert told["bytes"] == delta.stat().st_size
    assert told["share"] == pytest.approx(told["bytes"] / told["new_bytes"], abs=1e-4)
    assert told["pieces"]["copy"] > told["pieces"]["new"]
    assert "in place of" in edgekd("delta", old, new, "--out", tmp_path / "delta").out


def test_another_threshold_costs_little_more_than_the_manifest(old: Path, tmp_path: Path) -> None:
    new = changed(old, tmp_path / "t", lambda folder, manifest: {"name": "other thresholds"})
    run(old, new, tmp_path / "delta")
    assert (tmp_path / "delta").stat().st_size < len(head_members(read_head(new))) + 4096


def test_files_that_come_go_and_shift(old: Path, before: OldBundle, tmp_path: Path) -> None:
    def how(folder: Path, manifest: Manifest) -> dict[str, Any]:
        agent = next(entry for entry in manifest.files if entry.role == "agent")
        content = (folder / agent.path).read_bytes()
        (folder / agent.path).write_bytes(content[:5000] + b"More than before." + content[5000:])
        (folder / "empty.txt").write_bytes(b"")
        more = file_entry("empty.txt", folder / "empty.txt", "evidence")
        kept = [entry for entry in manifest.files if entry.role != "calibration-cache"]
        return {"files": tuple(sorted([*kept, more], key=lambda entry: entry.path))}

    new = changed(old, tmp_path / "t", how)
    run(old, new, tmp_path / "delta")
    rebuild(tmp_path / "delta", before, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == new.read_bytes()
    assert (tmp_path / "delta").stat().st_size < 20_000


def test_a_graph_that_another_zlib_made_is_taken_as_it_is(
    old: Path, before: OldBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(packed_graph.zlib, "Z_RLE", packed_graph.zlib.Z_FIXED)
        new = changed(old, tmp_path / "t", retrained(0.01))
    run(old, new, tmp_path / "delta")
    rebuild(tmp_path / "delta", before, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == new.read_bytes()


def test_a_camera_with_another_zlib_says_so(
    delta: Path, before: OldBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_graph.zlib, "Z_RLE", packed_graph.zlib.Z_FIXED)
    with pytest.raises(HashError, match=r"graph.*was rebuilt as another file.*get the whole bundle"):
        rebuild(delta, before, tmp_path / "again")
    assert list(tmp_path.iterdir()) == []


def test_chunks_are_cut_by_content() -> None:
    content = random.Random(0).randbytes(200_000)
    found = chunks(content)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(content)
    assert max(end - begin for begin, end in found) <= 1 << 14
    shifted = b"something" + content
    pieces = {content[begin:end] for begin, end in found}
    same = sum(end - begin for begin, end in chunks(shifted) if shifted[begin:end] in pieces)
    assert same > 0.95 * len(content)
    assert chunks(b"") == []
    assert chunks(b"x") == [(0, 1)]


# ------------------------------------------------------------------------------------------------- what is not to be


Piece = tuple[DeltaRecord, bytes]
Change = Callable[[list[Piece]], object]


def pieces_of(delta: Path) -> list[Piece]:
    """The records of a delta, each with its data."""
    data, at, found = data_of(delta), 0, []
    while at < len(data):
        kind, part, file, length, offset, stored = RECORD.unpack_from(data, at)
        at += RECORD.size + stored
        found.append((DeltaRecord(kind, length, part, file, offset, stored), data[at - stored : at]))
    return found


def made(delta: Path, out: Path, change: Change, *, first: bytes = b"", data: bytes | None = None) -> Path:
    """The delta with other records, or with another first member or other data."""
    pieces = pieces_of(delta)
    change(pieces)
    stored = b"".join(record.packed() + content for record, content in pieces) if data is None else data
    head = head_members(read_delta_head(delta))
    document = member(DOCUMENT, first or delta.read_bytes()[512 : 512 + 86])
    out.write_bytes(b"".join((document, head, member(DATA, stored), END)))
    return out


def data_of(delta: Path) -> bytes:
    """What a delta brings along."""
    content = delta.read_bytes()
    at = content.index(b"delta.bin\0")
    return content[at + 512 : at + 512 + int(content[at + 124 : at + 135], 8)]


def first(kind: int, /, **changed: int) -> Change:
    """Other numbers in the first record of a kind."""

    def change(pieces: list[Piece]) -> None:
        place = next(place for place, (record, _) in enumerate(pieces) if record.kind == kind)
        record, content = pieces[place]
        pieces[place] = (replace(record, **changed), content)

    return change


def nothing(pieces: list[Piece]) -> None:
    """No change."""


def test_what_is_made_again_is_the_same(delta: Path, tmp_path: Path) -> None:
    assert made(delta, tmp_path / "same", nothing).read_bytes() == delta.read_bytes()
    kinds = {record.kind for record, _ in pieces_of(delta)}
    assert kinds == {PART, COPY, XOR, NEAR, NEW}


@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: pieces.clear(),
        lambda pieces: pieces.pop(),
        lambda pieces: pieces.pop(0),
        lambda pieces: pieces.append(pieces[-1]),
        lambda pieces: pieces.append((DeltaRecord(PART, 0), b"")),
        lambda pieces: pieces.insert(1, (DeltaRecord(PART, 0), b"")),
        lambda pieces: pieces.insert(1, (DeltaRecord(COPY, 1), b"")),
        *(first(kind, length=value) for kind in (PART, COPY, XOR, NEAR, NEW) for value in (0, 1, 1 << 31, 2**32 - 1)),
        *(first(kind, part=value) for kind in (PART, COPY, XOR, NEAR, NEW) for value in (7, 255)),
        *(first(kind, file=value) for kind in (PART, COPY, XOR, NEAR, NEW) for value in (7, 65535)),
        *(first(kind, at=value) for kind in (PART, COPY, XOR, NEAR, NEW) for value in (1 << 31, 2**32 - 1)),
        *(first(kind, stored=value) for kind in (PART, COPY, XOR, NEAR, NEW) for value in (1, 1 << 30, 2**32 - 1)),
        *(first(kind, kind=value) for kind in (PART, COPY, XOR, NEAR, NEW) for value in (5, 255)),
        first(XOR, length=MAX_PIECE + 1),
        first(XOR, stored=0),
    ],
)
def test_a_delta_that_is_wrong_leaves_nothing(delta: Path, before: OldBundle, tmp_path: Path, change: Change) -> None:
    bad = made(delta, tmp_path / "bad", change)
    with pytest.raises(BundleError):
        rebuild(bad, before, tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        opening("0" * 64)[:-1],
        opening("A" * 64),
        opening("0" * 64).replace(b":2", b":1"),
        canonical_json({"format": 1, "old": "0" * 64, "files": [], "sources": []}) + b"\n",
        b"[" * 4_000_000,
    ],
)
def test_a_delta_of_another_format_says_so(delta: Path, tmp_path: Path, content: bytes) -> None:
    bad = made(delta, tmp_path / "bad", nothing, first=content or b"{}")
    with pytest.raises(BundleError, match=r"another format; expected format 2; .*make it again"):
        read_delta_head(bad)


def test_a_delta_from_another_bundle(delta: Path, before: OldBundle, tmp_path: Path) -> None:
    bad = made(delta, tmp_path / "bad", nothing, first=opening("0" * 64))
    with pytest.raises(BundleError, match="from another bundle"):
        rebuild(bad, before, tmp_path / "again")


def test_data_that_are_left_over_or_missing(delta: Path, before: OldBundle, tmp_path: Path) -> None:
    data = data_of(delta)
    for wrong in (b"", data + b"x", data[:-1], bytes(len(data))):
        bad = made(delta, tmp_path / "bad", nothing, data=wrong)
        with pytest.raises(BundleError):
            rebuild(bad, before, tmp_path / "again")


def test_a_piece_that_expands_without_end_is_not_followed(delta: Path, before: OldBundle, tmp_path: Path) -> None:
    import tracemalloc
    import zlib

    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(200_000_000)) + deflate.flush()

    def change(pieces: list[Piece]) -> None:
        pieces[1] = (DeltaRecord(NEW, 1000, stored=len(bomb)), bomb)

    bad = made(delta, tmp_path / "bad", change)
    tracemalloc.start()
    with pytest.raises(BundleError):
        rebuild(bad, before, tmp_path / "again")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_tiny_pieces_are_counted(delta: Path, before: OldBundle, tmp_path: Path) -> None:
    """Each of them costs more than it gives: a few megabytes of them took minutes."""
    tiny = [(DeltaRecord(COPY, 1, at=number), b"") for number in range(FREE_RECORDS + 9)]
    begin = (DeltaRecord(PART, read_delta_head(delta).manifest.files[0].length), b"")
    bad = made(delta, tmp_path / "bad", lambda pieces: pieces.__setitem__(slice(None), [begin, *tiny]))
    with pytest.raises(BundleError, match="more than one record for"):
        rebuild(bad, before, tmp_path / "again")


def test_any_other_byte_is_refused_or_does_not_matter(
    delta: Path, before: OldBundle, new: Path, tmp_path: Path
) -> None:
    content, chance = delta.read_bytes(), random.Random(0)
    for _ in range(300):
        bad = bytearray(content)
        for _ in range(chance.choice((1, 1, 5))):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        (tmp_path / "bad").write_bytes(bad[: chance.choice((len(bad), len(bad), chance.randrange(len(bad))))])
        try:
            rebuild(tmp_path / "bad", before, tmp_path / "again")
        except BundleError:
            assert not (tmp_path / "again").exists()
            continue
        assert (tmp_path / "again").read_bytes() == new.read_bytes()
        (tmp_path / "again").unlink()


def test_the_head_is_judged_before_anything_else(delta: Path, before: OldBundle, tmp_path: Path) -> None:
    bad = made(delta, tmp_path / "bad", lambda pieces: pieces.clear())

    def refuse(envelope: Any) -> None:
        raise SignatureError("not to be trusted")

    with pytest.raises(SignatureError):
        rebuild(bad, before, tmp_path / "again", refuse)


def test_signatures_travel(old: Path, new: Path, before: OldBundle, tmp_path: Path) -> None:
    signed = tmp_path / "signed.edgekd"
    replace_signatures(new, [Signature("ab" * 32, "cd" * 64)], signed)
    run(old, signed, tmp_path / "delta")
    rebuild(tmp_path / "delta", before, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == signed.read_bytes()
