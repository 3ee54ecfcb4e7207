"""A large detector and lighter ones on an x86 GPU, each in its best precision: frames a second, and energy of a frame.

Every graph runs as it is and with float16 in place of float32. Each is measured in turns with the large detector in
float16, by the protocol of `edgekd bench`. A GPU stands in for a device: its ratios are its own. A network by the name
of Ultralytics' YAML has random weights, which changes neither nodes nor shapes: it tells the speed, not more.

    python bench/stand_in.py [--before yolo11x.yaml] [--after FILE ...] [--engine onnxruntime-cuda] [--seconds S]

The environment needs `edgekd[train,gpu]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import RESULTS, conditions, conditions_lines, table, use_cores, without_folders, write_results

from edgekd.commands import bench
from edgekd.core.errors import DeviceError
from edgekd.core.progress import PlainProgress
from edgekd.deploy.artifact import opened
from edgekd.deploy.devices.local import LocalDevice
from edgekd.graph.fp16 import half
from edgekd.graph.runtimes import engine_named

AS_IS, HALVED = "as it is", "float16"
GOALS = {"times as fast": 89 / 12, "share of the energy": 0.4}


def artifact_of(name: str, folder: Path) -> Path:
    """What `opened` takes: the file, or a checkpoint with random weights."""
    if not name.endswith(".yaml"):
        return Path(name)
    from ultralytics import YOLO

    made = folder / f"{Path(name).stem}.pt"
    YOLO(name).save(made)
    return made


def graphs_of(name: str, folder: Path, stack: ExitStack) -> dict[str, Path]:
    """The artifact's graph as it is, and with float16 in place of float32."""
    graph, _ = stack.enter_context(opened(artifact_of(name, folder), None, (), trust_checkpoint=False))
    halved = folder / f"{Path(name).stem}-float16.onnx"
    half(graph, halved)
    return {AS_IS: graph, HALVED: halved}


def row_of(name: str, precision: str, graph: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of one side of a measurement."""
    kept = ("fps", "engine_fps", "refused", "engine_ms", "total_ms", "throughput", "energy", "conditions")
    found = {key: told[key] for key in kept if key in told}
    return {"artifact": Path(name).name, "precision": precision, "bytes": graph.stat().st_size, **found}


def rows_of(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each graph; the first is the large detector in float16, with which all others take turns.

    A graph that the engine cannot load is a row with an `error`.
    """
    progress = PlainProgress(sys.stderr)
    with ExitStack() as stack:
        large = graphs_of(given.before, folder, stack)
        graphs = [(given.before, AS_IS, large[AS_IS])]
        for name in given.after:
            graphs += [(name, precision, graph) for precision, graph in graphs_of(name, folder, stack).items()]
        rows: list[dict[str, Any]] = []
        for name, precision, graph in graphs:
            progress.note(f"{name} {precision}")
            job = bench.BenchJob(
                artifact=graph,
                device=LocalDevice(engine_named(given.engine)),
                against=large[HALVED],
                frames=given.frames,
                iterations=given.iterations,
                seconds=given.seconds,
                streams=given.streams,
            )
            try:
                told = bench.run(job, progress).document
            except DeviceError as error:
                said = without_folders(str(error), folder)[:300]
                rows.append({"artifact": Path(name).name, "precision": precision, "error": said})
                continue
            if all("error" in row for row in rows):
                rows.append(row_of(given.before, HALVED, large[HALVED], told["against"]))
            rows.append({**row_of(name, precision, graph, told), **compared(told)})
    return rows


def compared(told: Mapping[str, Any]) -> dict[str, Any]:
    """A graph beside the large detector: both were measured in turns."""
    ours, theirs = told["energy"], told["against"]["energy"]
    share = {kind: ours[kind] / theirs[kind] for kind in ("gross_mj", "net_mj")} if ours and theirs else None
    ratios = {key: told["against"][key] for key in ("times_as_fast", "engine_times_as_fast")}
    return {**ratios, "energy_share": share}


def failed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be measured, and why, for the foot of a table."""
    return [f"- {row['artifact']}, {row['precision']}: {row['error']}" for row in rows if "error" in row]


def cell(value: float | None, form: str) -> str:
    """A figure, or a dash where it was refused or cannot be read."""
    return "-" if value is None else format(value, form)


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    cells = []
    rows = [row for row in found["rows"] if "error" not in row]
    for row in rows:
        ratio, share, energy = row.get("engine_times_as_fast"), row.get("energy_share"), row["energy"]
        low, high = ratio["interval"] if ratio else (1.0, 1.0)
        throughput = row["throughput"]["fps"] if row["throughput"] else None
        cells.append(
            [
                row["artifact"],
                row["precision"],
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['engine_ms']['p50']:.3f}",
                cell(row["engine_fps"], ".1f"),
                cell(row["fps"], ".1f"),
                cell(throughput, ".1f"),
                f"{ratio['ratio']:.2f} ({low:.2f} to {high:.2f})" if ratio else "1",
                f"{row['times_as_fast']['ratio']:.2f}" if ratio else "1",
                cell(energy["gross_mj"] if energy else None, ".1f"),
                cell(share["gross_mj"] if share else (1.0 if not ratio and energy else None), ".2f"),
            ]
        )
    refused = [f"- {row['artifact']}, {row['precision']}: {why}" for row in rows for why in row["refused"]]
    refused += failed(found["rows"])
    header = ["", "precision", "MB of ONNX", "engine p50, ms", "engine FPS", "camera FPS", "FPS of all streams"]
    header += ["engine: times as fast", "camera: times as fast", "mJ a frame", "share of its energy"]
    return [
        "# On a GPU that stands in for a device",
        "",
        f"`{found['command']}`",
        "",
        f"{found['engine']}. Beside {found['rows'][0]['artifact']} in float16, measured in turns with each. Camera: "
        "from the frame to detections. Energy: gross, of the GPU. What is aimed at: "
        + ", ".join(f"{name} {value:.2g}" for name, value in GOALS.items())
        + ".",
        "",
        *table(header, cells),
        *(["", *refused] if refused else []),
        "",
        f"GPU: {', '.join(gpu['name'] for gpu in found['host']['gpus']) or 'none'}.",
        "",
        *conditions_lines(found),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where a lighter detector meets both goals, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="yolo11x.yaml", help="the large detector")
    parser.add_argument("--after", nargs="+", default=["yolo11n.yaml", "yolo11s.yaml", "yolo11m.yaml"])
    parser.add_argument("--engine", default="onnxruntime-cuda")
    parser.add_argument("--frames", type=Path, help="images, decoded from JPEG; default: noise")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--threads", type=int, default=16, help="cores that everything may use")
    parser.add_argument("--out", type=Path, default=RESULTS / "stand_in.json")
    given = parser.parse_args(arguments)
    use_cores(given.threads)
    names = " ".join(Path(name).name for name in given.after)
    command = f"python bench/stand_in.py --before {Path(given.before).name} --after {names} --engine {given.engine}"
    found: dict[str, Any] = {
        "command": f"{command} --iterations {given.iterations} --seconds {given.seconds:g} --streams {given.streams}",
        "engine": given.engine,
        "basis": "stand-in",
        **conditions(given.threads),
    }
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        found["rows"] = rows_of(given, Path(folder))
    write_results(given.out, found, page(found))
    return 0 if any(map(meets, found["rows"][2:])) else 1


def meets(row: Mapping[str, Any]) -> bool:
    """Whether a row reaches both goals."""
    if "error" in row:
        return False
    fast = row["engine_times_as_fast"]["ratio"] >= GOALS["times as fast"]
    return fast and bool(row["energy_share"]) and row["energy_share"]["gross_mj"] <= GOALS["share of the energy"]


if __name__ == "__main__":
    sys.exit(main())
