"""Measure the memory of calibration by the number of images. Needs `edgekd[train]`."""

import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from common import detector_in, exported, peak_bytes, quantize_step, split_of
from frame import Blocks, Document, Given, Option, Result, done_in_process, head, main, table, yes

from edgekd.compress.quantization.mixed_precision import choices
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image

SETS = ("coco256", "ppe")
MOST_BYTES = 4 << 30  # goal: peak memory for 2,000 images


def frames(shared: Path, preprocess: Preprocess) -> Iterator[np.ndarray]:
    """Yield training images as frames float32 [1, 3, h, w], then their mirrored copies, and so on, endlessly."""
    samples = [sample for name in SETS for sample in split_of(shared, name, "train").samples]
    for turn in count():
        for sample in samples:
            image = read_image(sample.image)
            yield letterbox(np.ascontiguousarray(image[:, ::-1]) if turn % 2 else image, preprocess)[0]


def measure(recipe: str, images: int, graph: str, shared: str) -> Result:
    """Quantize in this process. Return peak memory and wall time."""
    source, step = detector_in(Path(graph)), quantize_step(recipe)
    # Every layer in the format whose calibration needs the most memory.
    plan = {name: forms[-1] for name, forms in choices(source.graph).items()} if step.planned else None
    calibration = islice(frames(Path(shared), source.spec.preprocess), images)
    began = time.perf_counter()
    source.quantized(source.graph.with_suffix(".int8.onnx"), calibration, step, plan)
    return {"recipe": recipe, "images": images, "peak_bytes": peak_bytes(), "seconds": time.perf_counter() - began}


def run(given: Given) -> Result:
    graph = given.scratch / "float32.onnx"
    classes = load_dataset(given.shared / "data" / SETS[0]).classes
    exported(given.shared / "models" / given.model, graph, classes=classes)
    rows = [
        done_in_process(measure, graph=graph, shared=given.shared.absolute(), recipe=recipe, images=images)
        for recipe in ("ptq", "mixed")
        for images in given.images
    ]
    return {"rows": rows, "holds": max(row["peak_bytes"] for row in rows) <= MOST_BYTES}


def page(found: Document) -> Blocks:
    yield from head("Memory of calibration", found)
    yield """\
Each row quantizes the same float graph in a process of its own, from images that are decoded one at a time: the
training images of coco256 and ppe, and mirrored copies where more are needed. `mixed`: every layer in the
form that takes the most to decide, fp4x where it can be."""
    yield table(
        "recipe | images | peak, GiB | seconds",
        (f"{row.recipe} | {row.images} | {row.peak_bytes / 2**30:.2f} | {row.seconds:.1f}" for row in found.rows),
    )
    yield f"At most {MOST_BYTES >> 30} GiB: {yes(found.holds, '**no**')}."


if __name__ == "__main__":
    options = (Option("--model", "yolo11n.pt"), Option("--images", [128, 2000]))
    main(run, page, *options, holds=lambda found: bool(found.holds))
