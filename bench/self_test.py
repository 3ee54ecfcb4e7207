"""Test which graphs pass the agent's self-test: on other runtimes, in half precision, and with injected errors.

A runtime that rounds differently must pass, a broken network should fail. DIR is the `--out` of an `edgekd build`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from frame import Blocks, Document, Given, Option, Result, head, main, table
from onnx import numpy_helper

from edgekd.agent.engines.parity import output_error
from edgekd.agent.state.golden import batches
from edgekd.core.bundle.archive import extract
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.formats.golden_set import GoldenSet, from_bytes
from edgekd.deploy.golden_set import golden_set
from edgekd.graph.runtimes import HostRuntime
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU

SOUND, BROKEN = "sound", "broken"


def drifts(
    graph: Path, golden: GoldenSet, spec: DetectorSpec, engine: HostRuntime = ONNXRUNTIME_CPU
) -> dict[str, float]:
    """Return the largest errors of boxes and scores, as the self-test computes them."""
    head = spec.head
    with engine.load(graph, threads=1) as session:
        found = [output_error(session.run(batch), golden, at, head) for at, batch in enumerate(batches(golden, spec))]
    return {part: round(max(getattr(each, part) for each in found), 4) for part in ("boxes", "scores")}


def kernels(model: Any) -> list[Any]:
    """Return the initializers of convolution kernels, in graph order."""
    stored = {each.name: each for each in model.graph.initializer if len(each.dims) == 4}
    return [stored[name] for node in model.graph.node for name in node.input if name in stored]


def zeroed(weights: np.ndarray) -> np.ndarray:
    kept = weights.copy()
    kept[0] = 0
    return kept


def broken(graph: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield a description and a graph with one error in the first layer, or in the middle one."""
    rng = np.random.default_rng(0)
    changes: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "weights times 0.9": lambda weights: weights * 0.9,
        "one channel zero": zeroed,
        "noise of 3 % of the largest weight": lambda weights: (
            weights + 0.03 * np.abs(weights).max() * rng.normal(size=weights.shape)
        ),
    }
    for where in ("first", "middle"):
        for what, change in changes.items():
            model = onnx.load(graph)
            found = kernels(model)
            kernel = found[0 if where == "first" else len(found) // 2]
            weights = numpy_helper.to_array(kernel)
            kernel.CopyFrom(numpy_helper.from_array(change(weights).astype(weights.dtype), kernel.name))
            onnx.save(model, folder / "broken.onnx")
            yield f"{where} layer: {what}", folder / "broken.onnx"


def rows_of(build: Path, scratch: Path) -> list[dict[str, Any]]:
    bundle = next(build.glob("*.edgekd"))
    manifest = extract(bundle, scratch / "bundle")
    spec = spec_from_json(manifest.detector)
    golden = from_bytes(next((scratch / "bundle").glob("golden.set")).read_bytes())
    graph = build / "graph.onnx"
    floating = sorted((build / "stages").glob("export-*/graph.onnx"))[-1]
    rows: list[dict[str, Any]] = []

    def add(kind: str, what: str, found: Mapping[str, float], wanted: GoldenSet = golden) -> None:
        boxes, scores = wanted.tolerance
        passed = found["boxes"] <= boxes and found["scores"] <= scores
        row = {"network": f"{manifest.name}, {wanted.precision}", "kind": kind, "what": what, **found}
        rows.append({**row, "tolerance": list(wanted.tolerance), "passed": passed})

    add(SOUND, "ONNX Runtime", drifts(graph, golden, spec))
    add(SOUND, "OpenVINO", drifts(graph, golden, spec, OPENVINO_CPU))
    how = spec.preprocess
    exchanged = replace(spec, preprocess=replace(how, color="bgr" if how.color == "rgb" else "rgb"))
    add(BROKEN, "red and blue exchanged", drifts(graph, golden, exchanged))
    unscaled = replace(spec, preprocess=replace(how, scale=1.0 if how.scale < 0.1 else 1 / 255))
    add(BROKEN, "colours from 0 to 255 for 0 to 1, or the reverse", drifts(graph, golden, unscaled))
    for what, path in broken(graph, scratch):
        add(BROKEN, what, drifts(path, golden, spec))
    canvases = [golden.canvas(at, how.height, how.width) for at in range(len(golden.frames))]
    reference = golden_set(floating, None, spec, canvases)
    add(SOUND, "float16 in ONNX Runtime", drifts(halved(floating, scratch), reference, spec), reference)
    return rows


def halved(floating: Path, folder: Path) -> Path:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(floating), keep_io_types=True), folder / "float16.onnx")
    return folder / "float16.onnx"


def page(found: Document) -> Blocks:
    wrong = [row for row in found.rows if row.kind == BROKEN]
    yield from head("Alterations that the self-test accepts", found)
    caught = sum(not row.passed for row in wrong)
    yield f"Of {len(wrong)} networks that are broken on purpose {caught} fail. In brackets: the tolerance."
    yield table(
        "network | in place of ONNX Runtime's own output |  | boxes | scores | ",
        (
            f"{row.network} | {row.what} | {row.kind} | {row.boxes:.4f} ({row.tolerance[0]:.4f}) | "
            f"{row.scores:.4f} ({row.tolerance[1]:.4f}) | {'passes' if row.passed else 'fails'}"
            for row in found.rows
        ),
    )


def run(given: Given) -> Result:
    rows = []
    for number, build in enumerate(given.builds):
        folder = given.scratch / str(number)
        folder.mkdir()
        rows += rows_of(build, folder)
    return {"rows": rows}


if __name__ == "__main__":
    builds = Option("builds", nargs="+", type=Path, metavar="DIR", help="where `edgekd build` left its results")
    main(run, page, builds)
