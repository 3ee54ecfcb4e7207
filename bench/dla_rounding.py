"""Mean average precision where every scaled activation is rounded to INT8: the most that a DLA may lose by its cache.

An engine from Q/DQ rounds once between two layers. One from a calibration cache may also round a convolution's output
before its activation, and each factor of a SiLU. That worst case is simulated in ONNX Runtime: the graph without Q/DQ,
with a Q/DQ pair behind everything that has a scale, but for the tensors that stay in floating point. No DLA runs.

    python bench/dla_rounding.py [--images 64]

The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results
from onnx import helper, numpy_helper

from edgekd.builds.recipe import Quantize
from edgekd.compress.quantization.activation_scales import activation_scales
from edgekd.compress.quantization.quantize import quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.evaluation.evaluate import evaluate

OPSET = 17
DETECTORS = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")


@dataclass(frozen=True)
class Row:
    """mAP50-95 of one detector: in float32, with Q/DQ, and with every scaled activation rounded."""

    detector: str
    activations: int
    rounded: int
    float32: float
    qdq: float
    every_activation: float


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=int, default=64, help="calibration images of coco256")
    parser.add_argument("--out", type=Path, default=RESULTS / "dla_rounding.json")
    given = parser.parse_args()
    use_cores(2)
    found = conditions(2)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(name, Path(scratch), given) for name in DETECTORS]
    write_results(
        given.out, {**found, "images": given.images, "rows": [asdict(row) for row in rows]}, page(rows, found)
    )
    return 0


def measure(name: str, folder: Path, given: argparse.Namespace) -> Row:
    """Quantize a detector, and score its three forms on the validation images."""
    floating, qdq, rounded = (folder / f"{name}-{part}.onnx" for part in ("float", "qdq", "rounded"))
    spec = export(load(given.shared / "models" / name), floating, OPSET).spec
    data = load_dataset(given.shared / "data" / "coco256")
    samples = data.split("train").samples[: given.images]
    frames = [letterbox(read_image(sample.image), spec.preprocess)[0] for sample in samples]
    quantize(floating, qdq, frames, Quantize())
    scales, plain = activation_scales(qdq, lambda: frames), plain_graph(qdq.read_bytes())
    model, count = with_rounded_activations(onnx.load_from_string(plain.onnx), scales, plain.float_tensors)
    onnx.save(model, rounded)
    scores = [
        evaluate(path, spec, data.split("val"), PlainProgress(interval_s=30), name).score.map50_95
        for path in (floating, qdq, rounded)
    ]
    return Row(name, len(scales), count, *scores)


def with_rounded_activations(
    model: onnx.ModelProto, scales: Mapping[str, float], float_tensors: Container[str]
) -> tuple[onnx.ModelProto, int]:
    """Put a Q/DQ pair behind each tensor with a scale, but for these and the outputs; how many there are."""
    graph, nodes = model.graph, list(model.graph.node)
    outputs = {value.name for value in graph.output}
    chosen = {name for name in scales if name not in float_tensors and name not in outputs}
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero of all"))
    graph.initializer.extend(
        numpy_helper.from_array(np.array(scales[name], np.float32), f"{name}/s") for name in chosen
    )
    del graph.node[:]
    computed = [*graph.input[:1], *nodes]
    for each in computed:
        if isinstance(each, onnx.NodeProto):
            each.input[:] = [f"{name}/r" if name in chosen else name for name in each.input]
            graph.node.append(each)
        for name in each.output if isinstance(each, onnx.NodeProto) else [each.name]:
            if name in chosen:
                pair = [f"{name}/s", "zero of all"]
                graph.node.append(helper.make_node("QuantizeLinear", [name, *pair], [f"{name}/q"]))
                graph.node.append(helper.make_node("DequantizeLinear", [f"{name}/q", *pair], [f"{name}/r"]))
    return model, len(chosen)


def page(rows: list[Row], found: dict[str, Any]) -> list[str]:
    """The result as Markdown."""
    header = ("detector", "activations", "rounded", "float32", "Q/DQ", "every scaled activation rounded")
    cells = [
        (
            *(row.detector, str(row.activations), str(row.rounded)),
            *(f"{each:.4f}" for each in (row.float32, row.qdq, row.every_activation)),
        )
        for row in rows
    ]
    return [
        "# The most that a DLA may lose by its calibration cache",
        "",
        "mAP50-95 on the 128 validation images of coco256, simulated in ONNX Runtime on a CPU; no DLA ran. A DLA that",
        "computes a convolution and its activation in one step loses less.",
        "",
        *table(header, cells),
        "",
        f"Command: `python {' '.join(['bench/dla_rounding.py', *sys.argv[1:]])}`.",
        "",
        *conditions_lines(found),
    ]


if __name__ == "__main__":
    sys.exit(main())
