"""Check graph and calibration cache for TensorRT 8, where FP32 weights with Q/DQ replace INT8 constants.

Memory of writing the graph is measured in a process with NumPy and the agent alone. Needs `edgekd[train]`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from common import DEMO, HERE, exported, images_of, split_of
from frame import Blocks, Document, Given, Option, Result, last_json, main, note, table

from edgekd.compress.quantization.activation_scales import activation_scales
from edgekd.core.formats.activations import missing_scales
from edgekd.core.formats.packed_graph import pack
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.graph.opset import to_opset

OPSETS = (13, 17)
DETECTORS = ("yolo11n.pt", "yolo11s.yaml", "yolo26n.pt", "yolov8n.yaml", "yolox_nano.onnx", "demo")
LARGEST = "yolo11x.yaml"  # the largest supported detector: measured for memory only, at one opset
WRITER = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.types import BuildOptions

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

source, folder = map(Path, sys.argv[1:])
import numpy
before, began = kilobytes("VmRSS:"), time.perf_counter()
found = networks.network(SimpleNamespace(graph=source, name="a"), BuildOptions(), folder, int8_constants=False)
took = time.perf_counter() - began
print(json.dumps({"seconds": took, "peak_bytes": 1024 * (kilobytes("VmHWM:") - before)}))
"""
"""Script that does the agent's work before TensorRT 8 parses the graph, and prints seconds and peak memory as JSON."""


def run(given: Given) -> Result:
    rows = []
    for name, opset in [*((name, opset) for name in DETECTORS for opset in OPSETS), (LARGEST, OPSETS[-1])]:
        folder = given.scratch / f"{Path(name).stem}-{opset}"
        folder.mkdir()
        rows.append(measure(name, opset, folder, given))
        note(rows[-1])
    return {"rows": rows}


def measure(name: str, opset: int, folder: Path, given: Given) -> Document:
    """Quantize a detector, write its graph for TensorRT 8, and compare both. Return the row."""
    large = name == LARGEST
    floating, qdq, form = (folder / f"{part}.onnx" for part in ("float", "qdq", "form"))
    exact = exported(source_of(name, folder, given.shared), floating, opset)
    onnx.save(to_opset(onnx.load(floating), opset, str(floating)), floating)  # ONNX detectors keep their opset
    images = images_of(split_of(given.shared, "coco256", "train"), 2 if large else given.images)
    frames = list(exact.frames(images))
    done = exact.quantized(qdq, frames)
    written = write_form(qdq, folder)
    (folder / "graph.onnx").rename(form)
    plain = plain_graph(qdq.read_bytes())
    scales = plain.scales if large else activation_scales(qdq, lambda: frames)
    model, weights = onnx.load(form), onnx.load(qdq)
    codes = [each for each in weights.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    row = Document(detector=name, opset=model.opset_import[0].version, int8_layers=len(done.int8))
    row.update(int8_constants=count_int8_constants(model), checker=checked(model))
    for key, optimized in (("difference", False), ("difference_optimized", True)):
        row[key] = float("nan") if large else difference(qdq, form, frames[:2], optimized=optimized)
    row.update(activations=0 if large else len(scales))
    row.update(missing=0 if large else len(missing_scales(plain.onnx, scales)))
    row.update(packed_bytes=len(pack(qdq.read_bytes())), qdq_bytes=qdq.stat().st_size, form_bytes=form.stat().st_size)
    row.update(largest_weight_bytes=max(4 * int(np.prod(each.dims)) for each in codes))
    return Document(row, peak_bytes=written["peak_bytes"], seconds=round(written["seconds"], 3))


def source_of(name: str, folder: Path, shared: Path) -> Path:
    """Return the detector's file; for an Ultralytics YAML, a checkpoint with random weights."""
    if name == "demo":
        return DEMO
    if not name.endswith(".yaml"):
        return shared / "models" / name
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    path = folder / f"{Path(name).stem}.pt"
    YOLO(name).save(path)
    return path


def write_form(qdq: Path, folder: Path) -> Result:
    """Write the graph for TensorRT 8 as the agent does, in its own process. Return `seconds` and `peak_bytes`."""
    command = [sys.executable, "-c", WRITER, str(qdq), str(folder)]
    return last_json(subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout)


def count_int8_constants(model: onnx.ModelProto) -> int:
    """Return the number of DequantizeLinear nodes whose data is an INT8 initializer."""
    int8 = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8}
    return sum(node.op_type == "DequantizeLinear" and node.input[0] in int8 for node in model.graph.node)


def checked(model: onnx.ModelProto) -> str:
    """Return `valid`, or the first line of the ONNX checker's error."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the error goes into the row; other rows are still measured
        return str(error).strip().splitlines()[0][:100]
    return "valid"


def difference(first: Path, second: Path, frames: list[np.ndarray], *, optimized: bool) -> float:
    """Return the largest absolute difference between the outputs of two graphs."""
    outputs = [
        [each for frame in frames for each in computed(path, frame, optimized=optimized)] for path in (first, second)
    ]
    return max(float(np.abs(one - other).max()) for one, other in zip(*outputs, strict=True))


def computed(path: Path, frame: np.ndarray, *, optimized: bool) -> list[np.ndarray]:
    """Return ONNX Runtime's outputs, with or without graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: frame})
    return outputs


def cells(row: Document) -> str:
    apart = ("-" if np.isnan(each) else f"{each:g}" for each in (row.difference, row.difference_optimized))
    scaled = f"{row.activations} | {row.missing}" if row.activations else "- | -"
    sizes = (row[f"{part}_bytes"] / 1e6 for part in ("packed", "qdq", "form", "largest_weight"))
    return (
        f"{row.detector} | {row.opset} | {row.int8_layers} | {row.int8_constants} | {' | '.join(apart)} | "
        f"{row.checker} | {scaled} | {' | '.join(f'{size:.2f}' for size in sizes)} | {row.peak_bytes / 1e6:.0f} | "
        f"{row.seconds:.2f}"
    )


def page(found: Document) -> Blocks:
    yield "# Graphs for TensorRT 8"
    yield """\
Measured in ONNX Runtime on a CPU; no TensorRT ran. `largest difference`: between any number that the Q/DQ
graph and its form for TensorRT 8 give, on two images, node by node as written; `optimized`: as ONNX Runtime
optimizes both. `peak`: resident memory that writing the form adds, the mapped Q/DQ file included; `packed`:
the bundle's graph, which stays as it is. Detectors named `.yaml` have random weights; the largest is for
memory alone."""
    yield table(
        "detector | opset | INT8 layers | INT8 constants left | largest difference | optimized | ONNX checker | "
        "activations | without a scale | packed MB | Q/DQ MB | form MB | largest weight MB | peak MB | s",
        map(cells, found.rows),
    )
    command = found.get("command", "python bench/tensorrt8_graphs.py")
    yield f"Command: `{command}`. onnx {found.host.libraries['onnx']}."


if __name__ == "__main__":
    main(run, page, Option("--images", 16, "calibration images of coco256"), cores=2)
