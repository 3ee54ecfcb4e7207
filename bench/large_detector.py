"""Measure size and accuracy of a detector of 57 M parameters in 4 bits, without training.

Finished graphs are kept in `--work`, where an interrupted run continues. Needs `edgekd[train]`.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import Detector, detector_in, exported, peak_bytes, quantize_step, split_of
from frame import Blocks, Document, Given, Option, Result, cell, claim, claims_table, head, main, table

from edgekd.compress.quantization.mixed_precision import choices
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.formats.packed_graph import pack
from edgekd.data.calibration import choose, load_rule
from edgekd.data.dataset import load_dataset

INT8_LAYERS = 2  # the first layers have few weights, and their errors affect all others
SMALLER, KEEP = 7.5, 0.99
"""Goals: factor by which the file is smaller than the float file, and share of the float mAP50-95."""


def in_four_bits(source: Detector, out: Path, frames: Iterator[np.ndarray]) -> float:
    """Quantize to `out`: the first INT8_LAYERS to INT8, others to fp4x, else float16. Return the wall seconds."""
    plan: dict[str, WeightFormat] = {}
    for name, forms in choices(source.graph).items():
        early = sum(form != "float16" for form in plan.values()) < INT8_LAYERS
        plan[name] = "int8" if early and "int8" in forms else "fp4x" if "fp4x" in forms else "float16"
    began = time.perf_counter()
    source.quantized(out, frames, quantize_step("mixed"), plan)
    return time.perf_counter() - began


def scored(name: str, graph: Path, ships: int, seconds: float | None, given: Given) -> Document:
    """Score a graph and return its row. `bytes`: size of the shipped file; `scores`: mAP50-95 and mAP50 by split."""
    detector, scores = detector_in(graph), {}
    for split in given.scored:
        found = detector.evaluation(split_of(given.shared, given.data, split), f"{name}, {split}").score
        scores[split] = (found.map50_95, found.map50)
    return Document(name=name, bytes=ships, seconds=seconds, scores=scores)


def run(given: Given) -> Result:
    given.work.mkdir(parents=True, exist_ok=True)
    floating, small, cost = (given.work / name for name in ("float32.onnx", "small.onnx", "took.json"))
    if not floating.is_file():
        exported(given.model, floating)
    if not cost.is_file():
        exact, dataset = detector_in(floating), load_dataset(given.shared / "data" / given.data)
        images = choose(dataset, load_rule(), preprocess=exact.spec.preprocess).images[: given.frames]
        seconds = in_four_bits(exact, small, exact.frames(images))
        cost.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), "ascii")
    took = json.loads(cost.read_text("ascii"))
    whole = scored("float32", floating, floating.stat().st_size, None, given)
    row = scored("edgekd, fp4x", small, len(pack(small.read_bytes())), took["seconds"], given)
    smaller = whole.bytes / row.bytes
    claims = [claim(f"the file is at most 1/{SMALLER:g}; 1/x", smaller, smaller >= SMALLER)]
    for split, (score, _) in row.scores.items():
        kept = score / whole.scores[split][0]
        claims.append(claim(f"{split}: it keeps at least {KEEP:.0%}", kept, kept >= KEEP))
    return {"peak_bytes": took["peak_bytes"], "claims": claims, "rows": [whole, row]}


def page(found: Document) -> Blocks:
    whole = found.rows[0]
    yield from head("A large detector in 4 bits", found)
    yield """\
Every convolution whose weights can be fp4x is, but for the first two; the head stays float16. Nothing is searched and
nothing trained, so a detector of 57 M parameters takes minutes on two cores."""
    yield f"{found.frames} calibration frames; largest resident memory {found.peak_bytes / 2**30:.1f} GiB."
    scores = " | ".join(f"{split} mAP50-95 (of float32)" for split in found.scored)
    yield table(
        f" | bytes | of float32 | seconds | {scores}",
        (
            f"{row.name} | {row.bytes:,} | 1/{whole.bytes / row.bytes:.2f} | {cell(row.seconds, '.0f')} | "
            + " | ".join(
                f"{score:.4f} ({score / whole.scores[split][0]:.1%})" for split, (score, _) in row.scores.items()
            )
            for row in found.rows
        ),
    )
    yield claims_table(found.claims)


if __name__ == "__main__":
    options = (
        Option("--model", type=Path, required=True, help="an Ultralytics checkpoint"),
        Option("--data", "ppe"),
        Option("--scored", ["test"]),
        Option("--frames", 64),
        Option("--work", Path("runs/large_detector")),
    )
    main(run, page, *options)
