"""Measure storage formats of weights: error, time, and bytes after entropy coding, of fp4x and others.

zstd is measured if the package `zstandard` is installed.
"""

import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import conditions, durations, exported
from frame import Blocks, Document, Given, Option, Result, cell, head, main, table

from edgekd.compress.quantization.placement import place
from edgekd.compress.quantization.rewrite import apply, insert_activation_pairs, name_nodes, store_weights
from edgekd.core.formats import fp4x, packed_graph
from edgekd.core.formats.int8 import quantize_channels
from edgekd.graph.view import Graph

MODELS = ("yolo11n.pt", "yolo11n-ppe.pt", "yolox_nano.onnx")
SEEDS = range(5)
YOLO11X = 57_000_000  # approximate number of weights of YOLO11x
E2M1 = np.array(fp4x.MAGNITUDES, np.float32)
E4M3 = np.array([m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)])
E4M3_MAX = 448

Codes = tuple[np.ndarray, np.ndarray]
Quantizer = Callable[[np.ndarray], Codes]
Coder = Callable[[bytes], bytes]
Timed = Mapping[str, float]


# Formats: functions from weights float32 [O, K] to dequantized blocks [O, blocks, size] along K, padded with zeros.


def blocks_of(rows: np.ndarray, size: int) -> np.ndarray:
    """Return a matrix [O, K], padded with zeros, as [O, blocks, size]."""
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size)))
    return filled.reshape(len(rows), -1, size)


def nearest(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Round magnitudes to the nearest of `grid`, ascending from 0, and keep signs; larger values saturate."""
    found = grid[np.searchsorted((grid[1:] + grid[:-1]) / 2, np.abs(values))]
    signed: np.ndarray = np.copysign(found, values)
    return signed


def scaled(blocks: np.ndarray, scales: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Round blocks to `grid` times scales [O, blocks, 1]; zero where the scale is zero."""
    found: np.ndarray = scales * nearest(blocks / np.where(scales > 0, scales, 1), grid)
    return found


def least(blocks: np.ndarray, choices: Sequence[np.ndarray]) -> np.ndarray:
    """Return for each block the version with the smallest squared error."""
    errors = np.array([((choice - blocks) ** 2).sum(axis=2) for choice in choices])
    found: np.ndarray = np.take_along_axis(np.array(choices), errors.argmin(axis=0)[None, ..., None], 0)[0]
    return found


def e4m3(values: np.ndarray) -> np.ndarray:
    return nearest(values, E4M3[E4M3 <= E4M3_MAX])


def nvfp4(rows: np.ndarray) -> np.ndarray:
    """NVFP4: blocks of 16, E4M3 scales relative to one float32 per tensor; a block's largest magnitude maps to 6."""
    blocks = blocks_of(rows, 16)
    peaks = np.abs(blocks).max(axis=2, keepdims=True)
    whole = peaks.max() / (6 * E4M3_MAX)
    return scaled(blocks, whole * e4m3(peaks / 6 / whole), E2M1)


def nvfp4_four_over_six(rows: np.ndarray) -> np.ndarray:
    """NVFP4 with a block's largest magnitude mapped to 6 or 4, by error (arXiv 2512.02010, E4M3 scales up to 256)."""
    blocks = blocks_of(rows, 16)
    peaks = np.abs(blocks).max(axis=2, keepdims=True)
    whole = peaks.max() / (6 * 256)
    return least(blocks, [scaled(blocks, whole * e4m3(peaks / top / whole), E2M1) for top in (6, 4)])


def mxfp4(rows: np.ndarray) -> np.ndarray:
    """MXFP4: blocks of 32, power-of-two scales (OCP Microscaling Formats 1.0)."""
    blocks = blocks_of(rows, 32)
    peaks = np.abs(blocks).max(axis=2, keepdims=True)
    return scaled(blocks, np.where(peaks > 0, 2.0 ** (np.floor(np.log2(np.where(peaks > 0, peaks, 1))) - 2), 0), E2M1)


def int4(rows: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """INT4: groups of 16, codes -7 to 7, float16 scales relative to the tensor's peak: the best factor of peak / 7."""
    blocks = blocks_of(rows, 16)
    whole = np.abs(blocks).max()
    peaks = np.abs(blocks).max(axis=2, keepdims=True) / whole
    scales = [whole * (peaks / 7 * factor).astype(np.float16).astype(np.float32) for factor in factors]
    return least(blocks, [scaled(blocks, each, np.arange(8, dtype=np.float32)) for each in scales])


def coded(rows: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Quantize with one scale per channel; return blocks of 16."""
    codes, scales = quantizer(rows)
    return blocks_of(codes * scales[:, None], 16)


FORMATS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "fp4x": (4.25, partial(coded, quantizer=fp4x.quantize)),
    "NVFP4": (4.5, nvfp4),
    "NVFP4, four over six": (4.5, nvfp4_four_over_six),
    "MXFP4": (4.25, mxfp4),
    "INT4, groups of 16, peak": (5.0, partial(int4, factors=[1.0])),
    "INT4, groups of 16, least error": (5.0, partial(int4, factors=[step / 20 for step in range(12, 23)])),
    "INT8 per channel": (8.0, partial(coded, quantizer=quantize_channels)),
}
"""Bits per weight, including scales of blocks but not of channels and tensors; and the function of the format."""


def snr_db(rows: np.ndarray, form: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the signal-to-noise ratio in dB of a matrix in a format."""
    found = form(rows)
    noise = (blocks_of(rows, found.shape[2]).astype(np.float64) - found) ** 2
    return float(10 * np.log10((rows.astype(np.float64) ** 2).sum() / noise.sum()))


@dataclass(frozen=True)
class Sample:
    """A detector: its float graph, and the weights of the layers that are quantized, by name."""

    name: str
    graph: Path
    weights: dict[str, np.ndarray]

    @property
    def count(self) -> int:
        return sum(each.size for each in self.weights.values())


def sample(source: Path, folder: Path) -> Sample:
    path = folder / f"{source.stem}.onnx"
    exported(source, path)
    graph = opened(path)
    weights = {}
    for node in graph.nodes:
        if node.name in place(graph).layers:
            found = graph.constant(node.input[1])
            assert found is not None, "a detector of this list has constant weights"
            weights[node.name] = found
    return Sample(source.name, path, weights)


def opened(path: Path) -> Graph:
    model = onnx.load(path)
    name_nodes(model)
    return Graph(model)


def shipped(of: Sample, quantizer: Quantizer) -> bytes:
    """Return the serialized Q/DQ graph with these weights. Activation ranges are all 1: they do not affect the size."""
    graph = opened(of.graph)
    placement = place(graph)
    insert_activation_pairs(graph, placement, dict.fromkeys(placement.quantized, 1.0))
    store_weights(graph, {name: quantizer(value) for name, value in of.weights.items()})
    apply(graph)
    content: bytes = graph.model.SerializeToString()
    return content


def timed(work: Callable[[], Any], repeats: int) -> Timed:
    """Return median, least and most seconds of `repeats` runs after a warm-up."""
    seconds = durations(work, repeats + 1)[1:]
    summary = {"median": float(np.median(seconds)), "least": min(seconds), "most": max(seconds)}
    return {name: round(value, 4) for name, value in summary.items()}


def speed(of: Sample, copies: int, repeats: int) -> Document:
    """Time quantizing, packing and unpacking `copies` copies of a detector's weights in fp4x, layer by layer."""
    layers = list(of.weights.values()) * copies
    codes = [fp4x.quantize(each)[0] for each in of.weights.values()] * copies
    packed = [fp4x.pack(each) for each in codes]
    pairs = [(data, each.shape) for data, each in zip(packed, codes, strict=True)]
    row = Document(weights=of.count * copies, bytes=sum(map(len, packed)), repeats=repeats)
    row.update(quantize_s=timed(lambda: [fp4x.quantize(each) for each in layers], repeats))
    row.update(pack_s=timed(lambda: [fp4x.pack(each) for each in codes], repeats))
    return Document(row, unpack_s=timed(lambda: [fp4x.unpack(*pair) for pair in pairs], repeats))


def deflate(strategy: int, content: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return coder.compress(content) + coder.flush()


def coders() -> dict[str, tuple[Coder, Coder]]:
    inflate = partial(zlib.decompress, wbits=-zlib.MAX_WBITS)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    found: dict[str, tuple[Coder, Coder]] = {
        "DEFLATE": (partial(deflate, zlib.Z_DEFAULT_STRATEGY), inflate),
        "DEFLATE, Huffman only": (partial(deflate, zlib.Z_HUFFMAN_ONLY), inflate),
        "DEFLATE, runs (used)": (partial(deflate, zlib.Z_RLE), inflate),
        "LZMA2": (
            partial(lzma.compress, format=lzma.FORMAT_RAW, filters=filters),
            partial(lzma.decompress, format=lzma.FORMAT_RAW, filters=filters),
        ),
    }
    if find_spec("zstandard"):
        zstd = importlib.import_module("zstandard")
        found["zstd 19"] = (zstd.ZstdCompressor(level=19).compress, zstd.ZstdDecompressor().decompress)
    return found


def apply_all(coder: Coder, streams: Sequence[bytes]) -> list[bytes]:
    return [coder(stream) for stream in streams]


def entropy_bits(stream: bytes) -> float:
    """Return the order-0 entropy of a byte stream, in bits for the whole stream."""
    counts = np.bincount(np.frombuffer(stream, np.uint8), minlength=256).astype(np.float64)
    shares = counts[counts > 0] / len(stream)
    return float(-(shares * np.log2(shares)).sum() * len(stream))


def streams_of(of: Sample) -> dict[str, list[bytes]]:
    """Return a detector's weights as the byte streams of a packed graph, by format."""
    codes = [fp4x.quantize(each)[0] for each in of.weights.values()]
    packed = [(fp4x.pack(each), fp4x.packed_bytes(each.shape)[0]) for each in codes]
    return {
        "INT8": [b"".join(quantize_channels(each)[0].tobytes() for each in of.weights.values())],
        "fp4x": [b"".join(data[:end] for data, end in packed), b"".join(data[end:] for data, end in packed)],
    }


def coding(of: Sample, repeats: int) -> list[dict[str, Any]]:
    """Measure bits per weight and decoding speed of each compressor, on a detector's weights in INT8 and fp4x."""
    rows = []
    for form, streams in streams_of(of).items():
        common = {"model": of.name, "form": form, "stored_bits": round(8 * sum(map(len, streams)) / of.count, 3)}
        bits = sum(map(entropy_bits, streams)) / of.count
        rows.append({**common, "coder": "entropy of the bytes", "bits": round(bits, 3)})
        for name, (compress, expand) in coders().items():
            stored = apply_all(compress, streams)
            assert apply_all(expand, stored) == streams, name
            bits = 8 * sum(map(len, stored)) / of.count
            seconds = timed(partial(apply_all, expand, stored), repeats)
            speed_mb = sum(map(len, streams)) / seconds["median"] / 1e6
            rows.append({**common, "coder": name, "bits": round(bits, 3), "decode_mb_s": round(speed_mb, 1)})
    return rows


def files(of: Sample, repeats: int) -> Iterator[Document]:
    """Pack whole ONNX files; yield rows with their bytes, and the seconds to unpack."""
    whole = of.graph.read_bytes()
    graphs = {"float32": whole, "INT8": shipped(of, quantize_channels), "fp4x": shipped(of, fp4x.quantize)}
    for form, content in graphs.items():
        packed = packed_graph.pack(content)
        assert packed_graph.unpack(packed) == content
        row = Document(model=of.name, form=form, onnx_bytes=len(content), packed_bytes=len(packed))
        row.update(times_smaller=round(len(whole) / len(packed), 3))
        yield Document(row, unpack_s=timed(partial(packed_graph.unpack, packed), repeats))


def distances(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return signal-to-noise ratios of every format: percentiles over seeds (random weights) or layers (detectors)."""
    drawn = {"Gaussian": np.random.Generator.normal, "Laplace": np.random.Generator.laplace}
    sets = {
        name: [draw(np.random.default_rng(seed), size=(256, 1152)).astype(np.float32) for seed in SEEDS]
        for name, draw in drawn.items()
    }
    sets |= {of.name: [each.reshape(len(each), -1) for each in of.weights.values()] for of in samples}
    rows = []
    for name, (bits, form) in FORMATS.items():
        ratios = {}
        for key, group in sets.items():
            values = np.percentile([snr_db(each, form) for each in group], (10, 50, 90)).round(2).tolist()
            ratios[key] = dict(zip(("p10", "median", "p90"), values, strict=True))
        rows.append({"format": name, "bits": bits, "snr_db": ratios})
    return rows


def run(given: Given) -> Result:
    samples = [sample(given.shared / "models" / name, given.scratch) for name in MODELS]
    nano, repeats = samples[0], given.repeats
    return {
        "seeds": list(SEEDS),
        "snr": distances(samples),
        "speed": [speed(nano, 1, repeats), speed(nano, round(YOLO11X / nano.count), max(3, repeats // 3))],
        "coding": [row for of in samples for row in coding(of, repeats)],
        "files": [row for of in samples for row in files(of, repeats)],
        "host": host_with_coders(given.threads),
    }


def host_with_coders(threads: int) -> dict[str, Any]:
    """Return the host's description, with the compressors' versions among its libraries."""
    host: dict[str, Any] = conditions(threads)["host"]
    if find_spec("zstandard"):
        host["libraries"]["zstandard"] = version("zstandard")
    host["libraries"]["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    return host


def span(seconds: Document) -> str:
    return f"{seconds.median:.3f} ({seconds.least:.3f} to {seconds.most:.3f})"


def page(found: Document) -> Blocks:
    yield from head("Storage formats of weights", found)
    yield "Measured here on x86, on one core; not measured on a board. No detector is scored here."
    yield "## How near weights come to float"
    yield (
        "Signal-to-noise ratio in dB: the median and, in brackets, the 10th to 90th percentile, over "
        f"{len(found.seeds)} seeds (random [256, 1152]) or over the convolutions that quantization converts. Bits a "
        "weight count the scales of blocks, and not those of channels and tensors."
    )
    sets = list(found.snr[0].snr_db)
    ratio = "{median:.2f} ({p10:.1f} to {p90:.1f})".format
    yield table(
        f"format | bits | {' | '.join(sets)}",
        (
            f"{row.format} | {row.bits:g} | {' | '.join(ratio(**row.snr_db[each]) for each in sets)}"
            for row in found.snr
        ),
    )
    yield "## Time"
    yield (
        "Seconds on one core, median (least to most): all convolutions of yolo11n, layer by layer, once and "
        "as often as makes the size of yolo11x."
    )
    yield table(
        "weights | bytes | quantize | pack | unpack",
        (
            f"{row.weights / 1e6:.1f} M | {row.bytes:,} | {span(row.quantize_s)} | {span(row.pack_s)} | "
            f"{span(row.unpack_s)}"
            for row in found.speed
        ),
    )
    yield "## Entropy coding"
    yield (
        "Bits a weight; MB of stored bytes decoded in a second. fp4x is two streams, weights and multipliers. The "
        "entropy is that of single bytes with one table for all; coders with tables that change can go below it."
    )
    yield table(
        "model | form | bits stored | coder | bits coded | MB/s",
        (
            f"{row.model} | {row.form} | {row.stored_bits:.2f} | {row.coder} | {row.bits:.3f} | "
            f"{cell(row.get('decode_mb_s'), '.0f', '')}"
            for row in found.coding
        ),
    )
    yield "## Whole files"
    yield (
        "ONNX files of the float graph, and of the Q/DQ graph with the weights of its INT8 convolutions in INT8 or "
        "fp4x, packed; beside the bytes of the float file. Convolutions of the head stay float32 as they are."
    )
    yield table(
        "model | weights | ONNX bytes | packed bytes | of the float file | seconds to unpack",
        (
            f"{row.model} | {row.form} | {row.onnx_bytes:,} | {row.packed_bytes:,} | 1/{row.times_smaller:.2f} | "
            f"{span(row.unpack_s)}"
            for row in found.files
        ),
    )


if __name__ == "__main__":
    main(run, page, Option("--repeats", 9), cores=1)
