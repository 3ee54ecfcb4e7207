"""A large detector stored in 4 bits: how small it gets without training, and what it keeps.

Every convolution whose weights can be fp4x is, but for the first two; the head stays float16. Nothing is searched and
nothing trained, so a detector of 57 M parameters takes minutes on two cores.

    python bench/large_detector.py --model yolo11x-ppe.pt [--data ppe] [--scored test] [--frames 64]

The environment needs `edgekd[train]`. A graph that is finished is kept in `--work`: what was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.builds.recipe import Quantize, load_recipe
from edgekd.compress.quantization.mixed_precision import choices
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.weight_formats import Form
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.data.calibration import choose, load_rule
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.view import load_graph

OPSET = 17
INT8_LAYERS = 2
"""The first layers have few weights, and what they lose is lost for all."""
SMALLER, KEEP = 7.5, 0.99
"""How many times smaller the file must be, and the share of the float mAP50-95 that must be left."""


@dataclass(frozen=True)
class Row:
    """A graph: bytes of the file that ships, seconds that it took to make, and mAP50-95 and mAP50 on each split."""

    name: str
    bytes: int
    seconds: float | None
    scores: dict[str, tuple[float, float]]


def in_four_bits(source: Path, out: Path, frames: Iterator[np.ndarray]) -> float:
    """Quantize by the plan above; the seconds that it took."""
    (step,) = load_recipe("mixed").steps
    assert isinstance(step, Quantize)
    plan: dict[str, Form] = {}
    for name, forms in choices(source).items():
        early = sum(form != "float16" for form in plan.values()) < INT8_LAYERS
        plan[name] = "int8" if early and "int8" in forms else "fp4x" if "fp4x" in forms else "float16"
    began = time.perf_counter()
    quantize(source, out, frames, step, plan)
    return time.perf_counter() - began


def scored(name: str, graph: Path, ships: int, seconds: float | None, given: argparse.Namespace) -> Row:
    """The row of a graph."""
    spec, dataset = describe(load_graph(graph), graph), load_dataset(given.shared / "data" / given.data)
    scores = {}
    for split in given.scored:
        found = evaluate(graph, spec, dataset.split(split), PlainProgress(interval_s=30), f"{name}, {split}").score
        scores[split] = (found.map50_95, found.map50)
    return Row(name, ships, seconds, scores)


def calibration(spec: DetectorSpec, given: argparse.Namespace) -> Iterator[np.ndarray]:
    """The first frames of the calibration set that a build would choose."""
    images = choose(load_dataset(given.shared / "data" / given.data), load_rule(), preprocess=spec.preprocess).images
    return (letterbox(read_image(image), spec.preprocess)[0] for image in images[: given.frames])


def run(given: argparse.Namespace) -> list[Row]:
    """Export, quantize and score; each only where `--work` does not have it yet."""
    given.work.mkdir(parents=True, exist_ok=True)
    floating, small, took = (given.work / name for name in ("float32.onnx", "small.onnx", "took.json"))
    if not floating.is_file():
        export(load(given.model), floating, OPSET)
    if not took.is_file():
        seconds = in_four_bits(floating, small, calibration(describe(load_graph(floating), floating), given))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        took.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}), "ascii")
    seconds = json.loads(took.read_text("ascii"))["seconds"]
    graphs = [("float32", floating, floating.stat().st_size, None)]
    graphs.append(("edgekd, fp4x", small, len(pack(small.read_bytes())), seconds))
    return [scored(*graph, given) for graph in graphs]


def page(found: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    whole = rows[0]
    cells = []
    for row in rows:
        scores = [f"{row.scores[s][0]:.4f} ({row.scores[s][0] / whole.scores[s][0]:.1%})" for s in row.scores]
        seconds = "–" if row.seconds is None else f"{row.seconds:.0f}"
        cells.append([row.name, f"{row.bytes:,}", f"1/{whole.bytes / row.bytes:.2f}", seconds, *scores])
    header = ["", "bytes", "of float32", "seconds", *(f"{split} mAP50-95 (of float32)" for split in found["scored"])]
    held = [
        [claim["claim"], f"{claim['found']:.4f}", "yes" if claim["holds"] else "**no**"] for claim in found["claims"]
    ]
    about = "\n".join((__doc__ or "").split("\n\n")[:2]).split("\n")
    lines = ["# A large detector in 4 bits", "", f"`{found['command']}`", "", *about[1:], ""]
    lines += [
        f"{found['frames']} calibration frames; largest resident memory {found['peak_bytes'] / 2**30:.1f} GiB.",
        "",
    ]
    lines += [*table(header, cells), "", *table(["", "found", "holds"], held), "", *conditions_lines(found)]
    return lines


def main() -> int:
    """0 when the claims hold, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with data/")
    parser.add_argument("--model", type=Path, required=True, help="an Ultralytics checkpoint")
    parser.add_argument("--data", default="ppe")
    parser.add_argument("--scored", nargs="+", default=["test"])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/large_detector"))
    parser.add_argument("--out", type=Path, default=RESULTS / "large_detector.json")
    given = parser.parse_args()
    use_cores(given.threads)
    asked = f"--model {given.model.name} --data {given.data} --scored {' '.join(given.scored)} --frames {given.frames}"
    found: dict[str, Any] = {"command": f"python bench/large_detector.py {asked}", **conditions(given.threads)}
    rows = run(given)
    smaller = rows[0].bytes / rows[1].bytes
    claims = [{"claim": f"the file is at most 1/{SMALLER:g}; 1/x", "found": smaller, "holds": smaller >= SMALLER}]
    for split, (score, _) in rows[1].scores.items():
        kept = score / rows[0].scores[split][0]
        claims.append({"claim": f"{split}: it keeps at least {KEEP:.0%}", "found": kept, "holds": kept >= KEEP})
    peak = json.loads((given.work / "took.json").read_text("ascii"))["peak_bytes"]
    found |= {"scored": given.scored, "frames": given.frames, "peak_bytes": peak, "claims": claims}
    found["rows"] = [asdict(row) for row in rows]
    write_results(given.out, found, page(found, rows))
    return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
