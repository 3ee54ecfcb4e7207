"""A bundle unpacks to what was packed, is the same each time, and is refused when a single bit is wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.bundle.archive import extract, file_entry, opened_bundle, pack, read_manifest, verify
from edgekd.core.bundle.manifest import (
    RESERVED,
    BuildLimits,
    DetectionThresholds,
    Evidence,
    GraphScore,
    Licence,
    Lineage,
    Manifest,
    TargetName,
    to_json,
)
from edgekd.core.errors import BundleError, HashError, SpecError

HASH = "0" * 64
ROOT = Path(__file__).resolve().parents[3]
CONTENTS = {
    "graph.onnx": bytes(range(256)) * 5,
    "calibration.cache": b"TRT-8502-EntropyCalibration2\n",
    "report/empty.txt": b"",
    "report/index.html": b"<" * 512,
}


def write_sources(folder: Path, contents: dict[str, bytes]) -> dict[str, Path]:
    """The files to pack, under names that say nothing of where they go in the bundle."""
    folder.mkdir(exist_ok=True)
    sources = {path: folder / f"source{index}" for index, path in enumerate(contents)}
    for path, source in sources.items():
        source.write_bytes(contents[path])
    return sources


def manifest_of(sources: dict[str, Path]) -> Manifest:
    graph = max(sources)
    entries = (file_entry(path, sources[path], "graph" if path == graph else "report") for path in sorted(sources))
    return Manifest(
        name="yolo11n",
        created_by="edgekd 0.1.0",
        counter=3,
        target=TargetName("xavier", "nvidia,p2972-0000"),
        tensorrt=("8.5", "8.6"),
        detector={
            "classes": ("person", "car"),
            "preprocess": {
                **{"height": 640, "width": 640, "color": "rgb", "scale": 1 / 255, "pad_value": 114, "center": True},
                **{"mean": (0, 0, 0), "std": (1, 1, 1), "upscale": True},
            },
            "head": {"kind": "yolo", "nms": True, "strides": (8, 16, 32)},
        },
        thresholds=DetectionThresholds((0.25, 0.25), 0.7, 300),
        files=tuple(entries),
        limits=BuildLimits(None, None, None),
        evidence=Evidence(8, GraphScore(0.4, 0.5, 100, (0.4, None)), GraphScore(0.4, 0.5, 50, (0.4, None)), 1.0),
        lineage=Lineage(HASH, None, HASH, None, "ptq", HASH, 0, {}, ()),
        licences=(Licence("model", "NOASSERTION"),),
    )


def pack_contents(folder: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    sources = write_sources(folder / "sources", contents)
    out = folder / "a.edgekd"
    pack(manifest_of(sources), sources, out)
    return out


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return pack_contents(tmp_path)


names = st.from_regex(r"[a-z0-9_][a-z0-9_.+-]{0,20}", fullmatch=True)
contents = st.binary(max_size=40) | st.builds(bytes, st.sampled_from([511, 512, 513, 1024, 70_000]))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.builds("d{}/{}".format, st.integers(0, 3), names), contents, min_size=1, max_size=6))
def test_a_bundle_unpacks_to_what_was_packed(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("round")
    bundle = pack_contents(folder, files)
    manifest = verify(bundle)
    assert manifest == read_manifest(bundle) == extract(bundle, folder / "out")
    unpacked = read_folder(folder / "out")
    assert {path: unpacked[path] for path in unpacked if path not in RESERVED} == files
    shutil.rmtree(folder)


def test_packing_again_elsewhere_and_later_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = pack_contents(tmp_path)
    sources = write_sources(tmp_path / "b" / "sources", dict(reversed(CONTENTS.items())))
    for source in sources.values():
        os.utime(source, (0, 0))
        source.chmod(0o700)
    second = tmp_path / "b" / "b.edgekd"
    pack(manifest_of(sources), sources, second)
    assert first.read_bytes() == second.read_bytes()


def test_any_tar_can_unpack_a_bundle(bundle: Path, tmp_path: Path) -> None:
    extract(bundle, tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    subprocess.run(["tar", "-xf", bundle, "-C", tmp_path / "theirs"], check=True)
    assert read_folder(tmp_path / "theirs") == read_folder(tmp_path / "ours")
    told = json.loads((tmp_path / "theirs" / "signatures.json").read_bytes())
    digest = hashlib.sha256((tmp_path / "theirs" / "manifest.json").read_bytes()).hexdigest()
    assert told == {"format": 1, "manifest_sha256": digest, "signatures": []}
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["manifest.json", "signatures.json", *sorted(CONTENTS)]
    assert all(member.isreg() and member.mode == 0o644 and not member.mtime for member in members)
    assert not any(member.uid or member.gid or member.uname or member.gname for member in members)


def refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        verify(path)
    except BundleError as error:
        return str(error).startswith(str(path))
    return False


def test_a_flipped_bit_is_never_accepted(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    chance = random.Random(0)
    for _ in range(3000):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        assert refused(tmp_path / "bad.edgekd", bytes(bad))


def test_a_bundle_cut_short_or_lengthened_is_never_accepted(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    assert all(refused(tmp_path / "bad.edgekd", good[:length]) for length in range(0, len(good), 7))
    assert all(refused(tmp_path / "bad.edgekd", good + bytes(count)) for count in (1, 512, 1024, 8192))
    assert refused(tmp_path / "bad.edgekd", good + good)


def test_the_contents_are_seen_where_they_are(bundle: Path) -> None:
    with opened_bundle(bundle) as reader:
        for entry in reader.manifest.files:
            assert bytes(reader.view(entry)[:]) == reader.read(entry) == CONTENTS[entry.path]


@pytest.mark.parametrize(("change", "words"), [(-1, "cut short"), (1, "something after its end")])
def test_a_size_that_the_manifest_does_not_give_is_named(bundle: Path, change: int, words: str) -> None:
    with opened_bundle(bundle) as reader:
        os.truncate(bundle, reader.size + change)
        with pytest.raises(BundleError, match=words):
            reader.require_size()


def test_members_swapped_repeated_dropped_or_added_are_never_accepted(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    blocks = [good[at : at + 512] for at in range(0, len(good), 512)]
    chance = random.Random(1)
    for _ in range(1000):
        bad = list(blocks)
        first, second = sorted(chance.sample(range(len(bad)), 2))
        edit = chance.choice(["swap", "repeat", "drop", "copy"])
        if edit == "swap":
            bad[first], bad[second] = bad[second], bad[first]
        elif edit == "repeat":
            bad.insert(second, bad[first])
        elif edit == "drop":
            del bad[first:second]
        else:
            bad[second] = bad[first]
        assert bad == blocks or refused(tmp_path / "bad.edgekd", b"".join(bad))


def test_a_manifest_of_other_files_is_refused_even_with_its_own_digest(bundle: Path, tmp_path: Path) -> None:
    """An attacker may write a consistent head; what follows must still be exactly what it lists."""
    good = bundle.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    head = pack_contents(other, {**CONTENTS, "graph.onnx": b"?" * len(CONTENTS["graph.onnx"])}).read_bytes()
    start = good.index(b"calibration.cache\0")
    assert head.index(b"calibration.cache\0") == start
    (tmp_path / "bad.edgekd").write_bytes(head[:start] + good[start:])
    with pytest.raises(HashError, match=r"graph\.onnx is damaged"):
        verify(tmp_path / "bad.edgekd")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_regular_file_is_refused(bundle: Path, tmp_path: Path, kind: bytes) -> None:
    good = bundle.read_bytes()
    at = good.index(b"graph.onnx\0")
    member = tarfile.TarInfo("graph.onnx")
    member.type, member.linkname = kind, "/etc/passwd"
    assert refused(tmp_path / "bad.edgekd", good[:at] + member.tobuf(tarfile.USTAR_FORMAT) + good[at + 512 :])


def test_an_unknown_format_names_the_bundle_and_the_fix(bundle: Path) -> None:
    good = bundle.read_bytes()
    head = to_json(read_manifest(bundle))
    later = head.replace(b'"format":1', b'"format":2')
    bad = good.replace(head, later).replace(*(hashlib.sha256(text).hexdigest().encode() for text in (head, later)))
    bundle.write_bytes(bad)
    with pytest.raises(BundleError, match=r"a\.edgekd: manifest\.format: unknown.*fix: update edgekd"):
        read_manifest(bundle)


def test_gnu_tar_makes_the_same_archive(bundle: Path, tmp_path: Path) -> None:
    """The command is the one in docs/reference/formats/bundle.md."""
    extract(bundle, tmp_path / "out")
    tar = "tar --format=ustar --blocking-factor=1 --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0644 -cf"
    members = ["manifest.json", "signatures.json", *sorted(CONTENTS)]
    subprocess.run([*tar.split(), tmp_path / "b.edgekd", *members], cwd=tmp_path / "out", check=True)
    assert (tmp_path / "b.edgekd").read_bytes() == bundle.read_bytes()


def test_tars_by_others_and_other_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../etc/passwd"))
    assert refused(tmp_path / "tar", buffer.getvalue())
    for content in (b"", b"\0" * 10240, b"PK\3\4" * 1000, os.urandom(5000)):
        assert refused(tmp_path / "other", content)


def test_a_bundle_that_cannot_be_opened_is_a_bundle_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", tmp_path / ("a" * 300)):
        with pytest.raises(BundleError, match="cannot read"):
            verify(path)


def test_nothing_of_a_damaged_bundle_becomes_visible(bundle: Path, tmp_path: Path) -> None:
    bad = bytearray(bundle.read_bytes())
    bad[-1500] ^= 1
    bundle.write_bytes(bad)
    (tmp_path / "device").mkdir()
    with pytest.raises(BundleError):
        extract(bundle, tmp_path / "device" / "out")
    assert list((tmp_path / "device").iterdir()) == []


def test_a_folder_in_use_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(SpecError, match="in use"):
        extract(bundle, tmp_path / "out")
    with pytest.raises(SpecError, match="in use"):
        extract(bundle, bundle)
    assert read_folder(tmp_path / "out") == {"mine": b"mine"}
    (tmp_path / "empty").mkdir()
    extract(bundle, tmp_path / "empty")
    assert (tmp_path / "empty" / "graph.onnx").read_bytes() == CONTENTS["graph.onnx"]


def test_packing_checks_the_files_and_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    sources = write_sources(tmp_path / "sources", CONTENTS)
    manifest = manifest_of(sources)
    before = set(tmp_path.iterdir())
    with pytest.raises(BundleError, match="lists other files"):
        pack(manifest, {}, bundle)
    with pytest.raises(BundleError, match=r"manifest\.name"):
        pack(replace(manifest, name=""), sources, bundle)
    for changed in (b"other", CONTENTS["graph.onnx"][::-1]):
        sources["graph.onnx"].write_bytes(changed)
        with pytest.raises(HashError, match="source0: changed"):
            pack(manifest, sources, bundle)
    sources["graph.onnx"].unlink()
    with pytest.raises(BundleError, match="source0: cannot read"):
        pack(manifest, sources, bundle)
    assert bundle.read_bytes() == good
    assert set(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, before = bundle.read_bytes(), set(tmp_path.iterdir())
    sources = write_sources(tmp_path / "sources", CONTENTS)
    manifest = manifest_of(sources)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        SpecError, match=r"a\.edgekd: cannot write; found No space left on device; fix: free some space"
    ):
        pack(manifest, sources, bundle)
    with pytest.raises(SpecError, match="No space left"):
        extract(bundle, tmp_path / "out")
    assert bundle.read_bytes() == good
    assert set(tmp_path.iterdir()) == before


def test_large_files_take_little_memory(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(64 << 20)
    tracemalloc.start()
    sources = {"graph.onnx": large}
    pack(manifest_of(sources), sources, tmp_path / "a.edgekd")
    verify(tmp_path / "a.edgekd")
    extract(tmp_path / "a.edgekd", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def python38() -> Path | None:
    found = [shutil.which("python3.8"), *sorted((Path.home() / ".pyenv" / "versions").glob("3.8.*/bin/python3.8"))]
    return next((Path(path) for path in found if path and works(Path(path))), None)


def works(python: Path) -> bool:
    answer = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    return answer.stdout.strip() == "(3, 8)"


def test_python_38_without_packages_verifies_and_unpacks(bundle: Path, tmp_path: Path) -> None:
    python = python38()
    if python is None:
        pytest.skip("no Python 3.8, which JetPack 5 devices have, is installed here")
    code = (
        "import sys; from pathlib import Path; from edgekd.core.bundle import archive\n"
        "manifest = archive.verify(Path(sys.argv[1])); archive.extract(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "archive.pack(manifest, {e.path: Path(sys.argv[2]) / e.path for e in manifest.files}, Path(sys.argv[3]))\n"
        "assert 'numpy' not in sys.modules"
    )
    out, again = tmp_path / "out", tmp_path / "again.edgekd"
    # -I and -S: neither the environment's nor the site's packages.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    subprocess.run([python, "-I", "-S", "-B", "-c", code, bundle, out, again], check=True, timeout=300)
    assert (out / "graph.onnx").read_bytes() == CONTENTS["graph.onnx"]
    assert again.read_bytes() == bundle.read_bytes()
