"""Ultralytics' own quantization-aware training, `train(quantize=8)`, and the Q/DQ graph that it exports.

    python train_ultralytics_qat.py --model float.pt --data data.yaml --out trained.onnx
        --folded int8_weights.onnx --work FOLDER --settings '{"epochs": 20, "batch": 8, "imgsz": 640, ...}'

It runs in its own environment with ModelOpt. Ultralytics writes caches beside the data: pass a copy. `--settings` are
arguments of `train`; others keep Ultralytics' defaults. Ultralytics' graph stores weights as floats, which a runtime
quantizes when it loads the graph. `--folded` is the same graph with these weights stored in INT8. The last line on
stdout is a JSON object: `seconds` (wall time of `train`, including calibration, validation and checkpoints),
`export_seconds`, `epochs` (started), `step_seconds` (median), `peak_bytes` and `packages`.
"""

import argparse
import json
import statistics
import time
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from adapter import peak_bytes
from onnx import numpy_helper
from ultralytics import YOLO


def train(model: Path, data: Path, work: Path, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Train. Return Ultralytics' best checkpoint, by the split `val`, and `seconds`, `epochs` and `step_seconds`."""
    stamps: list[float] = []
    yolo = YOLO(model)
    yolo.add_callback("on_train_batch_end", lambda trainer: stamps.append(time.perf_counter()))
    began = time.perf_counter()
    yolo.train(data=data, quantize=8, plots=False, project=work, name="train", exist_ok=True, **settings)
    seconds = time.perf_counter() - began
    gaps = [after - before for before, after in pairwise(stamps)]
    return Path(yolo.trainer.best), {
        "seconds": seconds,
        "epochs": yolo.trainer.epoch + 1,
        "step_seconds": statistics.median(gaps) if gaps else None,
    }


def fold_weights(graph: Path, out: Path) -> None:
    """Write the graph to `out` with each QuantizeLinear of a constant replaced by its result."""
    model = onnx.load(graph)
    constants = {each.name: each for each in model.graph.initializer}
    for node in [each for each in model.graph.node if each.op_type == "QuantizeLinear" and each.input[0] in constants]:
        weights, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        (axis,) = [each.i for each in node.attribute if each.name == "axis"] or [1]
        shape = [-1 if index == axis else 1 for index in range(weights.ndim)] if scale.size > 1 else []
        limits = np.iinfo(zero.dtype)
        codes = (np.rint(weights / scale.reshape(shape)) + zero.reshape(shape)).clip(limits.min, limits.max)
        model.graph.initializer.append(numpy_helper.from_array(codes.astype(zero.dtype), node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, out)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--data", "--out", "--folded", "--work"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    # Ultralytics sets OMP_NUM_THREADS to 1 at import.
    torch.set_num_threads(given.threads)
    best, took = train(given.model, given.data, given.work, given.settings)
    began = time.perf_counter()
    graph = YOLO(best).export(format="onnx", imgsz=given.settings["imgsz"], device="cpu")
    took["export_seconds"] = time.perf_counter() - began
    Path(graph).replace(given.out)
    fold_weights(given.out, given.folded)
    packages = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    print("\n" + json.dumps({**took, "peak_bytes": peak_bytes(), "packages": packages}))


if __name__ == "__main__":
    main()
