"""`trtexec` as one generation has it: takes the flags of that generation and no others, and computes with ONNX Runtime.

Run as a program whose folder has a file `version` with a number such as 8502, and `log` for what it was told.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

_COMMON = {
    "onnx",
    "saveEngine",
    "loadEngine",
    "loadInputs",
    "exportOutput",
    "exportTimes",
    "exportProfile",
    "exportLayerInfo",
    "iterations",
    "duration",
    "warmUp",
    "dumpProfile",
    "separateProfileRun",
    "profilingVerbosity",
    "timingCacheFile",
}
_TYPES = {"fp16", "int8"}
_NEWER = {"memPoolSize", "skipInference", "builderOptimizationLevel"}
_BY_GENERATION = (
    (8200, {"workspace", "buildOnly"} | _TYPES),
    (8400, {"workspace", "memPoolSize", "buildOnly"} | _TYPES),
    (8600, _NEWER | _TYPES),
    (110000, _NEWER | {"noCudaGraph", "noSpinWait", "includeDataTransfers"}),
)
PLAN = b"fake trtexec plan\n"


def main(arguments: list[str]) -> int:
    """Do what was told; 1 with a complaint where it cannot be done."""
    folder = Path(__file__).parent
    number = int((folder / "version").read_text("ascii"))
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec {' '.join(arguments)}")
    with (folder / "log").open("a", encoding="utf-8") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments == ["--help"]:
        return 0
    told = dict(re.fullmatch(r"--(\w+)=?(.*)", each).groups() for each in arguments)  # type: ignore[union-attr]
    known = _COMMON | [flags for first, flags in _BY_GENERATION if first <= number][-1]
    for flag in told:
        if flag not in known:
            print(f"[11/27/2026-10:00:00] [E] Unknown option: --{flag} ", file=sys.stderr)
            return 1
    return _build(told, folder) if "onnx" in told else _run(told, number)


def _build(told: dict[str, str], folder: Path) -> int:
    graph = Path(told["onnx"]).read_bytes()
    if b"QuantizeLinear" in graph and "int8" not in told and int((folder / "version").read_text("ascii")) < 110000:
        print("[11/27/2026-10:00:00] [E] Error[4]: Q/DQ without INT8")
        return 1
    Path(told["saveEngine"]).write_bytes(PLAN + graph)
    if "timingCacheFile" in told:
        cache = Path(told["timingCacheFile"])
        cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"timed\n")
    return 0


def _run(told: dict[str, str], number: int) -> int:
    plan = Path(told["loadEngine"]).read_bytes()
    if not plan.startswith(PLAN):
        print("[11/27/2026-10:00:00] [E] Error[1]: Serialization: magicTag does not match")
        return 1
    if "exportLayerInfo" in told:
        _inspect(told, b"QuantizeLinear" in plan)
    if "exportTimes" in told:
        # The first two only warm up; 20 ms, then 10 ms each.
        warm = int(told["warmUp"])
        starts = [0, warm / 2] + [warm + 10 * at for at in range(int(told["iterations"]))]
        rows = [{"startComputeMs": at, "computeMs": 9.0, "latencyMs": 20.0 if at < warm else 10.0} for at in starts]
        Path(told["exportTimes"]).write_text(json.dumps(rows), "ascii")
    if "exportOutput" in told:
        _infer(plan[len(PLAN) :], told)
    return 0


def _inspect(told: dict[str, str], quantized: bool) -> None:
    kind = ("Int8", "Half")[not quantized]
    layers = [
        {"Name": "conv", "LayerType": "CaskConvolution", "Weights": {"Type": kind, "Count": 64}},
        {"Name": "decode", "LayerType": "PointWiseV2", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
    ]
    Path(told["exportLayerInfo"]).write_text(json.dumps({"Layers": layers, "Bindings": ["images"]}), "ascii")
    profile = [{"count": 10}, *({"name": each["Name"], "timeMs": 10.0, "averageMs": 1.0} for each in layers)]
    Path(told["exportProfile"]).write_text(json.dumps(profile), "ascii")


def _infer(graph: bytes, told: dict[str, str]) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    name, _, file = told["loadInputs"].partition(":")
    if name != given.name:
        sys.exit(f"[11/27/2026-10:00:00] [E] Cannot find input tensor with name {name}")
    batch = np.fromfile(file, np.float32).reshape(given.shape)
    rows = []
    for port, output in zip(session.get_outputs(), session.run(None, {given.name: batch}), strict=True):
        # As the program prints them: six digits.
        values = [float(f"{value:.6g}") for value in output.ravel()]
        rows.append({"name": port.name, "dimensions": "x".join(map(str, output.shape)), "values": values})
    Path(told["exportOutput"]).write_text(json.dumps(rows), "ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
