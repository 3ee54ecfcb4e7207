"""Whether TensorRT for RTX compiles what edgekd ships: networks, precisions and GPU generations in all combinations.

Each network is exported, quantized, brought into float16 where it is not quantized, packed and expanded again, as
`edgekd build` does it, and compiled on the CPU for one compute capability at a time. Nothing runs: no GPU is needed. A
network of which there is no checkpoint has random weights, which changes neither nodes nor shapes.

    python bench/compile_matrix.py [--networks NAME ...] [--compute-capabilities SM86 SM89 SM120]

Rows of other networks that are in `--out` already stay there: a large network may be a run of its own.

The environment needs `edgekd[train,rtx]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.builds.recipe import Quantize
from edgekd.compress.quantization.quantize import quantize
from edgekd.core.detection.preprocess import letterbox, to_tensor
from edgekd.core.errors import DeviceError
from edgekd.core.formats.packed_graph import pack, unpack
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.graph.fp16 import half
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead

NETWORKS = ("yolo11n", "yolo11s", "yolo11x", "yolo26n", "yolov8n", "yolox_nano")
PRECISIONS = ("fp16", "int8", "int8+fp4x")
COMPUTE_CAPABILITIES = ("SM86", "SM89", "SM120")
OPSET, FRAMES = 17, 8
RANDOM = "random"


def detector_of(network: str, folder: Path) -> tuple[Path, str]:
    """A checkpoint, or an ONNX file, and where its weights are from."""
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
    """The graph that ships in each precision."""
    plain, int8 = folder / "float.onnx", folder / "int8.onnx"
    spec = export(load(detector), plain, OPSET).spec
    samples = load_dataset(SHARED / "data" / "coco256").split("train").samples[:FRAMES]
    how = spec.preprocess
    frames = [to_tensor(letterbox(read_image(sample.image), how)[0][0].transpose(1, 2, 0), how) for sample in samples]
    done = quantize(plain, int8, frames, Quantize())
    forms = {name: "fp4x" if form == "int8" else form for name, form in done.forms.items()}
    quantize(plain, folder / "int8+fp4x.onnx", frames, Quantize(), forms)
    plain.rename(folder / "fp16.onnx")
    for precision in PRECISIONS:
        graph = folder / f"{precision}.onnx"
        half(graph, graph)
        graph.write_bytes(unpack(pack(graph.read_bytes())))
        yield precision, graph


def rows_of(network: str, capabilities: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each engine of a network."""
    detector, weights = detector_of(network, folder)
    for precision, graph in graphs_of(detector, folder):
        for sm in capabilities:
            row = {"network": network, "weights": weights, "precision": precision, "sm": sm}
            try:
                made = compile_ahead(graph, [sm], folder / "engine")
                row |= {"seconds": round(made.seconds, 2), "bytes": made.bytes, "said": sorted(set(made.log))}
            except DeviceError as error:
                row |= {"refused": str(error)}
            print(f"{network} {precision} {sm}: {row.get('refused') or 'compiled'}", file=sys.stderr)
            yield {**row, "packed_bytes": len(pack(graph.read_bytes()))}


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = found["rows"]
    capabilities = list(dict.fromkeys(row["sm"] for row in rows))
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["precision"]), []).append(row)
    lines = [
        [network, each[0]["weights"], precision, f"{each[0]['packed_bytes'] / 1e6:.2f}", *map(_cell, each)]
        for (network, precision), each in cells.items()
    ]
    accepted = sum("refused" not in row for row in rows)
    refusals = [
        f"{row['network']} {row['precision']} {row['sm']}: {row['refused']}" for row in rows if "refused" in row
    ]
    return [
        "# What TensorRT for RTX compiles of what edgekd ships",
        "",
        f"`{found['command']}`",
        "",
        f"{accepted} of {len(rows)} engines were made. MB of the engine (seconds it took), by compute capability;",
        "packed: MB of the graph in the bundle. Compiled on the CPU, one engine at a time; none was run. An engine",
        "holds kernels, too.",
        "",
        *table(["network", "weights", "precision", "packed", *capabilities], lines),
        *([""] + [f"- {each}" for each in refusals] if refusals else []),
        "",
        *conditions_lines(found),
    ]


def _cell(row: Mapping[str, Any]) -> str:
    return "**refused**" if "refused" in row else f"{row['bytes'] / 1e6:.1f} ({row['seconds']:.1f})"


def main() -> int:
    """0 where everything was compiled; else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--compute-capabilities", nargs="+", default=COMPUTE_CAPABILITIES, metavar="SM")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--out", type=Path, default=RESULTS / "compile_matrix.json")
    given = parser.parse_args()
    use_cores(given.threads)
    rows = [row for row in earlier(given.out) if row["network"] not in given.networks]
    for network in given.networks:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            rows += rows_of(network, list(given.compute_capabilities), Path(folder))
        rows.sort(key=lambda row: NETWORKS.index(row["network"]))
        found = {
            "question": "does TensorRT for RTX compile what edgekd ships?",
            "command": "python bench/compile_matrix.py",
            "tensorrt_rtx": TENSORRT_RTX.version(),
            "rows": rows,
            **conditions(given.threads),
        }
        write_results(given.out, found, page(found))
    return 1 if any("refused" in row for row in rows) else 0


def earlier(out: Path) -> list[dict[str, Any]]:
    """The rows of a result that the same TensorRT has made."""
    found = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    rows: list[dict[str, Any]] = found["rows"] if found.get("tensorrt_rtx") == TENSORRT_RTX.version() else []
    return rows


if __name__ == "__main__":
    sys.exit(main())
