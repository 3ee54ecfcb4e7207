"""Measure the precision of a teacher's labels on unseen frames, for several precision goals.

Thresholds come from the split that the teacher was trained on, or from another. Labels of a third split are used only
to score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
from common import exported
from frame import Blocks, Document, Given, Option, Result, head, main, note, table

from edgekd.core.detection.types import Detections
from edgekd.data.dataset import load_dataset
from edgekd.data.images import ReadableImages
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import LABELLING, ClassThresholds, Find, find_thresholds, match, pseudo_truth
from edgekd.data.types import Dataset
from edgekd.evaluation.evaluate import finder

MODEL, DATA = "yolo11n-ppe.pt", "ppe"
FOUND_ON = ("train", "val")
LABELLED = "test"
KEEP = (0.8, 0.9, 0.95)
IMAGES = 118  # at most so many of each split, by name: the size of `val`


COUNTED = ("objects", "labels", "right", "ignored")

Seen = list[tuple[Detections, tuple[Truth, int, int]]]
"""For each image: the teacher's detections, and the ground truth with the image's width and height in pixels."""


def seen(find: Find, data: Dataset, name: str, images: int) -> Seen:
    readable = ReadableImages(data.split(name).samples[:images])
    return [(find(image), (sample.truth, image.shape[1], image.shape[0])) for sample, image in readable]


def counts(new: Seen, thresholds: ClassThresholds, classes: Sequence[str]) -> list[Result]:
    """Return for each class the numbers of objects, of labels, of right labels, and of ignored boxes."""
    rows = [{"class": name, **dict.fromkeys(COUNTED, 0)} for name in classes]
    for found, (truth, width, height) in new:
        ours = pseudo_truth(found, thresholds, width, height)
        single = ~ours.crowd
        kept = Detections(ours.boxes[single], np.ones(int(single.sum())), ours.classes[single])
        right = match(kept, (truth, 1, 1), len(classes))
        of_class = (truth.classes, kept.classes, right[right[:, 2] > 0, 0], ours.classes[ours.crowd])
        for index, row in enumerate(rows):
            for name, found_classes in zip(COUNTED, of_class, strict=True):
                row[name] += int((found_classes == index).sum())
    return rows


def measure(find: Find, data: Dataset, images: int) -> Iterator[Result]:
    """Yield a row for each split of FOUND_ON and each precision goal of KEEP."""
    new = seen(find, data, LABELLED, images)
    for name in FOUND_ON:
        found, truths = zip(*seen(find, data, name, images), strict=True)
        for keep in KEEP:
            thresholds = find_thresholds(found, truths, len(data.classes), keep)
            row = {
                "found_on": name,
                "asked": keep,
                **asdict(thresholds),
                "classes": counts(new, thresholds, data.classes),
            }
            note(row)
            yield row


def page(found: Document) -> Blocks:
    yield from head(f"Pseudo-labels of {MODEL} on the split `{LABELLED}` of {DATA}, {found.images} images", found)
    lines = []
    for row in found.rows:
        total = Document({"class": "all"}, **{name: sum(each[name] for each in row.classes) for name in COUNTED})
        for each in (total, *row.classes):
            share = f"{each.right / each.labels:.3f}" if each.labels else "-"
            start = f"{row.found_on} | {row.asked:.2f} | {each['class']} | {each.objects}"
            lines.append(f"{start} | {each.labels} | {each.right} | {share} | {each.ignored}")
    yield table("thresholds from | goal | class | objects | labels | right | share that is right | ignored", lines)


def run(given: Given) -> Result:
    data = load_dataset(given.shared / "data" / DATA)
    detector = exported(given.shared / "models" / MODEL, given.scratch / "teacher.onnx")
    with finder(detector.graph, detector.spec, LABELLING) as find:
        rows = list(measure(find, data, given.images))
    return {"images": len(data.split(LABELLED).samples[: given.images]), "rows": rows}


if __name__ == "__main__":
    main(run, page, Option("--images", IMAGES), cores=2)
