"""Measure what each level of edgekd's distillation brings to a small student, on rendered scenes, beside its labels.

The renderer gives as many scenes as wanted: the test split is so large that the seeds are the noise. Dogs are rare in
training and frequent where is scored. The teacher is a COCO checkpoint, trained on the same scenes. Every arm of a seed
starts from the same random student and makes as many updates. Needs `edgekd[train,text,conflict]`.
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

TEACHER, LABELS, PREDICTIONS = "teacher", "labels", "classes and boxes"
CONFIDENCE = 0.95  # of the interval around a mean gain
ALONE = 0.3  # weight of a single level: its gradient is 0.3 times as long as that of the labels


def step_of(weights: Weights, **settings: Any) -> Distill:
    """Return a step with one stage."""
    return Distill(stages=(DistillStage("all", 1.0, weights, adaptive=True),), **{"alpha": "off", **settings})


def arms() -> dict[str, Distill]:
    """Return the steps that are compared, by name, the most important ones first; each learns from labels too."""
    stages, both = training.shipped(), Weights(classes=ALONE, boxes=ALONE)
    single = ("features", "relations", "attention", "neurons")
    return {
        LABELS: step_of(Weights()),
        PREDICTIONS: step_of(both),
        "all levels, three stages": stages,
        **{level: step_of(Weights(**{level: ALONE})) for level in single},
        "words": step_of(Weights(), text=ALONE),
        **{f"{PREDICTIONS}, alpha by {each}": step_of(both, alpha=each) for each in ("disagreement", "agreement")},
        f"{PREDICTIONS}, conflicts reconciled": step_of(both, conflict=True),
        f"{PREDICTIONS}, rare classes weigh more and are seen more often": step_of(both, class_power=0.5, repeat=0.5),
        f"{PREDICTIONS} at 1": step_of(Weights(classes=1.0, boxes=1.0)),
        f"{PREDICTIONS}, temperature 2": step_of(both, temperature=2.0),
    }


class Bench(Trainings):
    """A teacher, and students with and without it.

    Numbers of a row: updates: of the weights; cpu_seconds: of the training, in all threads; rare: by split the
    mAP50-95 of the classes that are rare in training.
    """

    asked = ("student", "width", "epochs", "teacher_epochs", "batch", "image_size", "train", "val", "test")
    numbers = ("parameters", "updates", "cpu_seconds")
    required = TEACHER

    def ways(self) -> Iterator[Way]:
        yield TEACHER, None, partial(self._trained, TEACHER, None, step_of(Weights()))
        for name, step in arms().items():
            for seed in self.given.seeds:
                yield name, seed, partial(self._trained, name, seed, step)

    def _trained(self, method: str, seed: int | None, step: Distill) -> Document:
        given = self.given
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{method} {seed or 0}")
        is_teacher = method == TEACHER
        teacher = given.model if is_teacher else given.work / f"{TEACHER}-0.pt"
        step = replace(
            step,
            student=str(given.model) if is_teacher else given.student,
            width=None if is_teacher else given.width,
            epochs=given.teacher_epochs if is_teacher else given.epochs,
            close_mosaic=1,  # else few epochs would have any
            batch=given.batch,
            image_size=given.image_size,
            seed=seed or 0,
        )
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
    """Train a student and export it."""
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
    """Return by how much a score is better than without a teacher, seed by seed."""
    without = {row.seed: row[name][split] for row in base}
    return [row[name][split] - without[row.seed] for row in rows if row.seed in without]


def half_width(groups: Sequence[Sequence[float]], count: int) -> float:
    """Return half of the confidence interval of a mean of `count` gains, by the pooled deviation of all arms' gains."""
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan
    pooled = sum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom
    return float(student_t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(pooled / count)


def page(found: Document) -> Blocks:
    methods = training.by_method(found.rows)
    base, others = (
        methods.get(LABELS, []),
        {name: rows for name, rows in methods.items() if name not in (TEACHER, LABELS)},
    )
    yield from frame.head("Distillation, level by level, on rendered scenes", found)
    yield (
        f"Trained on {found.train} rendered crops of {found.image_size} pixels, scored on {found.val} (val) and "
        f"{found.test} (test). Means over the seeds; in brackets the lowest and the highest. Gain: over the labels "
        "alone, seed by seed. An arm is the labels and what it names; a single level has the weight "
        f"{ALONE:g}, a gradient that many times as long as the labels'."
    )
    yield f"Objects: {'; '.join(f'{split}: ' + _counts(counts) for split, counts in found.objects.items())}."
    header = (
        "beside the labels | seeds | updates | CPU s | val mAP50-95 | gain | test mAP50-95 | gain | rare, test | gain"
    )
    yield frame.table(header, (_cells(name, rows, base) for name, rows in methods.items()))
    yield from training.failures(found)
    yield "## Beyond noise"
    yield (
        f"A mean gain on test counts if it is larger than half of its {CONFIDENCE:.0%} confidence interval, by the "
        "pooled standard deviation of the gains of all arms."
    )
    yield from (_verdicts(others, base, name) for name in ("map50_95", "rare"))
    yield f"- {frame.versions_of(found.packages.get('edgekd', {}), ('edgekd', 'ultralytics', 'torch'))}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _cells(name: str, rows: Sequence[Document], base: Sequence[Document]) -> str:
    cells = [
        name,
        training.seeds_of(rows),
        *(frame.cell(training.mean(rows, each), ",.0f") for each in ("updates", "cpu_seconds")),
    ]
    for split in SPLITS:
        ahead = gains(rows, base, "map50_95", split) if name not in (TEACHER, LABELS) else []
        cells += [frame.spread(training.scores(rows, split)), frame.spread(ahead, "+") if ahead else "–"]
    ahead = gains(rows, base, "rare", "test") if name not in (TEACHER, LABELS) else []
    rare = [row.rare["test"] for row in rows]
    return " | ".join([*cells, frame.spread(rare), frame.spread(ahead, "+") if ahead else "–"])


def _verdicts(arms: Mapping[str, Sequence[Document]], base: Sequence[Document], name: str) -> str:
    by_arm = {arm: gains(rows, base, name, "test") for arm, rows in arms.items()}
    groups = list(by_arm.values())

    def row(arm: str, values: Sequence[float]) -> str:
        mean, half = statistics.fmean(values), half_width(groups, len(values))
        verdict = "within noise" if not abs(mean) > half else "better" if mean > 0 else "worse"
        return f"{arm} | {mean:+.4f} ± {half:.4f} | {verdict}"

    title = "mAP50-95" if name == "map50_95" else "mAP50-95 of the rare class"
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
        Option("--teacher-epochs", 6),
        Option("--batch", 8),
        Option("--image-size", 160),
        SEEDS,
        Option("--work", Path("runs") / "distillation_levels", "scenes, logs and finished rows"),
        holds=training.none_failed,
    )
