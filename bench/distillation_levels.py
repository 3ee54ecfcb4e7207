"""Measure the gain of each level of edgekd's distillation over labels alone, for a small student on rendered scenes.

The scenes are rendered, so the test split is large enough that the variance comes from the seeds. Dogs are rare in
training and frequent in the scored splits. The teacher is a COCO checkpoint, fine-tuned on the same scenes. The student
is first trained on labels, from random weights. From there every arm of a seed trains on the same images for as many
updates. Needs `edgekd[train,text,conflict]`.
"""

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import frame
import training
from common import SHARED, SPLITS
from frame import Blocks, Document, Given, Option, Result
from rendered_scenes import write_scenes
from scipy.stats import t as student_t
from training import SEEDS, Trainings, Way

from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.data.long_tail import TAIL, instances, rare_classes
from edgekd.evaluation.coco import Score, tail_score

TEACHER, START, LABELS, PREDICTIONS = "teacher", "start", "labels", "classes and boxes"
WITHOUT_GAIN = (TEACHER, START, LABELS)
RATE = 0.003  # learning rate of the student: higher than Ultralytics' 0.0011, as the network is small
CONFIDENCE = 0.95  # confidence level of the interval around a mean gain
ARM = {"learning_rate": RATE, "mosaic": 0.0}  # the settings at the end of the start's training
ALONE = 0.3  # weight of a single level: norm of its gradient relative to that of the labels
ALL_LEVELS = (
    DistillStage("features", 0.1, Weights(features=0.08, attention=0.03, neurons=0.03, classes=0.3, boxes=0.3)),
    DistillStage("predictions", 0.6, Weights(classes=0.3, boxes=0.3, relations=0.03)),
    DistillStage("fusion", 0.3, Weights(features=0.08, classes=0.3, boxes=0.3, relations=0.03), adaptive=True),
)


def step_of(weights: Weights, **settings: Any) -> Distill:
    """Return a step with one stage."""
    return Distill(
        stages=(DistillStage("all", 1.0, weights, adaptive=True),), **{"alpha": "off", "teacher": "live", **settings}
    )


def arms() -> dict[str, Distill]:
    """Return the compared steps by name, the most important ones first. All of them also learn from labels."""
    both = Weights(classes=ALONE, boxes=ALONE)
    return {
        LABELS: step_of(Weights()),
        PREDICTIONS: step_of(both),
        f"{PREDICTIONS}, cached teacher": step_of(both, teacher="cached"),
        "all levels, three stages": Distill(stages=ALL_LEVELS, alpha="agreement"),
        "features and neurons": step_of(Weights(features=ALONE, neurons=ALONE)),
        **{level: step_of(Weights(**{level: ALONE})) for level in ("attention", "relations")},
        "words": step_of(Weights(), text=ALONE),
        f"{PREDICTIONS}, alpha by disagreement": step_of(both, alpha="disagreement"),
        f"{PREDICTIONS}, conflicts reconciled": step_of(both, conflict=True),
        f"{PREDICTIONS}, rare classes weigh more and are seen more often": step_of(both, class_power=0.5, repeat=0.5),
    }


class Bench(Trainings):
    """A teacher, and students trained with and without it.

    Numbers of a row: updates: number of weight updates; cpu_seconds: CPU time of the training, all threads; rare:
    mAP50-95 of the classes that are rare in training, by split.
    """

    asked = (
        "student",
        "width",
        "epochs",
        "teacher_epochs",
        "start_epochs",
        "batch",
        "image_size",
        "train",
        "val",
        "test",
    )
    numbers = ("parameters", "updates", "cpu_seconds")
    required = TEACHER

    def ways(self) -> Iterator[Way]:
        given, labels = self.given, step_of(Weights())
        known = {"student": str(given.model), "epochs": given.teacher_epochs, "close_mosaic": 1}
        yield TEACHER, None, partial(self._trained, TEACHER, None, replace(labels, **known))
        scratch = {"student": given.student, "width": given.width, "learning_rate": RATE}
        halves = {"epochs": given.start_epochs, "close_mosaic": given.start_epochs // 2}
        yield START, None, partial(self._trained, START, None, replace(labels, **scratch, **halves))
        for seed in self.given.seeds:
            for name, step in arms().items():
                known = {"student": str(given.work / f"{START}-0.pt"), "epochs": given.epochs, **ARM}
                yield name, seed, partial(self._trained, name, seed, replace(step, **known))

    def _trained(self, method: str, seed: int | None, step: Distill) -> Document:
        given = self.given
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{method} {seed or 0}")
        teacher = given.model if method == TEACHER else given.work / f"{TEACHER}-0.pt"
        step = replace(step, batch=given.batch, image_size=given.image_size, seed=seed or 0)
        out, state = given.work / f"{name}.pt", given.work / f"{name}.training"
        files = {"teacher": teacher, "out": out, "data": self.data, "state": state}
        took = self.job(name, train_job, step=training.step_table(step), **files)
        return self.with_scores(self.row(method, seed, **took), out.with_suffix(".onnx"))

    def notes_of(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        rare = rare_classes(self.scored.split("train"), self.scored.classes)
        tail = {split: tail_score(one.per_class, rare, TAIL).map50_95 for split, one in scores.items()}
        return {**super().notes_of(scores), "rare": tail}

    def result(self) -> dict[str, Any]:
        classes = self.scored.classes
        splits = {name: self.scored.split(name).samples for name in ("train", *SPLITS)}
        counts = {name: instances((each.truth for each in samples), len(classes)) for name, samples in splits.items()}
        return {"objects": {name: dict(zip(classes, each.tolist(), strict=True)) for name, each in counts.items()}}


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def train_job(
    step: Mapping[str, Any], teacher: str, out: str, data: str, state: str, device: str, threads: int
) -> dict[str, Any]:
    """Train a student and export it. Return its parameters, updates, CPU seconds and final loss weights."""
    import torch

    from edgekd.core.progress import PlainProgress
    from edgekd.core.toml import parse_table
    from edgekd.detectors.ultralytics.distill import distill_student

    torch.set_num_threads(threads)
    settings, began = parse_table(Distill, dict(step), "step"), cpu_seconds()
    progress = PlainProgress(interval_s=30)
    done = distill_student(Path(teacher), Path(out), Path(data), settings, Path(state), True, device, progress)
    took = cpu_seconds() - began
    training.export_sized(out, Path(out).with_suffix(".onnx"), settings.image_size)
    last = {name: round(value, 4) for name, value in done.weights[-1].items()}
    return {"parameters": done.parameters, "updates": done.updates, "cpu_seconds": took, "weights": last}


def gains(rows: Sequence[Document], base: Sequence[Document], name: str, split: str) -> list[float]:
    """Return the differences of a score from the base rows of the same seed."""
    without = {row.seed: row[name][split] for row in base}
    return [row[name][split] - without[row.seed] for row in rows if row.seed in without]


def half_width(groups: Sequence[Sequence[float]], count: int) -> float | None:
    """Return half the confidence interval of a mean of `count` gains, from the pooled variance of all arms.

    None if no arm has two seeds.
    """
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    pooled = sum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom
    return float(student_t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(pooled / count)


def page(found: Document) -> Blocks:
    methods = training.by_method(found.rows)
    base = methods.get(LABELS, ())
    yield from frame.head("Distillation, level by level, on rendered scenes", found)
    sizes = " and ".join(f"{methods[name][0].parameters:,} ({name})" for name in (TEACHER, START) if name in methods)
    yield f"""\
Trained on {found.train} rendered crops of {found.image_size} pixels, scored on {found.val} (val), {found.test} (test).
Parameters: {sizes}. Every arm goes on from the start, on labels and on what it names. A single level has the weight
{ALONE:g}: its gradient is that many times as long as the labels'. Means over the seeds, in brackets the lowest and the
highest. Gain: over the labels alone, seed by seed. Rare: mAP50-95 of dogs, which are rare in training."""
    yield f"Objects: {'; '.join(f'{split}: ' + _counts(counts) for split, counts in found.objects.items())}."
    header = "trained on | seeds | updates | CPU s | val mAP50-95 | gain | test mAP50-95 | gain | rare, test | gain"
    yield frame.table(header, (_cells(name, rows, base) for name, rows in methods.items()))
    yield from training.failures(found)
    yield "## Beyond noise"
    yield (
        f"A mean gain on test counts where it is larger than half of its {CONFIDENCE:.0%} confidence interval, by the "
        "pooled standard deviation of the gains of all arms over the seeds."
    )
    arms = {name: rows for name, rows in methods.items() if name not in WITHOUT_GAIN}
    yield verdicts("mAP50-95", {name: gains(rows, base, "map50_95", "test") for name, rows in arms.items()})
    yield verdicts("mAP50-95 of dogs", {name: gains(rows, base, "rare", "test") for name, rows in arms.items()})
    yield f"- {frame.versions_of(found.packages.get('edgekd', {}), ('edgekd', 'ultralytics', 'torch'))}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _cells(name: str, rows: Sequence[Document], base: Sequence[Document]) -> str:
    cells = [name, training.seeds_of(rows)]
    cells += [frame.cell(training.mean(rows, each), ",.0f") for each in ("updates", "cpu_seconds")]
    for score, split in (("map50_95", "val"), ("map50_95", "test"), ("rare", "test")):
        ahead = [] if name in WITHOUT_GAIN else gains(rows, base, score, split)
        cells += [frame.spread([row[score][split] for row in rows]), frame.spread(ahead, "+") if ahead else "–"]
    return " | ".join(cells)


def verdicts(title: str, by_arm: Mapping[str, Sequence[float]]) -> str:
    """Return a table with each arm's mean gain, and whether it is within noise."""

    def row(arm: str, values: Sequence[float]) -> str:
        mean, half = statistics.fmean(values), half_width(tuple(by_arm.values()), len(values))
        if half is None:
            return f"{arm} | {mean:+.4f} | unknown, of one seed"
        verdict = "within noise" if abs(mean) <= half else "better" if mean > 0 else "worse"
        return f"{arm} | {mean:+.4f} ± {half:.4f} | {verdict}"

    return frame.table(f"{title} | gain | ", (row(arm, values) for arm, values in by_arm.items() if values))


def run(given: Given) -> Iterator[Result]:
    given.work, given.model = given.work.absolute(), given.model.absolute()
    given.data = given.work / "scenes" / "data.yaml"
    if not given.data.is_file():
        counts = {split: getattr(given, split) for split in ("train", "val", "test")}
        write_scenes(given.data.parent, given.image_size, **counts)
    given.data, given.images = given.data.parent, None
    return Bench(given).documents()


if __name__ == "__main__":
    frame.main(
        run,
        page,
        Option("--model", SHARED / "models" / "yolo11n.pt", "where the teacher starts"),
        Option("--student", "yolo11n.yaml", "a model by Ultralytics"),
        Option("--width", 0.03, "factor of its channels"),
        Option("--train", 1000, "scenes"),
        Option("--val", 100, "scenes"),
        Option("--test", 2000, "scenes"),
        Option("--epochs", 4),
        Option("--teacher-epochs", 8),
        Option("--start-epochs", 24, "of the student, on labels, before the arms; the last half without mosaics"),
        Option("--batch", 8),
        Option("--image-size", 160),
        SEEDS,
        Option("--work", Path("runs") / "distillation_levels", "scenes, logs and finished rows"),
        holds=training.none_failed,
    )
