"""Measure decoding time on one core, of a DETR's queries and of a YOLO's cells, by the number of objects.

Only objects have scores above the default threshold. Their boxes are random.
"""

import time

import numpy as np
from frame import Blocks, Document, Given, Option, Result, head, main, table

from edgekd.core.detection.decode import decode
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import NO_GRID, DetectorSpec, Head, Preprocess

SEED = 0
SIDE = 640
CASES = (("DETR, 300 x 91", 300, 91, 0.3), ("YOLO, 8400 x 84", 8400, 80, 1.0))
"""Name, number of candidates, number of classes, and the limit in milliseconds."""
OBJECTS = (0, 20, 100)


def output_of(candidates: int, classes: int, objects: int) -> np.ndarray:
    """Return an output of the kind `yolo`, float32 [1, 4 + classes, candidates]."""
    rng = np.random.default_rng(SEED)
    output = rng.uniform(0, 0.02, (1, 4 + classes, candidates)).astype(np.float32)
    output[0, :2] = rng.uniform(50, SIDE - 50, (2, candidates))
    output[0, 2:4] = rng.uniform(10, 100, (2, candidates))
    found = rng.choice(candidates, objects, replace=False)
    output[0, 4 + rng.integers(0, classes, objects), found] = rng.uniform(0.3, 0.95, objects)
    return output


def times_ms(candidates: int, classes: int, objects: int, repeats: int) -> np.ndarray:
    """Return the milliseconds of each of `repeats` decodings of a frame of 1280 x 720 pixels."""
    names, preprocess = tuple(map(str, range(classes))), Preprocess(SIDE, SIDE)
    nms = candidates > 300
    spec = DetectorSpec(names, preprocess, Head("yolo", nms=nms, strides=(8, 16, 32) if nms else NO_GRID))
    output, placement = output_of(candidates, classes, objects), place(1280, 720, preprocess)
    taken = np.empty(repeats)
    for index in range(repeats):
        began = time.perf_counter()
        decode(output, spec, placement)
        taken[index] = (time.perf_counter() - began) * 1000
    return taken


def run(given: Given) -> Result:
    rows = []
    for name, candidates, classes, limit in CASES:
        for objects in OBJECTS:
            p10, p50 = np.percentile(times_ms(candidates, classes, objects, given.repeats), (10, 50)).round(4).tolist()
            rows.append({"output": name, "objects": objects, "p10_ms": p10, "p50_ms": p50, "limit_ms": limit})
    return {"seed": SEED, "rows": rows}


def page(found: Document) -> Blocks:
    yield from head("Decoding of an output on one core", found)
    yield (
        "From the output of the network to detections in pixels of the frame, by the decoder that host and camera "
        f"share: threshold, suppression for the YOLO, placement; {found.repeats} times each."
    )
    yield table(
        "output | objects | ms, median | ms, 10th percentile | limit",
        (f"{row.output} | {row.objects} | {row.p50_ms:.3f} | {row.p10_ms:.3f} | {row.limit_ms}" for row in found.rows),
    )


def within(found: Document) -> bool:
    return all(row.p50_ms <= row.limit_ms for row in found.rows)


if __name__ == "__main__":
    main(run, page, Option("--repeats", 500), holds=within, cores=1)
