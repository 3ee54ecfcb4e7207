"""How much memory calibration takes, and how it grows with the number of images.

Each row quantizes the same float graph in a process of its own, from images that are decoded one at a time: the
training images of both data sets, and mirrored copies of them where more are asked for.

    python bench/calibration_memory.py [--model M] [--images 128 2000]

The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image

SETS = ("coco256", "ppe")
OPSET = 17
MOST_BYTES = 4 << 30
"""What 2,000 images may take."""


@dataclass(frozen=True)
class Row:
    """recipe; images: calibrated on; peak_bytes: largest resident memory of the process; seconds: wall time."""

    recipe: str
    images: int
    peak_bytes: int
    seconds: float


def frames(shared: Path, preprocess: Preprocess) -> Iterator[np.ndarray]:
    """Training images as frames float32 [1, 3, h, w], then their mirrored copies, and so on without end."""
    samples = [sample for name in SETS for sample in load_dataset(shared / "data" / name).split("train").samples]
    for turn in count():
        for sample in samples:
            image = read_image(sample.image)
            yield letterbox(np.ascontiguousarray(image[:, ::-1]) if turn % 2 else image, preprocess)[0]


def measure(recipe: str, images: int, graph: str, shared: str) -> dict[str, Any]:
    """Quantize in this process; what it took."""
    from edgekd.builds.recipe import Quantize, load_recipe
    from edgekd.compress.quantization.mixed_precision import choices
    from edgekd.compress.quantization.quantize import quantize
    from edgekd.compress.weight_formats import Form
    from edgekd.detectors.onnx import describe
    from edgekd.graph.view import load_graph

    sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
    from adapter import peak_bytes

    source = Path(graph)
    spec = describe(load_graph(source), source)
    (step,) = load_recipe(recipe).steps
    assert isinstance(step, Quantize)
    plan: dict[str, Form] | None = None
    if step.planned:  # every layer in the form that takes the most to decide
        plan = {name: forms[-1] for name, forms in choices(source).items()}
    began = time.perf_counter()
    quantize(
        source, source.with_suffix(".int8.onnx"), islice(frames(Path(shared), spec.preprocess), images), step, plan
    )
    return {"recipe": recipe, "images": images, "peak_bytes": peak_bytes(), "seconds": time.perf_counter() - began}


def rows(given: argparse.Namespace, folder: Path) -> list[Row]:
    """One for each recipe and number of images."""
    from edgekd.detectors import load
    from edgekd.detectors.export import export

    graph = folder / "float32.onnx"
    classes = load_dataset(given.shared / "data" / SETS[0]).classes
    export(load(given.shared / "models" / given.model, classes=classes), graph, OPSET)
    found = []
    for recipe in ("ptq", "mixed"):
        for images in given.images:
            job = {"recipe": recipe, "images": images, "graph": str(graph), "shared": str(given.shared.absolute())}
            command = [sys.executable, str(Path(__file__).resolve()), "--do", json.dumps(job)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(Row(**json.loads(done.stdout.splitlines()[-1])))
    return found


def main() -> int:
    """0 when the most images kept the limit, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/")
    parser.add_argument("--model", default="yolo11n.pt")
    parser.add_argument("--images", type=int, nargs="+", default=[128, 2000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration_memory.json")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own is to do
    given = parser.parse_args()
    if given.do:
        print("\n" + json.dumps(measure(**given.do)))
        return 0
    use_cores(given.threads)
    asked = f"--model {given.model} --images {' '.join(map(str, given.images))}"
    found = {"command": f"python bench/calibration_memory.py {asked}", **conditions(given.threads)}
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
        measured = rows(given, Path(folder))
    found["rows"] = [asdict(row) for row in measured]
    found["holds"] = max(row.peak_bytes for row in measured) <= MOST_BYTES
    cells = [[row.recipe, str(row.images), f"{row.peak_bytes / 2**30:.2f}", f"{row.seconds:.1f}"] for row in measured]
    limit = f"At most {MOST_BYTES >> 30} GiB: {'yes' if found['holds'] else '**no**'}."
    page = ["# Memory of calibration", "", f"`{found['command']}`", "", *_ABOUT, ""]
    page += [*table(["recipe", "images", "peak, GiB", "seconds"], cells), "", limit, "", *conditions_lines(found)]
    write_results(given.out, found, page)
    return 0 if found["holds"] else 1


_ABOUT = (
    "Each row quantizes the same float graph in a process of its own, from images that are decoded one at a time: the",
    "training images of coco256 and ppe, and mirrored copies where more are asked for. `mixed`: every layer in the",
    "form that takes the most to decide, fp4x where it can be.",
)

if __name__ == "__main__":
    sys.exit(main())
