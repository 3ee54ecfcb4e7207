"""Compare a large detector with lighter ones on an x86 GPU, each unchanged and in float16: speed and energy per frame.

The GPU stands in for a device, whose ratios may differ. The name of an Ultralytics YAML stands for a network with
random weights. Needs `edgekd[train,gpu]`.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import without_folders
from frame import Blocks, Document, Given, Option, Result, cell, head, main, table

from edgekd.commands import bench
from edgekd.core.errors import DeviceError
from edgekd.core.progress import PlainProgress
from edgekd.deploy.artifact import opened
from edgekd.deploy.devices.local import LocalDevice
from edgekd.graph.fp16 import half
from edgekd.graph.runtimes import runtime_named

AS_IS, HALVED = "as it is", "float16"
GOALS = {"times as fast": 89 / 12, "share of the energy": 0.4}


def artifact_of(name: str, folder: Path) -> Path:
    """Return the file of a name; for an Ultralytics YAML, a checkpoint with random weights."""
    if not name.endswith(".yaml"):
        return Path(name)
    from ultralytics import YOLO

    made = folder / f"{Path(name).stem}.pt"
    YOLO(name).save(made)
    return made


def graphs_of(name: str, folder: Path, stack: ExitStack) -> dict[str, Path]:
    """Return the artifact's graph unchanged, and converted to float16."""
    graph, _ = stack.enter_context(opened(artifact_of(name, folder), None, (), trust_checkpoint=False))
    halved = folder / f"{Path(name).stem}-float16.onnx"
    half(graph, halved)
    return {AS_IS: graph, HALVED: halved}


def row_of(name: str, precision: str, graph: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("fps", "engine_fps", "refused", "engine_ms", "total_ms", "throughput", "energy", "conditions")
    found = {key: result[key] for key in kept if key in result}
    return {"artifact": Path(name).name, "precision": precision, "bytes": graph.stat().st_size, **found}


def rows_of(given: Given, folder: Path) -> list[dict[str, Any]]:
    """Measure each graph interleaved with the large detector in float16. Return the rows, the latter's first.

    A graph that the engine cannot load gets a row with `error`.
    """
    progress = PlainProgress(sys.stderr)
    settings = {name: getattr(given, name) for name in ("frames", "iterations", "seconds", "streams")}
    with ExitStack() as stack:
        large = graphs_of(given.before, folder, stack)
        graphs = [(given.before, AS_IS, large[AS_IS])]
        for name in given.after:
            graphs += [(name, precision, graph) for precision, graph in graphs_of(name, folder, stack).items()]
        rows: list[dict[str, Any]] = []
        for name, precision, graph in graphs:
            progress.note(f"{name} {precision}")
            device = LocalDevice(runtime_named(given.engine))
            job = bench.BenchJob(artifact=graph, device=device, against=large[HALVED], **settings)
            try:
                result = bench.run(job, progress).document
            except DeviceError as error:
                message = without_folders(str(error), folder)[:300]
                rows.append({"artifact": Path(name).name, "precision": precision, "error": message})
                continue
            if all("error" in row for row in rows):
                rows.append(row_of(given.before, HALVED, large[HALVED], result["against"]))
            rows.append({**row_of(name, precision, graph, result), **compared(result)})
    return rows


def compared(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a graph's speed-up over the large detector, and its share of that one's energy."""
    ours, theirs = result["energy"], result["against"]["energy"]
    share = {kind: ours[kind] / theirs[kind] for kind in ("gross_mj", "net_mj")} if ours and theirs else None
    return {key: result["against"][key] for key in ("times_as_fast", "engine_times_as_fast")} | {"energy_share": share}


def failed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each row with an error."""
    return [f"- {row['artifact']}, {row['precision']}: {row['error']}" for row in rows if "error" in row]


def ratio_of(row: Document) -> str:
    """Return the engine's speed-up with its interval as text; `1` for the large detector."""
    ratio = row.get("engine_times_as_fast")
    return "{:.2f} ({:.2f} to {:.2f})".format(ratio.ratio, *ratio.interval) if ratio else "1"


def page(found: Document) -> Blocks:
    rows = [row for row in found.rows if "error" not in row]
    yield from head("On a GPU that stands in for a device", found)
    goals = ", ".join(f"{name} {value:.2g}" for name, value in GOALS.items())
    yield (
        f"{found.engine}. Beside {found.rows[0].artifact} in float16, measured interleaved with each. Camera: "
        f"from the frame to detections. Energy: gross, of the GPU. Goals: {goals}."
    )
    lines = []
    for row in rows:
        first, energy = "engine_times_as_fast" not in row, row.energy.gross_mj if row.energy else None
        share = row.energy_share.gross_mj if row.get("energy_share") else 1.0 if first and row.energy else None
        lines.append(
            f"{row.artifact} | {row.precision} | {row.bytes / 1e6:.1f} | {row.engine_ms.p50:.3f} | "
            f"{cell(row.engine_fps, '.1f', '-')} | {cell(row.fps, '.1f', '-')} | "
            f"{cell(row.throughput.fps if row.throughput else None, '.1f', '-')} | {ratio_of(row)} | "
            f"{'1' if first else f'{row.times_as_fast.ratio:.2f}'} | {cell(energy, '.1f', '-')} | "
            f"{cell(share, '.2f', '-')}"
        )
    yield table(
        " | precision | MB of ONNX | engine p50, ms | engine FPS | camera FPS | FPS of all streams | "
        "engine: times as fast | camera: times as fast | mJ a frame | share of its energy",
        lines,
    )
    refused = [f"- {row.artifact}, {row.precision}: {why}" for row in rows for why in row.refused]
    if refused + failed(found.rows):
        yield "\n".join(refused + failed(found.rows))
    yield f"GPU: {', '.join(gpu.name for gpu in found.host.gpus) or 'none'}."


def run(given: Given) -> Result:
    return {"rows": rows_of(given, given.scratch)}


def meets(row: Document) -> bool:
    if "error" in row or not row.energy_share:
        return False
    fast = row.engine_times_as_fast.ratio >= GOALS["times as fast"]
    return bool(fast and row.energy_share.gross_mj <= GOALS["share of the energy"])


if __name__ == "__main__":
    options = (
        Option("--before", "yolo11x.yaml", "the large detector"),
        Option("--after", ["yolo11n.yaml", "yolo11s.yaml", "yolo11m.yaml"]),
        Option("--engine", "onnxruntime-cuda"),
        Option("--frames", type=Path, help="images, decoded from JPEG; default: noise"),
        Option("--iterations", 300),
        Option("--seconds", 6.0),
        Option("--streams", 4),
        Option("--threads", 16, "cores that everything may use"),
    )
    main(run, page, *options, holds=lambda found: any(map(meets, found.rows[2:])))
