"""The graph that TensorRT 8 gets: FP32 weights behind Q/DQ in place of INT8 constants, and the DLA's calibration cache.

For each detector and opset: whether the form computes what the Q/DQ graph does, output for output, in ONNX Runtime;
whether ONNX's checker takes it; how many INT8 initializers a DequantizeLinear still reads; how many activations of the
graph without Q/DQ lack a scale; its bytes beside those of the bundle's packed graph; and the memory that writing it
takes, measured in a process of its own with nothing in it but NumPy and what the agent uses. Detectors without weights
here have random ones. Nothing runs TensorRT: that it takes the form is known from its parser's sources alone.

    python bench/tensorrt8_graphs.py [--images 16]

The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import HERE, RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.builds.recipe import Quantize
from edgekd.compress.quantization.activation_scales import activation_scales
from edgekd.compress.quantization.quantize import quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.formats.activations import missing_scales
from edgekd.core.formats.packed_graph import pack
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.data.dataset import load_dataset
from edgekd.data.demo import DETECTOR
from edgekd.data.images import read_image
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.detectors.onnx import to_opset

OPSETS = (13, 17)
DETECTORS = ("yolo11n.pt", "yolo11s.yaml", "yolo26n.pt", "yolov8n.yaml", "yolox_nano.onnx", "demo")
LARGEST = "yolo11x.yaml"
"""The largest detector that the project is for: for memory alone, at one opset."""
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
"""What the agent does before TensorRT 8 parses: the whole of it, in a process of its own."""


@dataclass(frozen=True)
class Row:
    """One detector at one opset; bytes of files; memory and seconds of writing the form."""

    detector: str
    opset: int
    int8_layers: int
    int8_constants: int
    difference: float
    difference_optimized: float
    checker: str
    activations: int
    missing: int
    packed_bytes: int
    qdq_bytes: int
    form_bytes: int
    largest_weight_bytes: int
    peak_bytes: int
    seconds: float


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=int, default=16, help="calibration images of coco256")
    parser.add_argument("--out", type=Path, default=RESULTS / "tensorrt8_graphs.json")
    given = parser.parse_args()
    use_cores(2)
    found = conditions(2)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [(name, opset) for name in DETECTORS for opset in OPSETS] + [(LARGEST, OPSETS[-1])]
        for name, opset in jobs:
            folder = Path(scratch, f"{Path(name).stem}-{opset}")
            folder.mkdir()
            rows.append(measure(name, opset, folder, given))
            print(rows[-1], file=sys.stderr, flush=True)
    write_results(
        given.out, {**found, "images": given.images, "rows": [asdict(row) for row in rows]}, page(rows, found)
    )
    return 0


def measure(name: str, opset: int, folder: Path, given: argparse.Namespace) -> Row:
    """Quantize a detector, write its form for TensorRT 8, and compare both."""
    floating, qdq, form = (folder / f"{part}.onnx" for part in ("float", "qdq", "form"))
    exported = export(load(source_of(name, folder, given.shared)), floating, opset)
    onnx.save(to_opset(onnx.load(floating), opset, floating), floating)  # an ONNX detector is exported as it is
    frames = calibration_frames(exported.spec, given.shared, given.images if name != LARGEST else 2)
    done = quantize(floating, qdq, frames, Quantize())
    written = write_form(qdq, folder)
    (folder / "graph.onnx").rename(form)
    plain = plain_graph(qdq.read_bytes())
    scales = activation_scales(qdq, lambda: frames) if name != LARGEST else plain.scales
    model, weights = onnx.load(form), onnx.load(qdq)
    codes = [each for each in weights.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    large = name == LARGEST
    return Row(
        detector=name,
        opset=model.opset_import[0].version,
        int8_layers=len(done.int8),
        int8_constants=count_int8_constants(model),
        difference=float("nan") if large else difference(qdq, form, frames[:2], optimized=False),
        difference_optimized=float("nan") if large else difference(qdq, form, frames[:2], optimized=True),
        checker=checked(model),
        activations=0 if large else len(scales),
        missing=0 if large else len(missing_scales(plain.onnx, scales)),
        packed_bytes=len(pack(qdq.read_bytes())),
        qdq_bytes=qdq.stat().st_size,
        form_bytes=form.stat().st_size,
        largest_weight_bytes=max(4 * int(np.prod(each.dims)) for each in codes),
        peak_bytes=written["peak_bytes"],
        seconds=round(written["seconds"], 3),
    )


def source_of(name: str, folder: Path, shared: Path) -> Path:
    """Return the detector's file; one of an architecture alone is made with random weights."""
    if name == "demo":
        return DETECTOR
    if not name.endswith(".yaml"):
        return shared / "models" / name
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    path = folder / f"{Path(name).stem}.pt"
    YOLO(name).save(path)
    return path


def calibration_frames(spec: DetectorSpec, shared: Path, count: int) -> list[np.ndarray]:
    """Return training images as the network takes them, float32 [1, 3, h, w]."""
    samples = load_dataset(shared / "data" / "coco256").split("train").samples[:count]
    return [letterbox(read_image(sample.image), spec.preprocess)[0] for sample in samples]


def write_form(qdq: Path, folder: Path) -> dict[str, Any]:
    """Write the form as the agent does, in a process of its own; its seconds and peak memory."""
    command = [sys.executable, "-c", WRITER, str(qdq), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def count_int8_constants(model: onnx.ModelProto) -> int:
    """Return how many INT8 initializers a DequantizeLinear reads as its data."""
    int8 = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8}
    return sum(node.op_type == "DequantizeLinear" and node.input[0] in int8 for node in model.graph.node)


def checked(model: onnx.ModelProto) -> str:
    """Return `valid`, or what ONNX's checker finds wrong."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # a row says what is wrong, and the others are measured all the same
        return str(error).strip().splitlines()[0][:100]
    return "valid"


def difference(first: Path, second: Path, frames: list[np.ndarray], *, optimized: bool) -> float:
    """Return the largest difference of any output number between two graphs."""
    outputs = [[run(path, frame, optimized=optimized) for frame in frames] for path in (first, second)]
    return max(
        float(np.abs(a - b).max()) for one, other in zip(*outputs, strict=True) for a, b in zip(one, other, strict=True)
    )


def run(path: Path, frame: np.ndarray, *, optimized: bool) -> list[np.ndarray]:
    """Return what ONNX Runtime computes, node by node as written, or as it optimizes the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: frame})
    return found


def page(rows: list[Row], found: dict[str, Any]) -> list[str]:
    """The result as Markdown."""
    header = (
        *("detector", "opset", "INT8 layers", "INT8 constants left", "largest difference", "optimized", "ONNX checker"),
        *("activations", "without a scale", "packed MB", "Q/DQ MB", "form MB", "largest weight MB", "peak MB", "s"),
    )
    cells = [
        (
            *(row.detector, str(row.opset), str(row.int8_layers), str(row.int8_constants)),
            *("-" if np.isnan(each) else f"{each:g}" for each in (row.difference, row.difference_optimized)),
            *(row.checker, *(str(each) if row.activations else "-" for each in (row.activations, row.missing))),
            *(f"{each / 1e6:.2f}" for each in (row.packed_bytes, row.qdq_bytes, row.form_bytes)),
            *(f"{row.largest_weight_bytes / 1e6:.2f}", f"{row.peak_bytes / 1e6:.0f}", f"{row.seconds:.2f}"),
        )
        for row in rows
    ]
    return [
        "# The graph that TensorRT 8 gets",
        "",
        "Measured in ONNX Runtime on a CPU; no TensorRT ran. `largest difference`: between any number that the Q/DQ",
        "graph and its form for TensorRT 8 give, on two images, node by node as written; `optimized`: as ONNX Runtime",
        "optimizes both. `peak`: resident memory that writing the form adds, the mapped Q/DQ file included; `packed`:",
        "the bundle's graph, which stays as it is. Detectors named `.yaml` have random weights; the largest is for",
        "memory alone.",
        "",
        *table(header, cells),
        "",
        f"Command: `python {' '.join(['bench/tensorrt8_graphs.py', *sys.argv[1:]])}`. onnx {onnx.__version__}.",
        "",
        *conditions_lines(found),
    ]


if __name__ == "__main__":
    sys.exit(main())
