"""Compare edgekd's distillation with no distillation and with Ultralytics' own: same start, same scorer.

No epoch is selected on `val`. `--unlabelled 0.5` removes the labels of half of the training images, and adds a student
that also learns from these images, labelled by the teacher at `--teacher-size`. With `--pseudo-labels` this student
learns from labels alone, and a build quantizes it. `--recover 6` is for a student pruned from the teacher: edgekd
trains it with its step `recover` for six epochs, and the others get the same CPU seconds for the same seed. With
`--unlabelled`, `recover` uses every image, the others only labelled ones. Needs `edgekd[train]`. For single levels see
`distillation_levels.py`.
"""

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import frame
import training
from common import FRAMES, SPLITS, copy_data
from frame import Blocks, Document, Given, Option, Result
from recovery import recover_job
from training import DEVICE, SEEDS, JobError, Trainings, Way

from edgekd.compress.steps import Distill, Recover
from edgekd.data.long_tail import TAIL, rare_classes
from edgekd.detectors.torch_support import MAX_WARMUP_SHARE
from edgekd.evaluation.coco import Score, tail_score

TEACHER, NONE, BUILT_IN, OURS = "teacher", "no distillation", "Ultralytics, `distill_model=`, `dis=6`", "edgekd"
OURS_UNLABELLED = "edgekd, with unlabelled frames"
QUANTIZED = "the same in INT8, the file of a bundle"
RECOVERED = "edgekd, `recover`"
SIZED_TEACHER = "teacher-sized.pt"
"""Copy of the teacher whose input size is that of the training."""
MAX_WARMUP_EPOCHS = 3.0
"""Ultralytics' default `warmup_epochs`."""
UNLABELLED_SHARE = 0.75
"""Share of unlabelled images in each batch with `--pseudo-labels`."""
BUILT_IN_GAIN = 0.03
"""Goal: gain in mAP50-95 over Ultralytics' own distillation."""
TEACHERS_LABELS = (
    "edgekd's student learns from labels alone: those of the teacher, which detects in frames of {} pixels, are three "
    "quarters of each batch. The others see the teacher in frames of the student's size, or not at all. INT8: by "
    "`edgekd build` with the recipe `ptq`; bytes of the packed graph in its bundle."
)
FROM_TEACHER = (
    "The student was pruned from the teacher. `recover` sees no labels and mirrors images, the others augment them."
)
QUARTER = 0.25
"""Goal: largest bytes and multiply-adds of a quantized student, as a share of the teacher's."""
OVERHEAD = 1.15
"""Goal: largest time of a distillation step, relative to a step without plus the teacher's forward pass."""


class Bench(Trainings):
    """A teacher, and students trained in different ways.

    Numbers of a row: bytes: size of the float32 graph; seconds: training time, including the teacher's labelling or
    predictions; step_seconds: median time of a step (for the teacher: of a forward pass); tail: mean mAP50-95 of the
    classes that are rare in the training split.
    """

    asked = (
        *("student", "width", "epochs", "minutes", "cpu_time", "batch", "image_size", "images", "close_mosaic"),
        *("cached", "recover", "unlabelled", "pseudo_labels", "teacher_size", "device"),
    )
    numbers = ("parameters", "multiply_adds", "bytes", "epochs", "updates", "seconds", "step_seconds")
    required = TEACHER

    def ways(self) -> Iterator[Way]:
        if self.given.recover and not self.given.cpu_time:
            raise SystemExit("--recover gives the others its CPU seconds: it needs --cpu-time")
        yield TEACHER, None, self._teacher
        step = training.beside_objects(training.shipped()) if self.given.cached else training.shipped()
        frames = str(self.data.parent / FRAMES)
        steps: dict[str, Distill | Recover | None] = {NONE: training.on_labels(step), BUILT_IN: None, OURS: step}
        if self.given.recover:  # runs first: the others get its CPU time
            steps = {RECOVERED: Recover(self.given.recover), NONE: training.on_labels(step), BUILT_IN: None}
        elif self.given.pseudo_labels:
            del steps[OURS]
            labels = training.on_labels(step)
            steps[OURS_UNLABELLED] = replace(labels, unlabelled=frames, unlabelled_share=UNLABELLED_SHARE)
        elif self.given.unlabelled:
            steps[OURS_UNLABELLED] = replace(step, unlabelled=frames)
        for seed in self.given.seeds:
            for method, step in steps.items():
                yield method, seed, partial(self._student, method, step, seed)
            if self.given.pseudo_labels:
                yield QUANTIZED, seed, partial(self._quantized, seed)

    def _teacher(self) -> Document:
        given, graph = self.given, self.given.work / "teacher.onnx"
        size = given.teacher_size or given.image_size
        asked = {"model": given.model, "size": size, "batch": given.batch, "cpu_time": given.cpu_time}
        took = self.job("teacher", teacher_job, out=graph, **asked)
        return self.with_scores(self.row(TEACHER, bytes=graph.stat().st_size, **took), graph)

    def _start(self, seed: int) -> tuple[Path, dict[str, Any]]:
        """Return the initial checkpoint of a seed, the same for every method, and its network's sizes."""
        given, start = self.given, self.given.work / f"start-{seed}.pt"
        sizes = start.with_suffix(".json")
        if not sizes.is_file():
            student = given.student.format(seed=seed)
            model = {"student": student, "width": given.width, "seed": seed, "image_size": given.image_size}
            step = training.step_table(Distill(**model))
            found = self.job(start.stem, training.start_job, step=step, out=start, data=self.data)
            sizes.write_text(json.dumps(found), "utf-8")
        return start, json.loads(sizes.read_text("utf-8"))

    def _student(self, method: str, step: Distill | Recover | None, seed: int) -> Document:
        given, out = self.given, self._path(method, seed)
        name, (start, sizes) = out.stem, self._start(seed)
        settings = training.settings_of(given, seed)
        files = {"teacher": given.work / SIZED_TEACHER, "out": out, "data": self.data, "cpu_time": given.cpu_time}
        if step is None:
            asked = {"start": start, "minutes": self._minutes(seed), "settings": settings, "more": self._alike()}
            took = self.job(name, training.ultralytics_job, **asked, **files)
        elif isinstance(step, Recover):
            mine = training.step_table(replace(step, image_size=given.image_size, seed=seed))
            asked = {"checkpoint": start, "step": mine, "cache": out.with_suffix(".predictions")}
            files["data"] = self._every_image()
            done = self.job(name, recover_job, size=given.image_size, **asked, **files)
            took = {"epochs": step.epochs, "updates": done["updates"], "seconds": done["cpu_seconds"]}
        else:
            changes = {"minutes": self._minutes(seed), "close_mosaic": given.close_mosaic}
            mine = replace(step, student=str(start), **changes, **settings)
            asked = {"step": training.step_table(mine), "state": given.work / f"{name}.training"}
            took = self.job(name, training.edgekd_job, **asked, **files)
        graph = out.with_suffix(".onnx")
        return self.with_scores(self.row(method, seed, **{**sizes, "bytes": graph.stat().st_size, **took}), graph)

    def _path(self, method: str, seed: int) -> Path:
        return Path(self.given.work, f"{''.join(letter if letter.isalnum() else '-' for letter in method)}-{seed}.pt")

    def _quantized(self, seed: int) -> Document:
        """Build a student in INT8 and return its row. bytes: size of the packed graph in the bundle."""
        out, (_, sizes) = self._path(OURS_UNLABELLED, seed), self._start(seed)
        build = ("build", out, "--data", self.data, "--recipe", "ptq", "--out", out.with_suffix(".build"))
        # Trusted: this script wrote the pickle.
        built = self.edgekd(f"quantized-{seed}", *build, "--target", "xavier", "--trust-checkpoint")
        size = next(stage["bytes"] for stage in built["stages"] if stage["name"] == "encode-int8")
        scores = self.bundle_scores(f"quantized-{seed}", Path(built["bundle"]))
        return self.row(QUANTIZED, seed, **{**sizes, "bytes": size, **scores})

    def _every_image(self) -> Path:
        """Return a data set with all training images: `recover` needs no labels."""
        file: Path = self.given.work / "every_image" / "data.yaml"
        if not file.is_file():
            copy_data(self.given.data, file.parent, self.given.images)
        return file

    def _minutes(self, seed: int) -> float | None:
        """Return the minutes of a training: `--minutes`, or with `--recover` those of this seed's recovery.

        Raises JobError if the recovery failed.
        """
        if not self.given.recover:
            return self.given.minutes
        seconds = (row.seconds for row in self.rows if (row.method, row.seed) == (RECOVERED, seed) and not row.error)
        if (taken := next(seconds, None)) is None:
            raise JobError(f"seed {seed}: the recovery failed, so there is no time to give")
        return taken / 60

    def _alike(self) -> dict[str, Any]:
        """Return settings that make Ultralytics update weights, warm up and augment images as edgekd does."""
        given = self.given
        warm_up = min(given.epochs * MAX_WARMUP_SHARE, MAX_WARMUP_EPOCHS)
        return {"nbs": given.batch, "warmup_epochs": warm_up, "close_mosaic": given.close_mosaic}

    def row(self, method: str, seed: int | None = None, **known: Any) -> Document:
        return super().row(method, seed, **{"tail": {}, **known})

    def notes_of(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        """Add `tail`, the mAP50-95 of the rare classes, to the notes of a row."""
        rare = rare_classes(self.scored.split("train"), self.scored.classes)
        tail = {split: tail_score(one.per_class, rare, TAIL).map50_95 for split, one in scores.items()}
        return {**super().notes_of(scores), "tail": tail}

    def result(self) -> dict[str, Any]:
        return {"claims": claims(training.by_method(self.rows), self.given.gain)}


def teacher_job(
    model: str,
    out: str,
    size: int,
    batch: int,
    device: str,
    threads: int,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Export the teacher at this size, and time forward passes of a batch. Return sizes and `step_seconds`."""
    import torch
    from pruning import network_in, sizes_of

    from edgekd.detectors.family import load_teacher
    from edgekd.detectors.torch_support import fast_in_bfloat16

    torch.set_num_threads(threads)
    training.sized(model, Path(out).with_name(SIZED_TEACHER), size)
    training.export_sized(model, Path(out), size)
    where = torch.device("cpu" if device == "cpu" else f"cuda:{device.split(',')[0]}")
    network = load_teacher(Path(model), trust=True).to(where).to(memory_format=torch.channels_last)
    frames, stamps = torch.rand(batch, 3, size, size, device=where), []
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=fast_in_bfloat16(where)):
        for _ in range(3 if where.type == "cpu" else 30):
            network(frames)
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            stamps.append(time.process_time() if cpu_time else time.perf_counter())
    return {**sizes_of(network_in(model), size), "step_seconds": training.gap(stamps)}


def gains(mine: Sequence[Document], others: Sequence[Document], split: str) -> list[float]:
    """Return the differences in mAP50-95 from other rows of the same seed."""
    theirs = {row.seed: row.map50_95[split] for row in others}
    return [row.map50_95[split] - theirs[row.seed] for row in mine if row.seed in theirs]


def claims(found: Mapping[str, Sequence[Document]], gain: float) -> list[dict[str, Any]]:
    ours = next((name for name in (RECOVERED, OURS, OURS_UNLABELLED) if name in found), OURS)
    if not {ours, NONE, TEACHER} <= found.keys():
        return []
    mine, none, teacher = found[ours], found[NONE], found[TEACHER]
    made = []
    peers = {"no distillation": (none, gain), "Ultralytics' own": (found.get(BUILT_IN, ()), BUILT_IN_GAIN)}
    for peer, (rows, wanted) in peers.items():
        if ahead := gains(mine, rows, "test"):
            mean, least = statistics.fmean(ahead), min(ahead)
            text = f"test mAP50-95 at least {wanted:.3f} above {peer}, mean of the seeds"
            made.append(frame.claim(text, mean, mean >= wanted))
            made.append(frame.claim(f"behind {peer} with no seed; least gain", least, least >= 0))
    whole = training.mean_score(teacher, "test")
    kept = training.mean_score(mine, "test") / whole if whole else 0.0
    made.append(frame.claim("at least 98 % of the teacher's mAP50-95, mean of the seeds", kept, kept >= 0.98))
    if quantized := found.get(QUANTIZED):
        for name in ("bytes", "multiply_adds"):
            share = (training.mean(quantized, name) or 0.0) / teacher[0][name]
            text = f"{name.replace('_', '-')} of the INT8 student: at most a quarter of the teacher's"
            made.append(frame.claim(text, share, share <= QUARTER))
    steps = [rows[0].step_seconds for rows in (mine, none, teacher)]
    if all(steps) and ours != OURS_UNLABELLED:  # there the teacher labels images before the training
        ratio = steps[0] / (steps[1] + steps[2])
        text = f"a step, first seed, takes at most {OVERHEAD} times one without distillation and the teacher's pass"
        made.append(frame.claim(text, ratio, ratio <= OVERHEAD))
    return made


def page(found: Document) -> Blocks:
    counts, methods = found.images, training.by_method(found.rows)
    yield from frame.head("Distillation, edgekd beside none and Ultralytics' own", found)
    clock = "CPU minutes, those of the teacher included," if found.get("cpu_time") else "minutes"
    length = f"{found.minutes:g} {clock}" if found.minutes else f"{found.epochs} epochs"
    if found.get("recover"):
        length = f"{found.recover} epochs by edgekd, by the others for as many CPU seconds, the teacher's included,"
    sees = RECOVERED if found.get("recover") else OURS_UNLABELLED
    unlabelled = f"Of the training images {found.unlabelled:.0%} have no labels: only `{sees}` sees them."
    yield """\
Means over the seeds; in brackets the lowest and the highest. Gain: over no distillation, seed by seed. Every way
of a seed starts from the same student. Seconds: of training; no method validates while it trains; a step: its
median, of the teacher a forward pass of a batch. Rare: mAP50-95 of classes that are rare in the training split.
What ships is the moving average at the end. edgekd's defaults may have been compared on val: test is the split
to compare. Bytes: of the float32 graph. mAP: edgekd's scorer, ONNX Runtime's CPU provider."""
    yield (
        f"Trained for {length} on {counts.train} images; scored on {counts.val} (val) and {counts.test} (test)."
        + (f"\n{unlabelled}" if found.unlabelled else "")
        + (f"\n{TEACHERS_LABELS.format(found.teacher_size or found.image_size)}" if found.get("pseudo_labels") else "")
        + ("\nedgekd compares predictions alone, beside cached objects of the teacher." if found.get("cached") else "")
        + (f"\n{FROM_TEACHER}" if found.get("recover") else "")
    )
    yield frame.table(
        "how | seeds | parameters | multiply-adds | bytes | epochs | updates | seconds | step ms | "
        "val mAP50-95 | gain | rare | test mAP50-95 | gain | rare",
        (_cells(method, rows, methods.get(NONE, ())) for method, rows in methods.items()),
    )
    yield from training.failures(found)
    yield "## Goals"
    yield frame.claims_table(found.claims)
    yield f"- {frame.versions_of(found.packages.get('edgekd', {}), ('edgekd', 'ultralytics', 'torch'))}"
    yield training.trained_on(found)


def _cells(method: str, rows: Sequence[Document], base: Sequence[Document]) -> str:
    seeds = "–" if rows[0].seed is None else training.seeds_of(rows)
    numbers = [
        *(frame.cell(training.mean(rows, name), ",.0f") for name in ("parameters", "multiply_adds", "bytes")),
        *(frame.cell(training.mean(rows, name), ",.4g") for name in ("epochs", "updates", "seconds")),
        frame.cell(training.mean(rows, "step_seconds"), ".1f", unit=1e-3),
    ]
    for split in SPLITS:
        ahead = gains(rows, base, split) if method != NONE else []
        tail = [value for row in rows if (value := row.tail.get(split)) is not None]
        numbers += [frame.spread(training.scores(rows, split)), frame.spread(ahead, "+") if ahead else "–"]
        numbers.append(f"{statistics.fmean(tail):.4f}" if tail else "–")
    return " | ".join([method, seeds, *numbers])


def run(given: Given) -> Iterator[Result]:
    if Path(given.student).is_file():
        given.student = str(Path(given.student).absolute())
    return Bench(given).documents()


if __name__ == "__main__":
    options = (
        *training.options("distillation", "the teacher", epochs=40, batch=32),
        Option("--student", "yolo11n.yaml", "a model by Ultralytics, or a checkpoint; {seed} in it is the seed"),
        Option("--width", type=float, help="factor of the model's channels, such as 0.14"),
        Option("--minutes", type=float, help="train this long; `--epochs` is then the first estimate"),
        Option("--cpu-time", False, "minutes are those of the CPU, the teacher's included: others may use it, too"),
        Option("--close-mosaic", 10, "last epochs without mosaics"),
        Option("--cached", False, "edgekd compares predictions alone, beside cached objects of the teacher"),
        Option("--recover", type=int, help="epochs of edgekd's step `recover`; the others get as many CPU seconds"),
        SEEDS,
        Option("--unlabelled", 0.0, "share of the training images that loses its labels"),
        Option("--pseudo-labels", False, "edgekd learns from labels alone, those of the teacher among them; then INT8"),
        Option("--teacher-size", type=int, help="side of the teacher's own frames in pixels; default: --image-size"),
        DEVICE,
        Option("--gain", 0.05, "mAP50-95 that is aimed at beyond no distillation"),
    )
    frame.main(run, page, *options, holds=training.none_failed)
