"""A packed graph gives back its ONNX file byte for byte, or an error: whatever the file is and whatever befell it."""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from real_graphs import real_graph

from edgekd.compress.quantization.placement import float_head
from edgekd.core.canonical import canonical_json
from edgekd.core.file_view import file_view
from edgekd.core.formats import fp4x
from edgekd.core.formats.coded_int8 import CLASSES
from edgekd.core.formats.packed_graph import (
    MIN_CUT,
    PartsPacker,
    Section,
    assemble,
    expand,
    pack,
    parts,
    sections,
    unpack,
)
from edgekd.core.formats.packed_layout import MAX_BYTES, MAX_HEADER
from edgekd.core.formats.packed_layout import SYMBOLS as SYMBOL_STREAMS
from edgekd.graph.view import Graph

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "formats" / "packed-graph.md"
PREFIX = struct.Struct("<8sIIII")
RNG = np.random.default_rng(0)
DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


def model_of(*initializers: Any, doc: str = "") -> bytes:
    """An ONNX file with these initializers: arrays, which are called t0, t1, ..., or TensorProtos."""
    protos = [
        numpy_helper.from_array(value, f"t{index}") if isinstance(value, np.ndarray) else value
        for index, value in enumerate(initializers)
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["t0"], ["y"], "node")], "graph", [], [], protos)
    content: bytes = helper.make_model(graph, doc_string=doc).SerializeToString()
    return content


def stored_codes(*shape: int) -> np.ndarray:
    """INT8 codes that fp4x can hold."""
    return fp4x.quantize(RNG.normal(size=shape).astype(np.float32))[0]


def coarse_codes(*shape: int) -> np.ndarray:
    """INT8 codes for coded INT8: multiples of 2 or 3, far below 127."""
    steps = RNG.integers(2, 4, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    codes: np.ndarray = (np.rint(4 * RNG.normal(size=shape)).clip(-20, 20) * steps).astype(np.int8)
    return codes


def encodings(content: bytes) -> dict[str, str]:
    """Encoding by name of tensor; the graph comes back."""
    packed = pack(content)
    assert unpack(packed) == content
    return {section.name: section.encoding for section in sections(packed)[:-1]}


def opened(packed: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and streams of a packed graph."""
    _, _, _, stored, _ = PREFIX.unpack_from(packed)
    end = PREFIX.size + stored
    return json.loads(zlib.decompress(packed[PREFIX.size : end], -15)), packed[end:]


def deflated(content: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(content) + deflate.flush()


def sealed(header: bytes, streams: bytes, expanded: int | None = None) -> bytes:
    """A packed graph of any header, whose checksum is right: so that what lies behind the checksum is reached."""
    stored = deflated(header)
    content = stored + streams
    lengths = len(stored), len(header) if expanded is None else expanded
    return PREFIX.pack(b"EDGEKDPG", b'"coded-int8"' in header, zlib.crc32(content), *lengths) + content


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    """Fails where the block allocates more at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


SMALL = model_of(stored_codes(4, 20), RNG.normal(size=40).astype(np.float32), np.arange(40, dtype=np.float32))
CODED = model_of(coarse_codes(8, 2, 3, 3), stored_codes(4, 20))
BOTH = pytest.mark.parametrize("content", [SMALL, CODED], ids=["format-0", "format-1"])


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 16, 17, 40]), max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from([*DTYPES, "fp4x", "narrow", "coarse"]))
    if kind == "coarse":
        return np.asarray((rng.integers(-9, 10, shape) * 5).astype(np.int8))
    if kind == "fp4x" and shape:
        return fp4x.quantize(rng.normal(size=shape).astype(np.float32))[0]
    if kind in ("fp4x", "narrow"):
        return rng.normal(size=shape).astype(np.float16).astype(np.float32)
    octets = rng.integers(0, 256, (*shape, np.dtype(kind).itemsize), np.uint8)
    values = (octets[..., 0] % 2).astype(bool) if kind == "bool" else octets.view(kind)[..., 0]
    return np.asarray(values)


@settings(deadline=None)
@given(st.lists(tensors(), max_size=6))
def test_any_onnx_file_comes_back(values: list[np.ndarray]) -> None:
    content = model_of(*values)
    packed = pack(content)
    assert unpack(packed) == content
    assert pack(content) == packed
    cut = [value for value in values if value.nbytes >= MIN_CUT]
    *told, skeleton = sections(packed)
    assert [(section.shape, section.expanded_bytes) for section in told] == [(each.shape, each.nbytes) for each in cut]
    assert skeleton.expanded_bytes == len(content) - sum(value.nbytes for value in cut)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: SMALL[:-200] + tail))
def test_any_bytes_come_back_or_are_no_onnx_file(content: bytes) -> None:
    try:
        packed = pack(content)
    except ValueError as error:
        assert "not an ONNX file" in str(error)  # noqa: PT017 (most examples raise nothing)
    else:
        assert unpack(packed) == content


def test_each_tensor_gets_the_smallest_encoding_that_is_exact() -> None:
    codes = stored_codes(8, 3, 3, 3)
    other = codes.copy()
    other[0, 0, 0] = [127, 126, 125]
    exact = np.linspace(-2, 2, 65, dtype=np.float32)
    content = model_of(codes, other, exact, exact + np.float32(1e-6), codes.ravel(), codes.view(np.uint8))
    assert encodings(content) == {
        f"t{index}": name for index, name in enumerate("fp4x raw float16 raw raw raw".split())
    }


def test_each_class_of_coded_int8_has_a_stream() -> None:
    assert len(SYMBOL_STREAMS) == CLASSES


def test_coarse_codes_are_coded_and_take_about_their_entropy() -> None:
    """Symbols of a standard deviation of 4 have 4.05 bits; format 0 remains where nothing is coded."""
    codes = coarse_codes(64, 64, 3, 3)
    packed = pack(model_of(codes))
    (section, _) = sections(packed)
    assert (section.encoding, section.expanded_bytes) == ("coded-int8", codes.size)
    assert 4.0 < 8 * section.stored_bytes / codes.size < 4.12
    assert packed[8] == 1
    assert pack(SMALL)[8] == 0
    fine = RNG.integers(-127, 128, (64, 64)).astype(np.int8)
    assert encodings(model_of(fine, codes, stored_codes(64, 64), coarse_codes(1, 256))) == {
        f"t{index}": name for index, name in enumerate("raw coded-int8 fp4x raw".split())
    }


def test_the_bits_of_special_floats_are_kept() -> None:
    odd = np.zeros(32, np.float32)
    odd[:5] = [np.inf, -np.inf, -0.0, 2.0**-24, 65504]
    quiet, payload = odd.copy(), odd.copy()
    quiet[0] = np.nan
    payload.view(np.uint32)[0] = 0x7F800001
    big, small = odd.copy(), odd.copy()
    big[5], small[5] = 65520, 2.0**-25
    content = model_of(odd, quiet, payload, big, small)
    assert encodings(content) == {"t0": "float16", **dict.fromkeys(["t1", "t2", "t3", "t4"], "raw")}


def test_what_is_not_raw_data_of_an_initializer_stays_in_the_skeleton() -> None:
    listed = helper.make_tensor("t0", TensorProto.FLOAT, [64], list(range(64)))
    outside = TensorProto(name="t1", data_type=TensorProto.FLOAT, dims=[64], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights.bin")
    twice = numpy_helper.from_array(np.arange(64.0), "t2").SerializeToString()
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(np.arange(64.0), "inner")])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "g", [], [], [listed, outside])
    content = helper.make_model(graph).SerializeToString()
    both = twice + twice[twice.index(b"\x4a") :]  # raw_data again
    content += b"\x3a" + bytes([len(both) + 3 & 127 | 128, len(both) + 3 >> 7])
    content += b"\x2a" + bytes([len(both) & 127 | 128, len(both) >> 7]) + both
    assert len(onnx.load_from_string(content).graph.initializer) == 3
    assert encodings(content) == {}


def test_tensors_whose_length_and_shape_disagree_come_back_too() -> None:
    wrong = TensorProto(name="t0", data_type=TensorProto.FLOAT, dims=[7], raw_data=bytes(range(100)))
    negative = TensorProto(name="t1", data_type=TensorProto.INT8, dims=[-1, 4], raw_data=bytes(100))
    unknown = TensorProto(name="t2", data_type=99, dims=[100], raw_data=bytes(range(100)))
    assert encodings(model_of(wrong, negative, unknown)) == {"t0": "raw", "t1": "raw", "t2": "raw"}


def test_packed_dims_are_read_as_others_are() -> None:
    """As a writer of proto3 makes them: one field with all of them."""
    raw = stored_codes(4, 16).tobytes()
    tensor = b"\x0a\x02\x04\x10" + b"\x10\x03" + b"\x42\x01w" + b"\x4a\x40" + raw
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    content = b"\x3a" + bytes([len(graph)]) + graph
    assert encodings(content) == {"w": "fp4x"}


def test_sections_say_where_the_bytes_are() -> None:
    codes = stored_codes(64, 64, 3, 3)
    weights = RNG.normal(size=(64, 64)).astype(np.float32)
    packed = pack(model_of(codes, weights))
    first, second, skeleton = sections(packed)
    assert first == Section("t0", (64, 64, 3, 3), "fp4x", first.stored_bytes, codes.size)
    assert second == Section("t1", (64, 64), "raw", second.stored_bytes, weights.nbytes)
    assert (skeleton.name, skeleton.shape, skeleton.encoding) == ("", (), "skeleton")
    header, streams = opened(packed)
    lengths = dict(header["streams"])
    assert skeleton.stored_bytes == lengths["skeleton"]
    assert first.stored_bytes == pytest.approx(lengths["fp4x-weights"] + lengths["fp4x-multipliers"], abs=8)
    told = sum(section.stored_bytes for section in (first, second, skeleton))
    assert told == pytest.approx(len(streams), abs=32)
    assert 3.7 < 8 * first.stored_bytes / codes.size < 4.2


def test_names_and_nodes_are_compressed() -> None:
    content = model_of(doc="the same words again and again " * 1000)
    assert len(pack(content)) < len(content) / 20


def test_tables_of_positions_take_next_to_nothing_among_weights() -> None:
    """Anchors of a detector repeat at distances that runs do not find."""
    across, down = np.meshgrid(np.arange(80) + 0.5, np.arange(80) + 0.5)
    anchors = np.stack([across.ravel(), down.ravel()]).astype(np.float32)[None]
    weights = RNG.normal(size=(64, 64)).astype(np.float16).astype(np.float32)
    table, head, _ = sections(pack(model_of(anchors, weights)))
    assert (table.encoding, head.encoding) == ("float16", "float16")
    assert table.stored_bytes < 1500
    assert head.stored_bytes < 2.1 * weights.size


def test_a_model_in_fp4x_takes_less_than_a_seventh_of_its_floats() -> None:
    weights = RNG.normal(size=(256, 128, 3, 3)).astype(np.float32)
    codes, scales = fp4x.quantize(weights)
    assert len(pack(model_of(codes, scales))) < len(model_of(weights)) / 7.8


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("yolo11n.pt", 7.5), ("yolox_nano.onnx", 6.4)])
def test_a_real_detector_in_fp4x_is_small(
    name: str, share: float, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All convolutions in fp4x but those that stay float by the rules of quantization."""
    graph = real_graph(name, shared, tmp_path_factory)
    model = onnx.load(graph.path)
    head = float_head(Graph(model))
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.name not in head}
    for tensor in [each for each in model.graph.initializer if each.name in weights]:
        codes, scales = fp4x.quantize(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
        model.graph.initializer.append(numpy_helper.from_array(scales, f"{tensor.name}/scale"))
    content = model.SerializeToString()
    packed = pack(content)
    assert unpack(packed) == content
    assert {section.name for section in sections(packed) if section.encoding == "fp4x"} == weights
    assert len(packed) < graph.path.stat().st_size / share


@BOTH
def test_every_flipped_bit_is_found(content: bytes) -> None:
    packed = bytearray(pack(content))
    for bit in range(8 * len(packed)):
        packed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"."):
            unpack(bytes(packed))
        packed[bit // 8] ^= 1 << bit % 8
    assert unpack(bytes(packed)) == content


def test_every_truncation_is_found_and_so_is_what_follows() -> None:
    packed = pack(SMALL)
    for length in range(len(packed)):
        with pytest.raises(ValueError, match=r"begins with|cut short"):
            unpack(packed[:length])
    with pytest.raises(ValueError, match="checksum"):
        unpack(packed + b"\0")


@BOTH
def test_every_truncation_of_a_stream_is_found_behind_the_checksum(content: bytes) -> None:
    header, streams = opened(pack(content))
    at = 0
    for index, (name, length) in enumerate(header["streams"]):
        for kept in range(length):
            shorter = [*header["streams"]]
            shorter[index] = [name, kept]
            cut = streams[: at + kept] + streams[at + length :]
            with pytest.raises(ValueError, match="stream"):
                unpack(sealed(canonical_json({**header, "streams": shorter}), cut))
        at += length
    with pytest.raises(ValueError, match="header and streams"):
        unpack(sealed(canonical_json(header), streams + b"\0"))


def test_bytes_after_the_end_of_a_stream_are_found() -> None:
    header, streams = opened(pack(SMALL))
    name, length = header["streams"][-1]
    longer = [*header["streams"][:-1], [name, length + 1]]
    with pytest.raises(ValueError, match="follows the end"):
        unpack(sealed(canonical_json({**header, "streams": longer}), streams + b"\0"))


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_heavy_damage_behind_the_checksum_ends_soon(seed: int, content: bytes) -> None:
    """A stream that ends before its bytes do must not be read for ever."""
    header, streams = opened(pack(content))
    rng = np.random.default_rng(seed)
    for _ in range(200):
        damaged = bytearray(streams)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] ^= int(rng.integers(1, 256))
        with suppress(ValueError):
            assert unpack(sealed(canonical_json(header), bytes(damaged))) == content


@settings(deadline=None, max_examples=500)
@given(st.sampled_from([SMALL, CODED]), st.data())
def test_damage_behind_the_checksum_never_gives_another_file(content: bytes, data: st.DataObject) -> None:
    header, streams = opened(pack(content))
    text, damaged = bytearray(canonical_json(header)), bytearray(streams)
    part = data.draw(st.sampled_from([text, damaged]))
    for at in data.draw(st.lists(st.integers(0, len(part) - 1), min_size=1, max_size=3)):
        part[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(sealed(bytes(text), bytes(damaged)))
    except ValueError:
        return
    assert found == content  # as after a flip in the unused bits at the end of a stream


HEADER, STREAMS = opened(pack(SMALL))
FIRST = HEADER["tensors"][0]
CODED_HEADER, CODED_STREAMS = opened(pack(CODED))
CODED_FIRST, *CODED_OTHERS = CODED_HEADER["tensors"]
SYMBOLS = CODED_HEADER["symbols"]


def with_first(**changed: Any) -> dict[str, Any]:
    """The header, with other values for its first tensor."""
    row = {**dict(zip(("gap", "encoding", "rows", "columns"), FIRST, strict=True)), **changed}
    return {**HEADER, "tensors": [list(row.values()), *HEADER["tensors"][1:]]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        "header",
        None,
        {},
        {**HEADER, "more": 1},
        {key: value for key, value in HEADER.items() if key != "sha256"},
        {**HEADER, "sha256": HEADER["sha256"].upper()},
        {**HEADER, "sha256": None},
        {**HEADER, "length": HEADER["length"] + 1},
        {**HEADER, "length": HEADER["length"] - 1},
        {**HEADER, "length": 10**10},
        {**HEADER, "length": float(HEADER["length"])},
        {**HEADER, "length": str(HEADER["length"])},
        {**HEADER, "length": True},
        {**HEADER, "streams": HEADER["streams"][::-1]},
        {**HEADER, "streams": HEADER["streams"][1:]},
        {**HEADER, "streams": [*HEADER["streams"], HEADER["streams"][-1]]},
        {**HEADER, "streams": dict(HEADER["streams"])},
        {**HEADER, "streams": 1},
        {**HEADER, "tensors": []},
        {**HEADER, "tensors": [1]},
        {**HEADER, "tensors": [FIRST[:3]]},
        {**HEADER, "tensors": HEADER["tensors"][::-1]},
        with_first(encoding="int4"),
        with_first(encoding=["fp4x"]),
        with_first(encoding="raw"),
        with_first(encoding="float16"),
        with_first(encoding="raw", columns=3),
        with_first(gap=-1),
        with_first(gap=FIRST[0] + 1),
        with_first(gap=2**32),
        with_first(rows=0),
        with_first(rows=2),
        with_first(rows=True),
        with_first(rows=2**31),
        with_first(columns=0),
        with_first(columns=2**31),
        with_first(rows=2**31, columns=2**31),
    ],
    ids=lambda header: None,
)
def test_a_header_that_is_wrong_is_refused(header: Any) -> None:
    with at_most(4), pytest.raises(ValueError, match=r"."):
        unpack(sealed(canonical_json(header), STREAMS))


@pytest.mark.parametrize(
    "header",
    [
        {key: value for key, value in CODED_HEADER.items() if key != "symbols"},
        {**CODED_HEADER, "symbols": None},
        {**CODED_HEADER, "symbols": "1" * len(SYMBOLS)},
        {**CODED_HEADER, "symbols": []},
        {**CODED_HEADER, "symbols": [*SYMBOLS, 0]},
        {**CODED_HEADER, "symbols": [sum(SYMBOLS), *[0] * (len(SYMBOLS) - 1)]},
        {**CODED_HEADER, "symbols": SYMBOLS[::-1]},
        {**CODED_HEADER, "symbols": [-1, SYMBOLS[1] + SYMBOLS[0] + 1, *SYMBOLS[2:]]},
        {**CODED_HEADER, "symbols": [float(count) for count in SYMBOLS]},
        {**CODED_HEADER, "tensors": CODED_OTHERS},
        {**CODED_HEADER, "tensors": [CODED_FIRST[:-1], *CODED_OTHERS]},
        {**CODED_HEADER, "tensors": [[*CODED_FIRST[:-1], 0], *CODED_OTHERS]},
        {**CODED_HEADER, "tensors": [[*CODED_FIRST[:-1], 4], *CODED_OTHERS]},
        {**CODED_HEADER, "tensors": [[*CODED_FIRST[:-1], 3], *CODED_OTHERS]},
        {**CODED_HEADER, "tensors": [[*CODED_FIRST[:-1], True], *CODED_OTHERS]},
        {**CODED_HEADER, "tensors": [CODED_FIRST, [*CODED_OTHERS[0], 1], *CODED_OTHERS[1:]]},
        {**HEADER, "symbols": [0] * len(SYMBOLS)},
    ],
    ids=lambda header: None,
)
def test_a_header_of_format_1_that_is_wrong_is_refused(header: Any) -> None:
    assert unpack(sealed(canonical_json(CODED_HEADER), CODED_STREAMS)) == CODED
    with at_most(4), pytest.raises(ValueError, match=r"."):
        unpack(sealed(canonical_json(header), CODED_STREAMS))


@BOTH
def test_a_file_that_claims_the_other_format_is_refused(content: bytes) -> None:
    packed = pack(content)
    other = packed[:8] + bytes([1 - packed[8]]) + packed[9:]
    with pytest.raises(ValueError, match=f"expected format {packed[8]} by the header, found {1 - packed[8]}"):
        unpack(other)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        canonical_json(HEADER) + b" ",
        json.dumps(HEADER).encode(),
        canonical_json(HEADER).replace(b'"length":', b'"length":0'),
        canonical_json(HEADER)[:-1] + b',"length":1}',
        canonical_json(HEADER).replace(str(HEADER["length"]).encode(), b"9" * 100_000),
        canonical_json(HEADER).replace(str(HEADER["length"]).encode(), b"NaN"),
        b"1" * 1_000_000,
    ],
    ids=lambda text: None,
)
def test_a_header_of_another_spelling_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(sealed(text, STREAMS))


def test_a_header_that_lies_about_its_length_is_refused() -> None:
    text = canonical_json(HEADER)
    for expanded in (0, len(text) - 1, len(text) + 1, MAX_HEADER, MAX_HEADER + 1, 2**32 - 1):
        with at_most(4), pytest.raises(ValueError, match=r"stream|header|Expecting|delimiter"):
            unpack(sealed(text, STREAMS, expanded))
    bomb = sealed(b"[" + b"0," * 2**23 + b"0]", STREAMS)
    with at_most(1), pytest.raises(ValueError, match="header"):
        unpack(bomb)


@pytest.mark.parametrize("encoding", ["raw", "fp4x", "float16"])
def test_claimed_lengths_reserve_no_memory(encoding: str) -> None:
    """A header that says two gigabytes, over streams that hold next to nothing."""
    rows, columns = {"raw": (2**31 - 1, 1), "fp4x": (2**15, 2**15), "float16": (2**28, 2)}[encoding]
    names = {
        "raw": ["bytes-1-0"],
        "fp4x": ["fp4x-multipliers", "fp4x-weights"],
        "float16": ["bytes-2-0", "bytes-2-1"],
    }[encoding]
    stored = deflated(bytes(1000))
    header = {
        "length": rows * columns * (2 if encoding == "float16" else 1),
        "sha256": "0" * 64,
        "streams": [[name, len(stored)] for name in (*names, "skeleton")],
        "tensors": [[0, encoding, rows, columns]],
    }
    with at_most(1), pytest.raises(ValueError, match="ends early"):
        unpack(sealed(canonical_json(header), stored * (len(names) + 1)))


@pytest.mark.parametrize("taps", [1, 2**15])
def test_rows_and_columns_of_coded_int8_reserve_no_memory_for_their_weights(taps: int) -> None:
    """A gigabyte of weights by 64 KB of rows and columns, and few symbols."""
    rows = columns = 2**15
    inputs = columns // taps
    sizes = {"coded-columns": bytes(inputs + taps), "coded-rows": bytes(rows), "coded-steps": b"\1" * inputs}
    stored = {name: deflated(content) for name, content in {"coded-00": bytes(1000), **sizes, "skeleton": b""}.items()}
    header = {
        "length": rows * columns,
        "sha256": "0" * 64,
        "streams": [[name, len(content)] for name, content in stored.items()],
        "symbols": [rows * columns, *[0] * (len(SYMBOLS) - 1)],
        "tensors": [[0, "coded-int8", rows, columns, taps]],
    }
    with at_most(4), pytest.raises(ValueError, match="ends early"):
        unpack(sealed(canonical_json(header), b"".join(stored.values())))


def test_a_stream_that_expands_to_more_than_it_should_is_not_expanded() -> None:
    bomb = deflated(bytes(2**26))
    header = {"length": 10, "sha256": "0" * 64, "streams": [["skeleton", len(bomb)]], "tensors": []}
    with at_most(1), pytest.raises(ValueError, match="does not end where it should"):
        unpack(sealed(canonical_json(header), bomb))


def test_a_reader_can_set_a_limit() -> None:
    packed = pack(SMALL)
    assert unpack(packed, len(SMALL)) == SMALL
    with pytest.raises(ValueError, match=f"at most {len(SMALL) - 1} bytes, found {len(SMALL)}"):
        unpack(packed, len(SMALL) - 1)


def test_other_formats_and_other_files_are_refused() -> None:
    packed = pack(SMALL)
    with pytest.raises(ValueError, match="expected format 0 to 1, found 2: update"):
        unpack(packed[:8] + b"\2\0\0\0" + packed[12:])
    for other in (b"", SMALL, b"edgekdpg" + packed[8:]):
        with pytest.raises(ValueError, match="not a packed graph"):
            sections(other)


def test_a_file_longer_than_a_message_may_be_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return MAX_BYTES + 1

    with pytest.raises(ValueError, match="at most"):
        pack(Long())


def test_the_page_and_the_program_agree() -> None:
    """The example in the page, an ONNX file and its packed form, and the header it shows."""
    text = PAGE.read_text("utf-8")
    plain, packed = (bytes.fromhex(found) for found in re.findall(r"^```hex\n([0-9a-f\s]+)```$", text, re.MULTILINE))
    (shown,) = re.findall(r"^```json\n(.+?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert unpack(packed) == plain
    assert unpack(pack(plain)) == plain
    assert onnx.load_from_string(plain).graph.initializer[0].name == "w"
    assert sections(packed)[0].encoding == "fp4x"
    assert json.loads(shown) == opened(packed)[0]


# ------------------------------------------------------------------------------------------------------------ in steps


@pytest.mark.parametrize("shape", [(1, 7), (3, 33), (257, 4097), (600, 1023)])
def test_expanding_in_steps_gives_the_same(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Of a channel in fp4x an odd number of nibbles does not end with a byte."""
    floats = RNG.normal(size=shape).astype(np.float32)
    onnx = model_of(
        stored_codes(*shape), coarse_codes(*shape), floats, floats.astype(np.float16).astype(np.float32), np.arange(99)
    )
    packed = pack(onnx)
    assert b"".join(expand(packed)) == onnx
    (tmp_path / "packed").write_bytes(packed)
    with (tmp_path / "packed").open("rb") as stream:
        assert b"".join(expand(file_view(stream))) == onnx
        assert max(map(len, expand(file_view(stream)))) <= 4 << 18


@pytest.mark.parametrize("sizes", [(1,), (7, 65536), (100_000,), (1 << 30,)])
def test_a_network_is_put_together_in_steps_of_any_size(sizes: tuple[int, ...]) -> None:
    """The bytes that zlib gives do not depend on where its input was cut."""
    packed = pack(
        model_of(
            stored_codes(64, 512),
            coarse_codes(64, 512),
            RNG.normal(size=(64, 64)).astype(np.float32),
            doc="a b c " * 2000,
        )
    )
    whole = parts(packed)
    packer = PartsPacker(whole["header"], io.BytesIO())
    for name in packer.lengths:
        content, pieces, at = whole[name], [], 0
        for size in itertools.cycle(sizes):
            if at >= len(content):
                break
            pieces.append(content[at : at + size])
            at += size
        packer.add(name, pieces)
    assert b"".join(packer.content()) == packed == assemble(whole)


def test_parts_of_another_length_are_refused() -> None:
    whole = parts(pack(SMALL))
    packer = PartsPacker(whole["header"], io.BytesIO())
    with pytest.raises(ValueError, match="bytes of skeleton, found 1"):
        packer.add("skeleton", [b"x"])
    for wrong in ({**whole, "more": b""}, {"header": whole["header"]}):
        with pytest.raises(ValueError, match="header"):
            assemble(wrong)
