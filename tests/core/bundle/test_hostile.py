"""Hostile files are refused before memory is spent on them: each in a process of its own, whose peak is asserted.

Nothing is signed here, so that the limits alone must hold; signatures are judged before.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from test_archive import ROOT, manifest_of, write_sources

from edgekd.core.bundle.archive import END, extract, head_members, head_of, member, pack, read_head
from edgekd.core.bundle.delta import (
    COPY,
    DATA,
    DOCUMENT,
    EXTRA_GROWTH,
    MAX_EXPANSION,
    MAX_GRAPH_TEXT,
    MAX_GROWTH,
    NEAR,
    NEW,
    PART,
    DeltaRecord,
    opening,
)
from edgekd.core.bundle.manifest import MAX_BYTES
from edgekd.core.bundle.signatures import SignatureEnvelope
from edgekd.core.bundle.signatures import to_json as envelope_json
from edgekd.core.formats import packed_graph
from edgekd.core.formats.protobuf import field

PEAK = 64 << 20
"""Bytes that a process may take, Python and NumPy included."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")

_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from edgekd.core.errors import EdgeKDError
try:
    {action}
    print("taken")
except EdgeKDError as error:
    print(type(error).__name__, error)
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) << 10)
"""
VERIFY = "from edgekd.core.bundle.archive import verify; verify(Path(sys.argv[2]))"
TRUST = "from edgekd.core.bundle.trust import from_json; from_json(Path(sys.argv[2]).read_bytes())"
REBUILD = (
    "from edgekd.core.bundle.delta import OldBundle, rebuild; "
    "rebuild(Path(sys.argv[2]), OldBundle(Path(sys.argv[3])), Path(sys.argv[4]))"
)
FILL = (
    "from edgekd.agent.state.slots import State; from edgekd.core.bundle.archive import opened_bundle\n"
    "    state = State(Path(sys.argv[3]))\n"
    "    with opened_bundle(Path(sys.argv[2])) as bundle, state.locked(): state.fill(bundle)"
)


def refused(action: str, *arguments: Path) -> str:
    """The error of an action in a process, whose peak stays below the limit."""
    code = _CHILD.format(action=action)
    command = [sys.executable, "-c", code, str(ROOT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    error, peak = done.stdout.splitlines()
    assert error != "taken"
    assert int(peak) <= PEAK
    return error


def deflated(content: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(content) + deflate.flush()


def filled(before: str, item: str, after: str) -> bytes:
    """JSON of as many items as fit into a manifest."""
    count = (MAX_BYTES - len(before) - len(after)) // len(item)
    return (before + item * count + after).encode()


MANIFESTS = {
    "lists": filled('{"x-a":[', "[],", "0]}"),
    "deep lists": filled('{"x-a":[', "[" * 900 + "]" * 900 + ",", "0]}"),
    "deep objects": filled('{"x-a":[', '{"":' * 330 + "0" + "}" * 330 + ",", "0]}"),
    "objects": filled('{"x-a":[', '{"":{}},', "0]}"),
    "objects, as many as are allowed": b'{"x-a":[' + b'{"":{}},' * 16_000 + b"0]}",
    "strings": filled('{"x-a":[', '"ab",', "0]}"),
    "wide text": '{{"x-a":"{}"}}'.format("\U0001f600" * 260_000).encode(),
    "escapes": filled('{"x-a":"', "\\u1234", '"}'),
    "no end of a string": filled('"', '\\"', ""),
    "too deep": b'{"x-a":' + b"[" * 40 + b"]" * 40 + b"}",
    "brackets": b"[" * MAX_BYTES,
    "numbers": filled('{"x-a":[', "1e9,", "0]}"),
    "a long number": filled('{"x-a":', "9", "}"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest(tmp_path: Path, name: str) -> None:
    content, path = MANIFESTS[name], tmp_path / "bad.edgekd"
    assert len(content) <= MAX_BYTES
    envelope = SignatureEnvelope(hashlib.sha256(content).hexdigest())
    head = member("manifest.json", content) + member("signatures.json", envelope_json(envelope))
    path.write_bytes(head + END)
    assert refused(VERIFY, path).startswith("BundleError")


@pytest.mark.parametrize("content", [b'{"signed":' + b"[" * 250_000, b"[" + b"[]," * 80_000 + b"0]", b"\xff" * 1000])
def test_a_hostile_trust_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trust.json").write_bytes(content)
    assert refused(TRUST, tmp_path / "trust.json").startswith("SignatureError")


# ------------------------------------------------------------------------------------------------------------ deltas


def network(seed: int, layers: int = 24) -> bytes:
    """The packed graph of a network of some megabytes."""
    rng = np.random.default_rng(seed)
    weights = [np.clip(rng.normal(0, 25, (256, 1024)), -127, 127).astype(np.int8) for _ in range(layers)]
    tensors = [numpy_helper.from_array(each, f"t{number}") for number, each in enumerate(weights)]
    value = helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [256, 1024])
    graph = helper.make_graph([helper.make_node("Identity", ["t0"], ["y"])], "graph", [], [value], tensors)
    return packed_graph.pack(helper.make_model(graph).SerializeToString())


class Bundles:
    """An unpacked old bundle with a network, and the head of a new one. graph: number of the network's file."""

    def __init__(self, folder: Path) -> None:
        sources = write_sources(folder / "sources", {"a.txt": b"a" * 1000, "graph.packed": network(0)})
        pack(manifest_of(sources), sources, folder / "old.edgekd")
        extract(folder / "old.edgekd", folder / "old")
        self.folder, self.head = folder / "old", read_head(folder / "old.edgekd")
        self.old = self.head.identity
        self.files = self.head.manifest.files
        self.graph = 1
        self.stored = self.files[1].length
        self.head = head_of(replace(self.head.manifest, name="new"))

    def write(self, path: Path, records: list[bytes]) -> Path:
        """A delta of these records for the network."""
        first = packed(PART, self.files[0].length) + packed(COPY, self.files[0].length)
        data = member(DATA, first + b"".join(records))
        path.write_bytes(b"".join((member(DOCUMENT, opening(self.old)), head_members(self.head), data, END)))
        return path


def packed(kind: int, length: int, *, part: int = 0, file: int = 0, at: int = 0, data: bytes = b"") -> bytes:
    return DeltaRecord(kind, length, part, file, at, len(data)).packed() + data


def header_of(length: int, stored: int, tensors: list[list[object]], *streams: str) -> bytes:
    document = {
        "length": length,
        "sha256": "0" * 64,
        "streams": [[name, stored] for name in streams],
        "tensors": tensors,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def in_pieces(content: bytes) -> list[bytes]:
    """Records for new bytes."""
    parts = [content[at : at + (1 << 18)] for at in range(0, len(content), 1 << 18)]
    return [packed(NEW, len(part), data=deflated(part)) for part in parts]


def tiny_pieces(bundles: Bundles) -> list[bytes]:
    """Each refers to 32 KiB and gives a byte."""
    return [packed(PART, bundles.stored), *(packed(NEAR, 1, file=1, data=deflated(b"x")) for _ in range(50_000))]


def json_in_header(bundles: Bundles) -> list[bytes]:
    """A header of 500 KB, in a few hundred bytes, which is parsed as JSON."""
    content = b"[" + b"[]," * (MAX_GRAPH_TEXT // 3 - 10) + b"0]"
    return [packed(PART, len(content), part=1), *in_pieces(content)]


def longer_header(bundles: Bundles) -> list[bytes]:
    """A header of 4 MB, as many as 2 KB give."""
    content = b"[" + b"[]," * ((4 << 20) // 3 - 10) + b"0]"
    return [packed(PART, len(content), part=1), *in_pieces(content)]


def slow_skeleton(bundles: Bundles) -> list[bytes]:
    """Two letters at random, which zlib compresses at 0.4 MB/s."""
    chance, length = random.Random(0), MAX_GRAPH_TEXT - 1000
    content = bytes(chance.choice(b"ab") for _ in range(length))
    header = header_of(length, bundles.stored, [], "skeleton")
    return [packed(PART, len(header), part=1), *in_pieces(header), packed(PART, length, part=2), *in_pieces(content)]


def longer_skeleton(bundles: Bundles) -> list[bytes]:
    """More than the skeleton of a network has."""
    length = MAX_GRAPH_TEXT + 1000
    header = header_of(length, bundles.stored, [], "skeleton")
    return [packed(PART, len(header), part=1), *in_pieces(header), packed(PART, length, part=2)]


def all_that_a_part_may_have(bundles: Bundles) -> list[bytes]:
    """A stream of several times the network, copied from it."""
    length = bundles.stored * MAX_GROWTH + EXTRA_GROWTH - 500
    header = header_of(length, bundles.stored, [[0, "raw", length - 9, 1]], "bytes-1-0", "skeleton")
    copy = packed(COPY, 1 << 18, file=1)
    count, rest = divmod(length - 9, 1 << 18)
    copies = [copy] * count + [packed(COPY, rest, file=1)]
    begins = packed(PART, len(header), part=1), packed(PART, length - 9, part=2), packed(PART, 9, part=3)
    return [begins[0], *in_pieces(header), begins[1], *copies, begins[2], *in_pieces(bytes(9))]


def more_than_a_part_may_have(bundles: Bundles) -> list[bytes]:
    """A header that tells of more."""
    length = bundles.stored * MAX_GROWTH + EXTRA_GROWTH
    header = header_of(length, bundles.stored, [[0, "raw", length - 9, 1]], "bytes-1-0", "skeleton")
    return [packed(PART, len(header), part=1), *in_pieces(header)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (tiny_pieces, "more than one record for 1024 bytes"),
        (json_in_header, "more than 131072 values"),
        (longer_header, "expected the header of a network"),
        (slow_skeleton, "HashError"),
        (longer_skeleton, "header and skeleton of at most"),
        (all_that_a_part_may_have, "longer than"),
        (more_than_a_part_may_have, "parts of at most"),
    ],
)
def test_a_hostile_delta(tmp_path: Path, bundles: Bundles, make: Callable[[Bundles], list[bytes]], error: str) -> None:
    bad = bundles.write(tmp_path / "bad", make(bundles))
    assert error in refused(REBUILD, bad, bundles.folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_a_delta_of_a_bundle_that_is_much_larger(tmp_path: Path, bundles: Bundles) -> None:
    total = sum(entry.length for entry in bundles.files)
    entry = replace(bundles.files[1], length=(total + 100_000) * MAX_EXPANSION)
    bundles.head = head_of(replace(bundles.head.manifest, files=(bundles.files[0], entry)))
    bad = bundles.write(tmp_path / "bad", [packed(PART, entry.length)])
    assert "much too large" in refused(REBUILD, bad, bundles.folder, tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------- networks


def bomb(length: int, *, sha256: str = "0" * 64, kind: str = "raw") -> bytes:
    """A packed graph of equal bytes, in a field that no library reads."""
    skeleton = field(50, bytes(length))[:-length]
    gap = len(skeleton)
    tensors = {
        "raw": [[gap, "raw", length, 1]],
        "float16": [[gap, "float16", length // 4, 2]],
        "fp4x": [[gap, "fp4x", length // 4096, 4096]],
        "coded": [[gap, "coded-int8", length // 4096, 4096, 1]],
    }[kind]
    streams = {
        "raw": {"bytes-1-0": length},
        "float16": {"bytes-2-0": length // 4, "bytes-2-1": length // 4},
        "fp4x": {"fp4x-multipliers": length // 32, "fp4x-weights": length // 2},
        "coded": {"coded-00": length, "coded-columns": 4097, "coded-rows": length // 4096, "coded-steps": 4096},
    }[kind]
    stored = {name: deflated(bytes([name == "coded-steps"]) * count) for name, count in streams.items()}
    stored["skeleton"] = deflated(skeleton)
    document = {
        "length": gap + length,
        "sha256": sha256,
        "streams": [[name, len(content)] for name, content in stored.items()],
        "tensors": tensors,
        **({"symbols": [length, *[0] * 15]} if kind == "coded" else {}),
    }
    header = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    content = b"".join((deflated(header), *stored.values()))
    return packed_graph._prefix(kind == "coded", zlib.crc32(content), deflated(header), len(header)) + content


def holding(folder: Path, graph: bytes) -> Path:
    sources = write_sources(folder / "sources", {"graph.packed": graph})
    pack(manifest_of(sources), sources, folder / "bad.edgekd")
    return folder / "bad.edgekd"


def test_a_network_that_expands_without_end(tmp_path: Path) -> None:
    bad = holding(tmp_path, bomb(1 << 28))
    assert "expected an ONNX file of at most" in refused(FILL, bad, tmp_path / "state")


@pytest.mark.parametrize("kind", ["raw", "float16", "fp4x", "coded"])
def test_a_network_that_expands_as_far_as_it_may(tmp_path: Path, kind: str) -> None:
    """16 MiB from 16 KB, and the wrong hash at the end."""
    bad = holding(tmp_path, bomb(1 << 24, kind=kind))
    assert "another SHA-256" in refused(FILL, bad, tmp_path / "state")
    assert not list((tmp_path / "state").glob("slots/*/*"))


@pytest.mark.parametrize(
    ("graph", "error"),
    [
        (field(1, b"") * 200_000, "too many nodes"),
        (field(5, field(1, b"\1" * 60) + field(9, b"x")) * 15_000, "too many nodes"),
        (b"".join(field(1, field(4, b"%d" % number)) for number in range(30_000)), "different operators"),
        (field(1, field(4, bytes(1 << 24))), "a name of"),
    ],
    ids=["nodes", "shapes", "operators", "names"],
)
def test_a_network_that_takes_long_to_look_at(tmp_path: Path, graph: bytes, error: str) -> None:
    bad = holding(tmp_path, packed_graph.pack(field(7, graph)))
    assert error in refused(FILL, bad, tmp_path / "state")
    assert not list((tmp_path / "state").glob("slots/*/*"))
