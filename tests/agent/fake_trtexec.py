"""A fake of one version's `trtexec`: accepts only the recorded flags of that version, and computes with ONNX Runtime.

Errors of parser and builder are those of fake_tensorrt_parser and fake_tensorrt_builder. `install` writes the program.
Its folder has the files `version` with a number such as 8502, `options` of Behaviour, and `log` with its command lines.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorrt_tables import trtexec_flags

PLAN = b"fake trtexec plan\n"
STAMP = "[11/27/2026-10:00:00]"
RUN_MS = 10.0
"""Default milliseconds of one run."""
_SEVERITIES = {"ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}


def install(folder: Path, number: int, **options: Any) -> Path:
    """Write the program of a version, given as trtexec's number. options: fields of Behaviour."""
    folder.mkdir(exist_ok=True)
    path = folder / "trtexec"
    tests = str(Path(__file__).parent)
    lines = (
        f"#!{sys.executable}",
        f"import sys; from pathlib import Path; sys.path.insert(0, {tests!r})",
        "from fake_trtexec import main",
        "sys.exit(main(sys.argv[1:], Path(__file__).parent))",
    )
    path.write_text("\n".join(lines) + "\n", "utf-8")
    path.chmod(0o755)
    (folder / "version").write_text(str(number), "ascii")
    (folder / "options").write_text(json.dumps(options), "utf-8")
    (folder / "log").write_text("", "ascii")
    return path


def version_of(number: int) -> str:
    """Return a version from its number: 8502 is 8.5.2, 100300 is 10.3.0."""
    step = 10_000 if number >= 100_000 else 1000
    return f"{number // step}.{number % step // 100}.{number % 100}"


class Failure(Exception):  # noqa: N818 ends the program with FAILED
    """A failure with the message that the program prints."""


def main(arguments: list[str], folder: Path) -> int:
    """Run the program. Return 0, or 1 after printing an error."""
    number = int((folder / "version").read_text("ascii"))
    title = f"TensorRT.trtexec [TensorRT v{number}] # {folder / 'trtexec'} {' '.join(arguments)}"
    print(f"&&&& RUNNING {title}")
    with (folder / "log").open("a", encoding="utf-8") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments == ["--help"]:
        return 0
    options = {flag: value for flag, _, value in (each.partition("=") for each in arguments)}
    try:
        unknown = [flag for flag in options if flag not in trtexec_flags(version_of(number))]
        if unknown:
            raise Failure(f"Unknown option: {unknown[0]} {options[unknown[0]]}")
        if "--onnx" in options:
            _build(options, version_of(number), folder)
        else:
            _run(options, version_of(number))
    except Failure as failure:
        print(f"{STAMP} [E] {failure}", file=sys.stderr)
        print(f"&&&& FAILED {title}", file=sys.stderr)
        return 1
    print(f"&&&& PASSED {title}")
    return 0


def _print(severity: str, message: str) -> None:
    """Print a message of TensorRT in the program's format."""
    letter = _SEVERITIES[severity]
    code, colon, rest = message.partition(": ")
    numbered = severity == "ERROR" and colon and code.isdigit()
    text = f"Error[{code}]: {rest}" if numbered else f"[TRT] {message}"
    if severity != "VERBOSE":
        print(f"{STAMP} [{letter}] {text}", file=sys.stderr if letter in "EW" else sys.stdout)


def _build(options: dict[str, str], version: str, folder: Path) -> None:
    import onnx
    from fake_tensorrt_builder import Behaviour, plan
    from fake_tensorrt_parser import parse_error

    content = Path(options["--onnx"]).read_bytes()
    model = onnx.load_from_string(content)
    behaviour = Behaviour(**json.loads((folder / "options").read_text("utf-8")))
    error = parse_error(model, version, behaviour.refuses)
    if error:
        if error.logged:
            _print("ERROR", f"3: {error.logged}")
        node = model.graph.node[error.node]
        head = f'While parsing node number {error.node} [{node.op_type} -> "{node.output[0]}"]:'
        for line in (head, "--- Begin node ---", str(node), "--- End node ---"):
            _print("ERROR", f"ModelImporter.cpp:773: {line}")
        _print("ERROR", f"ModelImporter.cpp:779: ERROR: In function parseGraph:\n[6] {error.description}")
        raise Failure("Failed to parse onnx file")
    result = plan(model, _request(options, model, version), behaviour, _print)
    if result is None:
        raise Failure("Engine could not be created from network")
    record = {"times": bool(behaviour.times), "engine": [asdict(layer) for layer in result.layers]}
    Path(options["--saveEngine"]).write_bytes(PLAN + json.dumps(record).encode() + b"\n" + content)
    if "--timingCacheFile" in options:
        cache = Path(options["--timingCacheFile"])
        cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"timed\n")


def _request(options: dict[str, str], model: Any, version: str) -> Any:
    """Return the build request of the options. Without a cache the program assigns a range to every tensor."""
    from fake_tensorrt_builder import Request
    from fake_tensorrt_graph import Graph

    from edgekd.core.formats.calibration_cache import from_text

    flags = {name.upper() for name in ("fp16", "int8") if f"--{name}" in options or "--best" in options}
    if "--allowGPUFallback" in options:
        flags.add("GPU_FALLBACK")
    constraints = options.get("--precisionConstraints", "none")
    if constraints != "none":
        flags.add(f"{constraints.upper()}_PRECISION_CONSTRAINTS")
    graph, ranges = Graph(model), {}
    calibration = options.get("--calib")
    if "INT8" in flags and calibration is None and not graph.quantized:
        tensors = (*graph.inputs, *(name for node in graph.layers for name in node.output))
        ranges = dict.fromkeys(tensors, 1.0)
    pairs = [each.rpartition(":") for each in filter(None, options.get("--layerPrecisions", "").split(","))]
    core = options.get("--useDLACore")
    return Request(
        version,
        frozenset(flags),
        from_text(Path(calibration).read_text("utf-8")) if calibration and not graph.quantized else None,
        ranges,
        frozenset(name for name, _, precision in pairs if precision == "fp16"),
        int(core) if core is not None else None,
    )


def _run(options: dict[str, str], version: str) -> None:
    from fake_tensorrt_builder import EngineLayer, total_ms

    plan = Path(options["--loadEngine"]).read_bytes()
    if not plan.startswith(PLAN):
        raise Failure("Error[1]: Serialization: magicTag does not match")
    header, _, graph = plan[len(PLAN) :].partition(b"\n")
    record = json.loads(header)
    layers = tuple(EngineLayer(**each) for each in record["engine"])
    if "--exportLayerInfo" in options:
        _inspect(options, layers, version)
    if "--exportTimes" in options:
        # The first two runs are warm-up and take twice the time.
        warm, ms = int(options["--warmUp"]), total_ms(layers) if record["times"] else RUN_MS
        starts = [0, warm / 2] + [warm + ms * index for index in range(int(options["--iterations"]))]
        rows = [
            {"startComputeMs": start, "computeMs": ms - 1, "latencyMs": 2 * ms if start < warm else ms}
            for start in starts
        ]
        Path(options["--exportTimes"]).write_text(json.dumps(rows), "ascii")
    if "--exportOutput" in options:
        _infer(graph, options)


def _inspect(options: dict[str, str], layers: Any, version: str) -> None:
    from fake_tensorrt_inspector import inspected

    Path(options["--exportLayerInfo"]).write_text(inspected(layers, version), "ascii")
    rows = [{"name": each.name, "timeMs": 10 * each.ms, "averageMs": each.ms} for each in layers]
    Path(options["--exportProfile"]).write_text(json.dumps([{"count": 10}, *rows]), "ascii")


def _infer(graph: bytes, options: dict[str, str]) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    name, _, file = options["--loadInputs"].partition(":")
    if name != given.name:
        raise Failure(f"Cannot find input tensor with name {name}")
    kind = np.uint8 if given.type == "tensor(uint8)" else np.float32
    # Without --shapes the program sets dynamic axes to 1.
    shape = [side if isinstance(side, int) else 1 for side in given.shape]
    batch = np.fromfile(file, kind).reshape(shape)
    rows = []
    for port, output in zip(session.get_outputs(), session.run(None, {given.name: batch}), strict=True):
        # Six digits, as the program prints them.
        values = [float(f"{value:.6g}") for value in output.ravel()]
        rows.append({"name": port.name, "dimensions": "x".join(map(str, output.shape)), "values": values})
    Path(options["--exportOutput"]).write_text(json.dumps(rows), "ascii")
