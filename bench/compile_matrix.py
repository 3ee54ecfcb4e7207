"""Compile edgekd's graphs with TensorRT for RTX: all combinations of networks, precisions and GPU generations.

Networks are compiled on the CPU, without a GPU. Rows of other networks in `--out` are kept. Needs `edgekd[train,rtx]`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import SHARED, exported, images_of, split_of
from frame import Blocks, Document, Given, Option, Result, head, main, note, table

from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.errors import DeviceError
from edgekd.core.formats.packed_graph import pack, unpack
from edgekd.graph.fp16 import half
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead

NETWORKS = ("yolo11n", "yolo11s", "yolo11x", "yolo26n", "yolov8n", "yolox_nano")
PRECISIONS = ("fp16", "int8", "int8+fp4x")
COMPUTE_CAPABILITIES = ("SM86", "SM89", "SM120")
FRAMES = 8
RANDOM = "random"


def detector_of(network: str, folder: Path) -> tuple[Path, str]:
    """Return a checkpoint or an ONNX file, and the origin of its weights."""
    models = SHARED / "models"
    for name in (f"{network}.pt", f"{network}.onnx"):
        if (models / name).is_file():
            return models / name, name
    unpacker, out = models / f"unpack_{network}_ppe.py", folder / f"{network}-ppe.pt"
    if unpacker.is_file():
        subprocess.run([sys.executable, unpacker, out], check=True, stdout=subprocess.DEVNULL)
        return out, out.name
    from ultralytics import YOLO

    YOLO(f"{network}.yaml").save(folder / f"{network}.pt")
    return folder / f"{network}.pt", RANDOM


def graphs_of(detector: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    plain = folder / "float.onnx"
    exact = exported(detector, plain)
    frames = list(exact.frames(images_of(split_of(SHARED, "coco256", "train"), FRAMES)))
    done = exact.quantized(folder / "int8.onnx", frames)
    forms: dict[str, WeightFormat] = {name: "fp4x" if form == "int8" else form for name, form in done.forms.items()}
    exact.quantized(folder / "int8+fp4x.onnx", frames, plan=forms)
    plain.rename(folder / "fp16.onnx")
    for precision in PRECISIONS:
        graph = folder / f"{precision}.onnx"
        half(graph, graph)
        graph.write_bytes(unpack(pack(graph.read_bytes())))
        yield precision, graph


def rows_of(network: str, capabilities: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    detector, weights = detector_of(network, folder)
    for precision, graph in graphs_of(detector, folder):
        for sm in capabilities:
            row = {"network": network, "weights": weights, "precision": precision, "sm": sm}
            try:
                made = compile_ahead(graph, [sm], folder / "engine")
                row |= {"seconds": round(made.seconds, 2), "bytes": made.bytes}
            except DeviceError as error:
                row |= {"refused": str(error)}
            note(f"{network} {precision} {sm}: {row.get('refused') or 'compiled'}")
            yield {**row, "packed_bytes": len(pack(graph.read_bytes()))}


def page(found: Document) -> Blocks:
    rows = found.rows
    refused = [row for row in rows if "refused" in row]
    yield from head("Compilation with TensorRT for RTX", found)
    yield f"""\
{len(rows) - len(refused)} of {len(rows)} engines were made. MB of the engine (seconds it took), by compute capability;
packed: MB of the graph in the bundle. Compiled on the CPU, one engine at a time; none was run. An engine
holds kernels, too."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        graph = f"{row.network} | {row.weights} | {row.precision} | {row.packed_bytes / 1e6:.2f}"
        engine = "**refused**" if "refused" in row else f"{row.bytes / 1e6:.1f} ({row.seconds:.1f})"
        cells.setdefault(graph, []).append(engine)
    capabilities = " | ".join(dict.fromkeys(row.sm for row in rows))
    lines = (" | ".join([graph, *engines]) for graph, engines in cells.items())
    yield table(f"network | weights | precision | packed | {capabilities}", lines)
    if refused:
        yield "\n".join(f"- {row.network} {row.precision} {row.sm}: {row.refused}" for row in refused)


def run(given: Given) -> Iterator[Result]:
    rows = [row for row in earlier(given.out) if row["network"] not in given.networks]
    for network in given.networks:
        folder = given.scratch / network
        folder.mkdir()
        rows += rows_of(network, given.compute_capabilities, folder)
        shutil.rmtree(folder)
        rows.sort(key=lambda row: NETWORKS.index(row["network"]))
        yield {"command": "python bench/compile_matrix.py", "tensorrt_rtx": TENSORRT_RTX.version(), "rows": rows}


def earlier(out: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier result of the same TensorRT version."""
    found = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    rows: list[dict[str, Any]] = found["rows"] if found.get("tensorrt_rtx") == TENSORRT_RTX.version() else []
    return rows


if __name__ == "__main__":
    options = (
        Option("--networks", NETWORKS, choices=NETWORKS),
        Option("--compute-capabilities", COMPUTE_CAPABILITIES, metavar="SM"),
    )
    main(run, page, *options, holds=lambda found: not any("refused" in row for row in found.rows))
