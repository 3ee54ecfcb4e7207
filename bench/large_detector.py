"""Measure how small a detector of 57 M parameters gets in 4 bits without training, and what it keeps.

A graph that is finished is kept in `--work`, where a cut run goes on. Needs `edgekd[train]`.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import export_to, peak_bytes
from frame import SHARED_FOLDER, Blocks, Document, Given, Option, Result, cell, claim, claims_table, head, main, table

from edgekd.builds.recipe import load_recipe
from edgekd.compress.quantization.mixed_precision import choices
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import Form
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.data.calibration import choose, load_rule
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.view import load_graph

INT8_LAYERS = 2
"""The first layers have few weights, and what they lose is lost for all."""
SMALLER, KEEP = 7.5, 0.99
"""How many times smaller the file must be, and the share of the float mAP50-95 that must be left."""


def in_four_bits(source: Path, out: Path, frames: Iterator[np.ndarray]) -> float:
    """Quantize every layer that can be fp4x to it, but for the first; the seconds that it took."""
    (step,) = load_recipe("mixed").steps
    assert isinstance(step, Quantize)
    plan: dict[str, Form] = {}
    for name, forms in choices(source).items():
        early = sum(form != "float16" for form in plan.values()) < INT8_LAYERS
        plan[name] = "int8" if early and "int8" in forms else "fp4x" if "fp4x" in forms else "float16"
    began = time.perf_counter()
    quantize(source, out, frames, step, plan)
    return time.perf_counter() - began


def scored(name: str, graph: Path, ships: int, seconds: float | None, given: Given) -> Document:
    """Return the row of a graph; `bytes` are those of the file that ships, `scores` mAP50-95 and mAP50 by split."""
    spec, dataset = describe(load_graph(graph), graph), load_dataset(given.shared / "data" / given.data)
    scores = {}
    for split in given.scored:
        found = evaluate(graph, spec, dataset.split(split), PlainProgress(interval_s=30), f"{name}, {split}").score
        scores[split] = (found.map50_95, found.map50)
    return Document(name=name, bytes=ships, seconds=seconds, scores=scores)


def calibration(spec: DetectorSpec, given: Given) -> Iterator[np.ndarray]:
    """Return the first frames of the calibration set that a build would choose."""
    images = choose(load_dataset(given.shared / "data" / given.data), load_rule(), preprocess=spec.preprocess).images
    return (letterbox(read_image(image), spec.preprocess)[0] for image in images[: given.frames])


def run(given: Given) -> Result:
    given.work.mkdir(parents=True, exist_ok=True)
    floating, small, cost = (given.work / name for name in ("float32.onnx", "small.onnx", "took.json"))
    if not floating.is_file():
        export_to(given.model, floating)
    if not cost.is_file():
        seconds = in_four_bits(floating, small, calibration(describe(load_graph(floating), floating), given))
        cost.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), "ascii")
    took = json.loads(cost.read_text("ascii"))
    whole = scored("float32", floating, floating.stat().st_size, None, given)
    row = scored("edgekd, fp4x", small, len(pack(small.read_bytes())), took["seconds"], given)
    smaller = whole.bytes / row.bytes
    claims = [claim(f"the file is at most 1/{SMALLER:g}; 1/x", smaller, smaller >= SMALLER)]
    for split, (score, _) in row.scores.items():
        kept = score / whole.scores[split][0]
        claims.append(claim(f"{split}: it keeps at least {KEEP:.0%}", kept, kept >= KEEP))
    counts = {"scored": given.scored, "frames": given.frames, "peak_bytes": took["peak_bytes"]}
    return {**counts, "claims": claims, "rows": [whole, row]}


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


OPTIONS = (
    SHARED_FOLDER,
    Option("--model", type=Path, required=True, help="an Ultralytics checkpoint"),
    Option("--data", "ppe"),
    Option("--scored", ["test"]),
    Option("--frames", 64),
    Option("--work", Path("runs/large_detector")),
)


if __name__ == "__main__":
    main(__file__, __doc__, run, page, options=OPTIONS)
