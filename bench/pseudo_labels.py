"""How right pseudo-labels are: what share of a teacher's labels on frames it has not seen is right, of how much asked.

A teacher's thresholds are found on images of the split that it was trained on, or on others, and then it labels a third
split, whose own labels are only used to judge it.

    python bench/pseudo_labels.py [--shared DIR] [--images N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.core.detection.types import Detections
from edgekd.data.dataset import load_dataset
from edgekd.data.images import ReadableImages
from edgekd.data.labelling import Find
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import LABELLING, Bands, find_bands, judged, pseudo_truth
from edgekd.data.types import Dataset
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.evaluation.evaluate import finder

MODEL, DATA = "yolo11n-ppe.pt", "ppe"
FOUND_ON = ("train", "val")
LABELLED = "test"
KEEP = (0.8, 0.9, 0.95)
IMAGES = 118
"""Of each split at most so many, in the order of their names: as many as `val` has."""


Seen = list[tuple[Detections, tuple[Truth, int, int]]]
"""Of each image what the teacher finds, and what is there, with width and height in pixels."""


def seen(find: Find, data: Dataset, name: str, images: int) -> Seen:
    """The first images of a split."""
    readable = ReadableImages(data.split(name).samples[:images])
    return [(find(image), (sample.truth, image.shape[1], image.shape[0])) for sample, image in readable]


def counts(new: Seen, bands: Bands, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class: objects that there are, labels, right ones among them, and boxes that are ignored."""
    rows = [{"class": name, "objects": 0, "labels": 0, "right": 0, "ignored": 0} for name in classes]
    for found, (truth, width, height) in new:
        ours = pseudo_truth(found, bands, width, height)
        single = ~ours.crowd
        kept = Detections(ours.boxes[single], np.ones(int(single.sum())), ours.classes[single])
        right = judged(kept, (truth, 1, 1), len(classes))
        for at, row in enumerate(rows):
            row["objects"] += int((truth.classes == at).sum())
            row["labels"] += int((kept.classes == at).sum())
            row["right"] += int(right[right[:, 0] == at, 2].sum())
            row["ignored"] += int((ours.classes[ours.crowd] == at).sum())
    return rows


def measure(find: Find, data: Dataset, images: int) -> list[dict[str, Any]]:
    """For each split that thresholds are found on, and each share that is asked for: what the labels are."""
    new = seen(find, data, LABELLED, images)
    rows = []
    for name in FOUND_ON:
        found, truths = zip(*seen(find, data, name, images), strict=True)
        for keep in KEEP:
            bands = find_bands(found, truths, len(data.classes), keep)
            classes = counts(new, bands, data.classes)
            rows.append({"found_on": name, "asked": keep, **asdict(bands), "classes": classes})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def page_of(found: dict[str, Any]) -> list[str]:
    """The result as Markdown."""
    lines = []
    for row in found["rows"]:
        everything = {"class": "all"} | {
            name: sum(each[name] for each in row["classes"]) for name in ("objects", "labels", "right", "ignored")
        }
        for each in (everything, *row["classes"]):
            share = f"{each['right'] / each['labels']:.3f}" if each["labels"] else "-"
            told = [str(each[name]) for name in ("objects", "labels", "right")]
            lines.append([row["found_on"], f"{row['asked']:.2f}", each["class"], *told, share, str(each["ignored"])])
    head = ["thresholds from", "asked", "class", "objects", "labels", "right", "share that is right", "ignored"]
    title = f"# Pseudo-labels of {MODEL} on the split `{LABELLED}` of {DATA}, {found['images']} images"
    return [title, "", f"`{found['command']}`", "", *table(head, lines), "", *conditions_lines(found)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--out", type=Path, default=RESULTS / "pseudo_labels.json")
    args = parser.parse_args()
    use_cores(2)
    found: dict[str, Any] = {"command": "python bench/pseudo_labels.py", **conditions(2)}
    data = load_dataset(args.shared / "data" / DATA)
    found["images"] = len(data.split(LABELLED).samples[: args.images])
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "teacher.onnx"
        spec = export(load(args.shared / "models" / MODEL), graph, 17).spec
        with finder(graph, spec, LABELLING) as find:
            found["rows"] = measure(find, data, args.images)
    write_results(args.out, found, page_of(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
