"""Score detectors with every scaled activation rounded to INT8: a bound on a DLA's loss with a calibration cache.

A Q/DQ engine rounds once between two layers. An engine built from a calibration cache may also round a convolution's
output before the activation, and each factor of a SiLU. Here every tensor with a scale gets a Q/DQ pair. Needs
`edgekd[train]`.
"""

from collections.abc import Container, Mapping

import numpy as np
import onnx
from common import Detector, exported, images_of, split_of
from frame import Blocks, Document, Given, Option, Result, main, table
from onnx import helper, numpy_helper

from edgekd.compress.quantization.activation_scales import activation_scales
from edgekd.core.formats.plain_graph import plain_graph

DETECTORS = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")


def run(given: Given) -> Result:
    return {"rows": [measure(name, given) for name in DETECTORS]}


def measure(name: str, given: Given) -> Document:
    floating, qdq, rounded = (given.scratch / f"{name}-{part}.onnx" for part in ("float", "qdq", "rounded"))
    exact = exported(given.shared / "models" / name, floating)
    frames = list(exact.frames(images_of(split_of(given.shared, "coco256", "train"), given.images)))
    exact.quantized(qdq, frames)
    scales, plain = activation_scales(qdq, lambda: frames), plain_graph(qdq.read_bytes())
    model, count = with_rounded_activations(onnx.load_from_string(plain.onnx), scales, plain.float_tensors)
    onnx.save(model, rounded)
    split, graphs = (
        split_of(given.shared, "coco256", "val"),
        {"float32": floating, "qdq": qdq, "every_activation": rounded},
    )
    scores = {part: Detector(graph, exact.spec).map50_95(split) for part, graph in graphs.items()}
    return Document(detector=name, activations=len(scales), rounded=count, **scores)


def with_rounded_activations(
    model: onnx.ModelProto, scales: Mapping[str, float], float_tensors: Container[str]
) -> tuple[onnx.ModelProto, int]:
    """Insert a Q/DQ pair after each tensor with a scale, except `float_tensors` and outputs. Return model and count."""
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


def page(found: Document) -> Blocks:
    yield "# Accuracy with a DLA's calibration cache: the worst case"
    yield """\
mAP50-95 on the 128 validation images of coco256, simulated in ONNX Runtime on a CPU; no DLA ran. A DLA that
computes a convolution and its activation in one step loses less."""
    yield table(
        "detector | activations | rounded | float32 | Q/DQ | every scaled activation rounded",
        (
            f"{row.detector} | {row.activations} | {row.rounded} | {row.float32:.4f} | {row.qdq:.4f} | "
            f"{row.every_activation:.4f}"
            for row in found.rows
        ),
    )
    yield f"Command: `{found.get('command', 'python bench/dla_rounding.py')}`."


if __name__ == "__main__":
    main(run, page, Option("--images", 64, "calibration images of coco256"), cores=2)
