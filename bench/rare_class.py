"""Measure the gain of text prompts and of repeated images for a class with few labelled objects.

The class is the data set's last one. It is frequent, so that its score is reliable. A detector is trained on images
without the class, so that no object of it is unlabelled. Then the class is added: every arm of a seed trains that
detector on the same few images without the class, and on images with a given number of its objects, all labelled. The
seed determines the images. Needs `edgekd[train,text]`.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import frame
import numpy as np
import training
import yaml
from common import SHARED
from distillation_levels import CONFIDENCE, gains, train_job, verdicts
from frame import Blocks, Document, Given, Job, Option, Result
from training import SEEDS, Trainings, Way

from edgekd.compress.distillation import text
from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Sample
from edgekd.evaluation.coco import Score, mean_known

BASE, START = "trained on images without the class", "the class added"
LABELS, WORDS, REPEATED = "labels", "labels and words", "labels, rare ones repeated"
ON_LABELS = Distill(stages=(DistillStage("labels", 1.0, Weights()),), teacher="live", mosaic=0.0)
TEXT = 0.3  # weight of the text loss: norm of its gradient at the neck relative to that of the labels
REPEAT = 0.5  # images of classes that occur in a smaller share of the images are repeated
PROMPTS = {
    "helmet": ("safety helmet", "hard hat"),
    "no-helmet": ("bare head of a worker", "person with uncovered hair"),
    "vest": ("high-visibility safety vest",),
    "no-vest": ("worker in ordinary clothes", "person in a plain shirt"),
}
"""Prompts for classes that are named by what is missing, and for their opposites."""


def arms(classes: Sequence[str]) -> dict[str, Distill]:
    """Return the steps that are compared, by name."""
    prompts = {name: PROMPTS[name] for name in classes if name in PROMPTS}
    return {
        LABELS: ON_LABELS,
        WORDS: replace(ON_LABELS, text=TEXT, prompts=prompts),
        REPEATED: replace(ON_LABELS, repeat=REPEAT),
    }


class Bench(Trainings):
    """A detector without the class, and trainings with few objects of it.

    Numbers of a row: objects: labelled objects of the class; holding: images that hold them; updates: weight updates;
    cpu_seconds: CPU time of the training, all threads; new, others: mAP50-95 of the class and of the others, by split.
    """

    asked = ("others", "base_epochs", "epochs", "batch", "image_size")
    numbers = ("objects", "holding", "parameters", "updates", "cpu_seconds")
    required = BASE

    def ways(self) -> Iterator[Way]:
        yield BASE, None, self._base
        yield START, None, self._start
        for objects in self.given.objects:
            for seed in self.given.seeds:
                for arm, step in arms(self.scored.classes).items():
                    yield f"{arm}, {objects}", seed, partial(self._trained, arm, step, objects, seed)

    def job(self, name: str, job: Job, environment: str = "edgekd", **arguments: Any) -> dict[str, Any]:
        """Run a job in this process and return its result: imports would take as long as a training."""
        os.environ.update(self.environment)
        self.packages[environment] = frame.installed()
        self.progress.note(f"{name}: running ...")
        arguments |= {"device": self.given.device, "threads": self.given.threads}
        return dict(job(**json.loads(json.dumps(arguments, default=str))))

    def _base(self) -> Document:
        without = [sample for sample in self._samples() if not self._count(sample)]
        data = self._listed("base", without, self.scored.classes[:-1])
        step = replace(ON_LABELS, student=str(self.given.model), epochs=self.given.base_epochs)
        return self.row(BASE, **self._train("base", step, self.given.model, data))

    def _start(self) -> Document:
        step = replace(ON_LABELS, student=str(self.given.work / "base.pt"), image_size=self.given.image_size)
        out = self.given.work / "start.pt"
        self.job("start", start_job, step=training.step_table(step), out=out, data=self.data)
        return self.with_scores(self.row(START, objects=0), out.with_suffix(".onnx"))

    def _trained(self, arm: str, step: Distill, objects: int, seed: int) -> Document:
        name = f"{'-'.join(arm.replace(',', '').split())}-{objects}-{seed}"
        holding, others = self._chosen(objects, seed)
        data = self._listed(f"{objects}-{seed}", [*others, *holding], self.scored.classes)
        start = self.given.work / "start.pt"
        step = replace(step, student=str(start), epochs=self.given.epochs, seed=seed)
        took = self._train(name, step, start, data)
        row = self.row(f"{arm}, {objects}", seed, arm=arm, objects=objects, holding=len(holding), **took)
        return self.with_scores(row, self.given.work / f"{name}.onnx")

    def _train(self, name: str, step: Distill, teacher: Path, data: Path) -> dict[str, Any]:
        step = replace(step, batch=self.given.batch, image_size=self.given.image_size)
        out, state = (self.given.work / f"{name}{suffix}" for suffix in (".pt", ".training"))
        files = {"teacher": teacher, "out": out, "data": data, "state": state}
        return self.job(name, train_job, step=training.step_table(step), **files)

    def _listed(self, name: str, samples: Sequence[Sample], classes: Sequence[str]) -> Path:
        """Write a data set whose training split is a list of images. Return the path of its YAML."""
        images, file = (self.given.work / f"{name}{suffix}" for suffix in (".txt", ".yaml"))
        images.write_text("".join(f"{sample.image}\n" for sample in samples), "utf-8")
        file.write_text(yaml.safe_dump({"train": str(images), "names": list(classes)}), "utf-8")
        return file

    def _samples(self) -> Sequence[Sample]:
        return load_dataset(self.data).split("train").samples

    def _count(self, sample: Sample) -> int:
        """Return the number of objects of the class in an image."""
        return int((sample.truth.classes == len(self.scored.classes) - 1).sum())

    def _chosen(self, objects: int, seed: int) -> tuple[list[Sample], list[Sample]]:
        """Return images that together hold up to `objects` of the class, and images without it."""
        samples = self._samples()
        shuffled = [samples[index] for index in np.random.default_rng(seed).permutation(len(samples))]
        holding: list[Sample] = []
        for sample in shuffled:
            left = objects - sum(map(self._count, holding))
            if 0 < self._count(sample) <= left:
                holding.append(sample)
        return holding, [sample for sample in shuffled if not self._count(sample)][: self.given.others]

    def notes_of(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        *others, new = self.scored.classes
        per_class = {split: one.per_class for split, one in scores.items()}
        return {
            **super().notes_of(scores),
            "new": {split: rows[new].map50_95 for split, rows in per_class.items()},
            "others": {
                split: mean_known([rows[name].map50_95 for name in others]) for split, rows in per_class.items()
            },
        }

    def result(self) -> dict[str, Any]:
        return {"new_class": self.scored.classes[-1]}


def run(given: Given) -> Iterator[Result]:
    text.minilm = cache(text.minilm)  # loading it takes as long as a training
    return Bench(given).documents()


def start_job(step: Mapping[str, Any], out: str, data: str, **_: Any) -> dict[str, Any]:
    """Add the class to the detector's head, and export the detector."""
    training.start_job(step, out, data)
    training.export_sized(out, Path(out).with_suffix(".onnx"), step["image_size"])
    return {}


def page(found: Document) -> Blocks:
    arms = [row for row in found.rows if row.get("arm")]
    new, counts = found.new_class, sorted({row.objects for row in arms})
    yield from frame.head(f"A class with few labelled objects: {new}", found)
    images = found.images
    yield f"""\
A detector is trained on images without {new}, then for {found.epochs} epochs at {found.image_size} pixels on
{found.others} of them and on images that hold so many objects of {new}; scored on {images.val} images (val) and
{images.test} (test). Means of mAP50-95 over the seeds, in brackets the lowest and the highest. Words: weight {TEXT:g}.
Rare ones: images with a class that less than {REPEAT:.0%} of the images have. Gain: over the labels alone,
seed by seed."""
    columns = f"{new}, val | {new}, test | gain on test | others, test | gain on test"
    rows = [row for row in found.rows if row.method == START and not row.error]
    lines = [" | ".join([START, "0", "–", "–", "–", *_scores(rows, ())])] if rows else []
    for count in counts:
        by_arm = _by_arm(arms, count)
        for arm, rows in by_arm.items():
            numbers = [frame.cell(training.mean(rows, name), ".0f") for name in ("updates", "cpu_seconds")]
            base = () if arm == LABELS else by_arm.get(LABELS, ())
            lines.append(" | ".join([arm, str(count), training.seeds_of(rows), *numbers, *_scores(rows, base)]))
    yield frame.table(f"trained on | objects | seeds | updates | CPU s | {columns}", lines)
    yield from training.failures(found)
    yield "## Beyond noise"
    yield (
        f"A mean gain on test counts where it is larger than half of its {CONFIDENCE:.0%} confidence interval, by the "
        "pooled standard deviation of the gains of all rows over the seeds."
    )
    for title, name in ((new, "new"), ("all others", "others")):
        by_row = {
            f"{arm}, {count}": gains(rows, by_arm.get(LABELS, ()), name, "test")
            for count in counts
            for by_arm in [_by_arm(arms, count)]
            for arm, rows in by_arm.items()
            if arm != LABELS
        }
        yield verdicts(f"mAP50-95 of {title}", by_row)
    yield f"- {frame.versions_of(found.packages.get('edgekd', {}), ('edgekd', 'ultralytics', 'torch'))}"


def _by_arm(rows: Sequence[Document], count: int) -> dict[str, list[Document]]:
    of_count = [row for row in rows if row.objects == count and not row.error]
    return {arm: [row for row in of_count if row.arm == arm] for arm in dict.fromkeys(row.arm for row in of_count)}


def _scores(rows: Sequence[Document], base: Sequence[Document]) -> list[str]:
    cells = [frame.spread([row.new["val"] for row in rows])]
    for name in ("new", "others"):
        ahead = gains(rows, base, name, "test")
        cells += [frame.spread([row[name]["test"] for row in rows]), frame.spread(ahead, "+") if ahead else "–"]
    return cells


if __name__ == "__main__":
    known = training.options(
        "rare_class", "where the first detector starts", epochs=8, batch=8, default=SHARED / "models" / "yolo11n.pt"
    )
    frame.main(
        run,
        page,
        *known,
        Option("--objects", [20, 5, 1], "labelled ones of the class"),
        Option("--others", 24, "images without the class, beside those that hold it"),
        Option("--base-epochs", 2, "of the first training"),
        SEEDS,
        holds=training.none_failed,
    )
