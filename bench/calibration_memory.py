"""Measure the memory that calibration takes, by the number of images. Needs `edgekd[train]`."""

import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from common import export_to, peak_bytes, split_of
from frame import SHARED_FOLDER, Blocks, Document, Given, Option, Result, done_in_process, head, main, table, yes

from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image

SETS = ("coco256", "ppe")
MOST_BYTES = 4 << 30
"""What 2,000 images may take."""


def frames(shared: Path, preprocess: Preprocess) -> Iterator[np.ndarray]:
    """Yield training images as frames float32 [1, 3, h, w], then their mirrored copies, and so on without end."""
    samples = [sample for name in SETS for sample in split_of(shared, name, "train").samples]
    for turn in count():
        for sample in samples:
            image = read_image(sample.image)
            yield letterbox(np.ascontiguousarray(image[:, ::-1]) if turn % 2 else image, preprocess)[0]


def measure(recipe: str, images: int, graph: str, shared: str) -> Result:
    """Quantize in this process; peak memory and wall time of it."""
    from edgekd.builds.recipe import load_recipe
    from edgekd.compress.quantization.mixed_precision import choices
    from edgekd.compress.quantization.quantize import quantize
    from edgekd.compress.steps import Quantize
    from edgekd.compress.weight_formats import Form
    from edgekd.detectors.onnx import describe
    from edgekd.graph.view import load_graph

    source = Path(graph)
    spec = describe(load_graph(source), source)
    (step,) = load_recipe(recipe).steps
    assert isinstance(step, Quantize)
    plan: dict[str, Form] | None = None
    if step.planned:  # every layer in the form that takes the most to decide
        plan = {name: forms[-1] for name, forms in choices(source).items()}
    calibration, out = islice(frames(Path(shared), spec.preprocess), images), source.with_suffix(".int8.onnx")
    began = time.perf_counter()
    quantize(source, out, calibration, step, plan)
    return {"recipe": recipe, "images": images, "peak_bytes": peak_bytes(), "seconds": time.perf_counter() - began}


def run(given: Given) -> Result:
    graph = given.scratch / "float32.onnx"
    classes = load_dataset(given.shared / "data" / SETS[0]).classes
    export_to(given.shared / "models" / given.model, graph, classes=classes)
    job = {"do": "measure", "graph": graph, "shared": given.shared.absolute()}
    rows = [
        done_in_process(__file__, **job, recipe=recipe, images=images)
        for recipe in ("ptq", "mixed")
        for images in given.images
    ]
    return {"rows": rows, "holds": max(row["peak_bytes"] for row in rows) <= MOST_BYTES}


def page(found: Document) -> Blocks:
    yield from head("Memory of calibration", found)
    yield """\
Each row quantizes the same float graph in a process of its own, from images that are decoded one at a time: the
training images of coco256 and ppe, and mirrored copies where more are asked for. `mixed`: every layer in the
form that takes the most to decide, fp4x where it can be."""
    yield table(
        "recipe | images | peak, GiB | seconds",
        (f"{row.recipe} | {row.images} | {row.peak_bytes / 2**30:.2f} | {row.seconds:.1f}" for row in found.rows),
    )
    yield f"At most {MOST_BYTES >> 30} GiB: {yes(found.holds, '**no**')}."


OPTIONS = (SHARED_FOLDER, Option("--model", "yolo11n.pt"), Option("--images", [128, 2000]))


if __name__ == "__main__":
    jobs = {"measure": measure}
    main(__file__, __doc__, run, page, options=OPTIONS, holds=lambda found: bool(found.holds), jobs=jobs)
