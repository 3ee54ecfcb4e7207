"""Distillation: edgekd's beside none and beside Ultralytics' own, from the same start, scored by the same scorer.

The student has the same random weights, or the same checkpoint, for every way of a seed; the teacher is the same; all
see the same images in the same size and batch, for as many epochs or, with `--minutes`, for as long. Everybody ships
the moving average of the last step: no epoch is chosen on the split `val`. Every training is a process of its own.
`--ablation` adds edgekd's recipe with one thing changed at a time; `--unlabelled 0.5` takes the labels of half of the
training images away, and adds a student that also sees these, labelled by its teacher.

    python bench/distillation.py [--model TEACHER.pt] [--student yolo11n.yaml] [--width 0.14] [--epochs N | --minutes M]
        [--seeds N ...] [--device 0] [--ablation] [--unlabelled SHARE]

A row that is finished is kept in `--work`, and `--out` is written again after each: what was cut goes on where it was.
The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common import (
    FRAMES,
    RESULTS,
    SHARED,
    SPLITS,
    JobError,
    Resumable,
    answer,
    conditions_lines,
    table,
    use_cores,
    write_pair,
)

from edgekd.builds.recipe import Distill, DistillStage, Weights, load_recipe
from edgekd.core.detection.decode import SCORING
from edgekd.core.progress import PlainProgress, Progress
from edgekd.core.toml import parse_table
from edgekd.data.dataset import load_dataset
from edgekd.data.long_tail import TAIL, rare_classes
from edgekd.data.types import Sample
from edgekd.evaluation.coco import Score, tail_score
from edgekd.evaluation.evaluate import judge

OPSET = 17
TEACHER, NONE, BUILT_IN, OURS = "teacher", "no distillation", "Ultralytics, `distill_model=`, `dis=6`", "edgekd"
OURS_UNLABELLED = "edgekd, with unlabelled frames"
OVERHEAD = 1.15
"""How much longer a step with distillation may take than one without and the teacher's forward pass together."""


def shipped() -> Distill:
    """The step of the shipped recipe."""
    step = load_recipe("distill").distill
    assert step is not None
    return step


def with_weights(step: Distill, change: Callable[[Weights], Weights]) -> Distill:
    """The step with the weights of every stage changed."""
    return replace(step, stages=tuple(replace(stage, weights=change(stage.weights)) for stage in step.stages))


def ablations() -> dict[str, Distill]:
    """The shipped step with one thing changed at a time."""
    step = shipped()
    levels = [entry.name for entry in fields(Weights)]
    used = [name for name in levels if any(getattr(stage.weights, name) for stage in step.stages)]

    def without(level: str) -> Distill:
        return with_weights(step, lambda weights: replace(weights, **{level: 0.0}))

    def alone(level: str) -> Distill:
        return with_weights(step, lambda weights: Weights(**{level: 1.0}))

    last = replace(step.stages[-1], share=1.0)
    return {
        **{f"edgekd, without {level}": without(level) for level in used},
        **{f"edgekd, {level} alone": alone(level) for level in levels},
        "edgekd, stages in reverse": replace(step, stages=step.stages[::-1]),
        "edgekd, the last stage all the time": replace(step, stages=(last,)),
        **{f"edgekd, alpha {reading}": replace(step, alpha=reading) for reading in ("disagreement", "off")},
        "edgekd, no balance of gradients": replace(step, balance_every=0),
        "edgekd, temperature learned": replace(step, learn_temperature=True),
        "edgekd, no focus": replace(step, focus=0.0),
        **{f"edgekd, features by {way}": replace(step, features=way) for way in ("correlation", "channels")},
        "edgekd, rare classes weigh more": replace(step, class_power=0.5),
        "edgekd, rare classes seen more often": replace(step, repeat=0.5),
        "edgekd, rare classes weigh more and are seen more often": replace(step, class_power=0.5, repeat=0.5),
        "edgekd, conflicts reconciled": replace(step, conflict=True),
        "edgekd, with words": replace(step, text=0.5),
        "edgekd, words alone": replace(with_weights(step, lambda _: Weights()), text=0.5),
    }


@dataclass(frozen=True)
class Row:
    """One student, or the teacher.

    seconds: of training, and of labelling where the teacher does that; step_seconds: the median, of the teacher a
    forward pass; tail: the mean mAP50-95 of the classes that are rare in the training split.
    """

    method: str
    seed: int | None = None
    parameters: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    map50_95: Mapping[str, float] = field(default_factory=dict)
    map50: Mapping[str, float] = field(default_factory=dict)
    tail: Mapping[str, float | None] = field(default_factory=dict)
    error: str | None = None


class Bench(Resumable[Row]):
    """One run: what was asked, the folder in which it goes on after a cut, and the rows it has."""

    asked = ("student", "width", "epochs", "minutes", "batch", "image_size", "images", "unlabelled", "device")

    def run(self) -> Iterable[None]:
        """Every row that is not there yet; pauses after each."""
        if self.missing(TEACHER):
            self.add(self._teacher())
            yield
        nothing = replace(shipped(), stages=(DistillStage("none", 1.0, Weights()),))
        ways: dict[str, Distill | None] = {NONE: nothing, BUILT_IN: None, OURS: shipped()}
        if self.given.ablation:
            ways |= ablations()
        if self.given.unlabelled:
            ways[OURS_UNLABELLED] = replace(shipped(), unlabelled=str(self.data.parent / FRAMES))
        for seed in self.given.seeds:
            for method, step in ways.items():
                if self.missing(method, seed):
                    self.add_made(method, seed, partial(self._student, method, step, seed))
                    yield

    def _teacher(self) -> Row:
        given, graph = self.given, self.given.work / "teacher.onnx"
        job = {"do": "teacher", "model": given.model, "out": graph, "size": given.image_size, "batch": given.batch}
        job |= {"data": given.data, "images": given.images}
        took = self._job("teacher", {**job, "device": given.device, "threads": given.threads})
        scores = {split: Score(**score) for split, score in took.pop("scores").items()}
        row = Row(TEACHER, **took)
        return replace(row, **self.noted(scores)) if scores else self.with_scores(row, graph)

    def _student(self, method: str, step: Distill | None, seed: int) -> Row:
        given = self.given
        name = f"{''.join(letter if letter.isalnum() else '-' for letter in method)}-{seed}"
        start, out = given.work / f"start-{seed}.pt", given.work / f"{name}.pt"
        common = {"data": self.data, "device": given.device, "threads": given.threads}
        asked = {"epochs": given.epochs, "batch": given.batch, "image_size": given.image_size, "seed": seed}
        if not start.is_file():
            model = {"student": given.student, "width": given.width, "seed": seed, "image_size": given.image_size}
            self._job(start.stem, {"do": "start", "step": told(Distill(**model)), "out": start, **common})
        files = {"teacher": given.model, "out": out}
        if step is None:
            job = {"do": "ultralytics", "start": start, "minutes": given.minutes, "settings": asked}
        else:
            mine = replace(step, student=str(start), minutes=given.minutes, **asked)
            job = {"do": "edgekd", "step": told(mine), "state": given.work / f"{name}.training"}
        took = self._job(name, {**job, **files, **common})
        return self.with_scores(Row(method, seed, **took), out.with_suffix(".onnx"))

    def noted(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        """Also how well the rare classes are found."""
        train = load_dataset(self.given.data)
        rare = rare_classes(train.split("train"), train.classes)
        tail = {split: tail_score(one.per_class, rare, TAIL)["map50_95"] for split, one in scores.items()}
        return {**super().noted(scores), "tail": tail}

    def _job(self, name: str, job: Mapping[str, Any]) -> dict[str, Any]:
        took = self.process(name, [*_MYSELF, json.dumps(job, default=str)])
        self.packages["edgekd"] = took.pop("packages")
        return took


def told(step: Distill) -> dict[str, Any]:
    """A step as TOML would have it."""
    return {name: value for name, value in asdict(step).items() if value is not None}


# ----------------------------------------------------------------------------------- what a process of its own does


def teacher_job(
    model: str, out: str, size: int, batch: int, data: str, images: int | None, device: str, threads: int
) -> dict[str, Any]:
    """Export the teacher at this size, or score one that cannot be; what a forward pass of a batch takes."""
    import torch

    from edgekd.detectors.family import direct_detector, load_teacher
    from edgekd.detectors.torch_support import fast_in_bfloat16, parameters_in

    torch.set_num_threads(threads)
    scores = {}
    resized = Path(out).with_name("teacher-sized.pt")
    sized(model, resized, size)
    if (found := direct_detector(resized, SCORING, trust=True)) is not None:
        for name in SPLITS:
            split = load_dataset(Path(data)).split(name)
            some = replace(split, samples=split.samples[:images])
            scores[name] = judge(found.find, found.classes, some).score.to_json()
    else:
        exported(model, Path(out), size)
    where = torch.device("cpu" if device == "cpu" else f"cuda:{device.split(',')[0]}")
    network = load_teacher(Path(model), trust=True).to(where).to(memory_format=torch.channels_last)
    images, stamps = torch.rand(batch, 3, size, size, device=where), []
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=fast_in_bfloat16(where)):
        for _ in range(3 if where.type == "cpu" else 30):
            network(images)
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            stamps.append(time.perf_counter())
    return {"parameters": parameters_in(network), "step_seconds": gap(stamps), "scores": scores}


def start_job(step: Mapping[str, Any], out: str, data: str, device: str, threads: int) -> dict[str, Any]:
    """Write the checkpoint that every way of a seed starts from."""
    import torch

    from edgekd.detectors.ultralytics.distill import student_network

    asked = parse_table(Distill, dict(step), "start")
    network = student_network(asked, load_dataset(Path(data)).classes, trust=True)
    torch.save({"model": network, "train_args": {"imgsz": asked.image_size, "task": "detect"}}, out)
    return {}


def edgekd_job(
    step: Mapping[str, Any], teacher: str, out: str, data: str, state: str, device: str, threads: int
) -> dict[str, Any]:
    """Train with edgekd and export; what it took."""
    import torch

    from edgekd.detectors.ultralytics.distill import distill_student
    from edgekd.detectors.ultralytics.loop import Loop

    torch.set_num_threads(threads)
    stamps: list[float] = []
    follow = Loop.run_callbacks

    def stamped(loop: Any, event: str) -> None:
        if event == "on_train_batch_end":
            stamps.append(time.perf_counter())
        follow(loop, event)

    Loop.run_callbacks = stamped
    asked = parse_table(Distill, dict(step), "step")
    paths = (Path(teacher), Path(out), Path(data))
    progress = PlainProgress(interval_s=30)
    began = time.perf_counter()
    frames = teachers_frames(Path(teacher), Path(data), asked, progress) if asked.unlabelled else ()
    labelling = time.perf_counter() - began
    done = distill_student(*paths, asked, Path(state), True, device, progress, frames)
    exported(out, Path(out).with_suffix(".onnx"), asked.image_size)
    found = {"parameters": done.parameters, "epochs": done.epochs, "seconds": labelling + done.seconds}
    return {**found, "step_seconds": gap(stamps)}


def teachers_frames(teacher: Path, data: Path, step: Distill, progress: Progress) -> tuple[Sample, ...]:
    """The step's unlabelled frames with what the teacher sees in them."""
    from edgekd.builds.stages.base import Stages
    from edgekd.builds.stages.train import teachers_labels

    with tempfile.TemporaryDirectory() as folder:
        stages = Stages.within(Path(folder), False, progress)
        return teachers_labels(stages, step, teacher, load_dataset(data), trust=True)


def ultralytics_job(
    start: str,
    teacher: str | None,
    out: str,
    data: str,
    settings: Mapping[str, Any],
    minutes: float | None,
    device: str,
    threads: int,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train with Ultralytics' own distillation, as long or as often, and export the last moving average.

    Without a teacher, alone. more: settings of Ultralytics' `train`.
    """
    import torch
    from ultralytics import YOLO

    from edgekd.detectors.torch_support import parameters_in

    torch.set_num_threads(threads)
    stamps: list[float] = []
    size = settings["image_size"]
    hardware = {"amp": False, "workers": 0} if device == "cpu" else {"amp": "bf16", "cache": "ram"}
    asked = {"epochs": settings["epochs"], "batch": settings["batch"], "imgsz": size, "seed": settings["seed"]}
    # Nothing is validated while it trains, as with edgekd: its time goes into training alone.
    quietly = {"val": False, "plots": False, "project": str(Path(out).parent), "name": Path(out).stem, "exist_ok": True}
    yolo = YOLO(start)
    yolo.add_callback("on_train_batch_end", lambda trainer: stamps.append(time.perf_counter()))
    yolo.add_callback("on_train_start", lambda trainer: stamps.append(time.perf_counter()))
    # On a CPU it takes one core fewer than there are; edgekd takes all.
    yolo.add_callback("on_train_start", lambda trainer: torch.set_num_threads(threads))
    yolo.train(
        data=data,
        distill_model=teacher,
        device=device,
        time=minutes / 60 if minutes else None,
        **{**asked, **hardware, **quietly, **more},
    )
    last = yolo.trainer.ema.ema
    student = getattr(last, "student_model", last).cpu()
    student.criterion = None
    for module in student.modules():
        module._forward_hooks.clear()
    torch.save({"model": student.half(), "train_args": {"imgsz": size, "task": "detect"}}, out)
    exported(out, Path(out).with_suffix(".onnx"), size)
    took = {"epochs": yolo.trainer.epoch + 1, "seconds": stamps[-1] - stamps[0], "step_seconds": gap(stamps)}
    return {"parameters": parameters_in(student), **took}


def exported(checkpoint: str, out: Path, size: int) -> None:
    """Write a checkpoint's float graph for images of this size."""
    from edgekd.detectors import load
    from edgekd.detectors.export import export

    with tempfile.TemporaryDirectory() as folder:
        resized = Path(folder, "sized.pt")
        sized(checkpoint, resized, size)
        export(load(resized, trust_checkpoint=True), out, OPSET)


def sized(checkpoint: str, out: Path, size: int) -> None:
    """Copy a checkpoint, said to be for frames of this size."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    content["train_args"] = {**(content.get("train_args") or {}), "imgsz": size}
    torch.save(content, out)


def gap(stamps: Sequence[float]) -> float | None:
    """The median time between two stamps."""
    gaps = [after - before for before, after in pairwise(stamps)]
    return statistics.median(gaps) if gaps else None


_MYSELF = (sys.executable, str(Path(__file__).resolve()), "--do")
_JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "teacher": teacher_job,
    "start": start_job,
    "edgekd": edgekd_job,
    "ultralytics": ultralytics_job,
}


# ------------------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class Summary:
    """The rows of one method, one per seed."""

    method: str
    rows: tuple[Row, ...]

    def mean(self, name: str) -> float | None:
        """The mean of a number over the seeds; None where there is none."""
        values = [value for row in self.rows if (value := getattr(row, name)) is not None]
        return statistics.fmean(values) if values else None

    def scores(self, split: str) -> dict[int | None, float]:
        """mAP50-95 by seed."""
        return {row.seed: row.map50_95[split] for row in self.rows}

    def gains(self, over: Summary, split: str) -> list[float]:
        """By how much it is better, seed by seed."""
        mine, theirs = self.scores(split), over.scores(split)
        return [mine[seed] - theirs[seed] for seed in mine if seed in theirs]


def summaries(rows: Sequence[Row]) -> dict[str, Summary]:
    """One per method that has a row, in their order; rows by seed, and failed ones do not count."""
    good = sorted((row for row in rows if not row.error), key=lambda row: row.seed or 0)
    names = dict.fromkeys(row.method for row in good)
    return {name: Summary(name, tuple(row for row in good if row.method == name)) for name in names}


def claims(found: Mapping[str, Summary], gain: float) -> list[dict[str, Any]]:
    """What is aimed at, of edgekd's shipped recipe, on the split test."""
    if not {OURS, NONE, TEACHER} <= found.keys():
        return []
    mine, none, teacher = found[OURS], found[NONE], found[TEACHER]
    ahead = statistics.fmean(mine.gains(none, "test"))
    rows = [(f"mAP50-95 at least {gain:.3f} above no distillation, mean of the seeds", ahead, ahead >= gain)]
    if BUILT_IN in found:
        least = min(mine.gains(found[BUILT_IN], "test"))
        rows.append(("above Ultralytics' own distillation with every seed; least gain", least, least > 0))
    whole = teacher.scores("test")[None]
    kept = statistics.fmean(mine.scores("test").values()) / whole if whole else 0.0
    rows.append(("at least 98 % of the teacher's mAP50-95, mean of the seeds", kept, kept >= 0.98))
    steps = [one.rows[0].step_seconds for one in (mine, none, teacher)]
    if all(steps):
        ratio = steps[0] / (steps[1] + steps[2])  # type: ignore[operator]
        text = f"a step, first seed, takes at most {OVERHEAD} times one without distillation and the teacher's pass"
        rows.append((text, ratio, ratio <= OVERHEAD))
    return [{"claim": text, "found": value, "holds": holds} for text, value, holds in rows]


def page(found: Mapping[str, Any], rows: Sequence[Row], means: Mapping[str, Summary]) -> list[str]:
    """The result as Markdown."""
    counts = found["images"]
    how = f"{found['minutes']:g} minutes" if found["minutes"] else f"{found['epochs']} epochs"
    lines = ["# Distillation, edgekd beside none and Ultralytics' own", "", f"`{found['command']}`", "", *_ABOUT, ""]
    lines.append(
        f"Trained for {how} on {counts['train']} images; scored on {counts['val']} (val) and {counts['test']} (test)."
    )
    if found["unlabelled"]:
        lines.append(
            f"Of the training images {found['unlabelled']:.0%} have no labels: only `{OURS_UNLABELLED}` sees them."
        )
    base = means.get(NONE)
    lines += ["", *table(_HEADER, [_cells(one, base) for one in means.values()])]
    lines += [f"\n{row.method}, seed {row.seed}: {row.error}" for row in rows if row.error]
    marks = {True: "yes", False: "**no**"}
    held = [[one["claim"], f"{one['found']:.4f}", marks[one["holds"]]] for one in found["claims"]]
    lines += ["", "## What is aimed at", "", *table(["", "found", "holds"], held), ""]
    packages = found["packages"].get("edgekd", {})
    lines.append(
        "- " + ", ".join(f"{name} {packages[name]}" for name in ("edgekd", "ultralytics", "torch") if name in packages)
    )
    gpus = ", ".join(gpu["name"] for gpu in found["host"]["gpus"])
    where = "the CPU" if found["device"] == "cpu" else gpus
    return [*lines, "", f"Trained on {where}.", "", *conditions_lines(found)]


_HEADER = (
    *("how", "seeds", "parameters", "epochs", "seconds", "step ms"),
    *("val mAP50-95", "gain", "rare", "test mAP50-95", "gain", "rare"),
)
_ABOUT = (
    "Means over the seeds; in brackets the lowest and the highest. Gain: over no distillation, seed by seed. Every way",
    "of a seed starts from the same student. Seconds: of training, without validation, which nobody does; a step: its",
    "median, of the teacher a forward pass of a batch. Rare: mAP50-95 of classes that are rare in the training split.",
    "What ships is the moving average at the end. edgekd's defaults may have been compared on val: test is the split",
    "to compare. mAP: edgekd's scorer, ONNX Runtime's CPU provider.",
)


def _cells(one: Summary, base: Summary | None) -> list[str]:
    """One line of the table; what is not known is a dash."""

    def spread(values: Sequence[float], sign: str = "") -> str:
        text = f"{statistics.fmean(values):{sign}.4f}"
        return text if len(values) < 2 else f"{text} ({min(values):{sign}.4f}..{max(values):{sign}.4f})"

    seeds = ", ".join(str(row.seed) for row in one.rows if row.seed is not None)
    took = [None if (value := one.mean(name)) is None else f"{value:,.4g}" for name in ("epochs", "seconds")]
    size, step = one.mean("parameters"), one.mean("step_seconds")
    cells = [seeds, f"{size:,.0f}" if size else None, *took, f"{step * 1000:.1f}" if step else None]
    for split in SPLITS:
        gains = one.gains(base, split) if base and one.method != NONE else []
        tail = [value for row in one.rows if (value := row.tail.get(split)) is not None]
        cells += [spread(list(one.scores(split).values())), spread(gains, "+") if gains else None]
        cells.append(f"{statistics.fmean(tail):.4f}" if tail else None)
    return [one.method, *(cell or "–" for cell in cells)]


def write(out: Path, bench: Bench, command: str) -> tuple[dict[str, Any], str]:
    """Write what there is so far as JSON and Markdown; both again."""
    given, means = bench.given, summaries(bench.rows)
    found = {
        "question": "how much better is a student that is told by a teacher, beside Ultralytics' own distillation?",
        "command": command,
        "images": {name: len(bench.split(name)) for name in ("train", *SPLITS)},
        **{name: getattr(given, name) for name in ("seeds", "device", "epochs", "minutes", "unlabelled")},
        **bench.conditions,
        "rows": [asdict(row) for row in bench.rows],
        "claims": claims(means, given.gain),
        "packages": bench.packages,
    }
    return found, write_pair(out, found, page(found, bench.rows, means))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "yolo11n-ppe.pt", help="the teacher")
    parser.add_argument("--student", default="yolo11n.yaml", help="a model by Ultralytics, or a checkpoint")
    parser.add_argument("--width", type=float, help="factor of the model's channels, such as 0.14")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe", help="with splits train, val and test")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--minutes", type=float, help="train this long, in place of a number of epochs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=640, help="of training, and of the graphs")
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="also edgekd with one thing changed at a time")
    parser.add_argument(
        "--unlabelled", type=float, default=0.0, help="share of the training images that loses its labels"
    )
    parser.add_argument("--device", default="cpu", help="where to train: cpu, or the number of a GPU")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--gain", type=float, default=0.05, help="mAP50-95 that is aimed at beyond no distillation")
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"), help="logs and finished rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "distillation.json")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own is to do
    given = parser.parse_args()
    paths = ("model", "data", "work", "out")
    if Path(given.student).is_file():
        given.student = str(Path(given.student).absolute())
    return argparse.Namespace(**{**vars(given), **{name: getattr(given, name).absolute() for name in paths}})


def main() -> int:
    """0 when no row failed; else 1."""
    given = parse()
    if given.do:
        return answer(_JOBS, given.do)
    use_cores(given.threads)
    for folder in (given.work, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    names = (
        "student",
        "width",
        "epochs",
        "minutes",
        "batch",
        "image_size",
        "images",
        "unlabelled",
        "device",
        "threads",
    )
    shown = {**vars(given), "student": Path(given.student).name, "unlabelled": given.unlabelled or None}
    asked = [f"--{name.replace('_', '-')} {value}" for name in names if (value := shown[name]) is not None]
    asked += [f"--model {given.model.name}", "--seeds", *map(str, given.seeds), *(["--ablation"] * given.ablation)]
    command = f"python bench/distillation.py {' '.join(asked)}"
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        bench = Bench(given, Path(scratch), Row)
        try:
            for _ in bench.run():
                write(given.out, bench, command)
        except JobError as error:  # without a teacher there is nothing to compare
            raise SystemExit(str(error)) from error
        _, text = write(given.out, bench, command)
    print(text)
    return 1 if any(row.error for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
