"""Common parts of training benchmarks: rows that survive an interruption, jobs in their own processes, page parts.

A row is one trained detector: `method`, `seed`, mAP50-95 and mAP50 by split, further numbers, and `error` if it
failed.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common import SHARED, SPLITS, copy_data, detector_in, exported, ultralytics_environment, without_folders
from frame import IMAGES, Document, FinishedRows, Given, Job, Option, Result, in_process, last_json, spread

from edgekd.builds.recipe import load_recipe
from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import EdgeKDError
from edgekd.core.progress import SILENT, PlainProgress, Progress
from edgekd.core.toml import parse_table
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset, Sample, Split
from edgekd.evaluation.coco import Score

Way = tuple[str, "int | None", Callable[[], Document]]  # method, seed, and the function that makes the row
DEVICE = Option("--device", "cpu", "where to train: cpu, or the number of a GPU")
SEEDS = Option("--seeds", [0, 1, 2])
MODEL = SHARED / "models" / "yolo11n-ppe.pt"
TRAINING_STEPS = ("distill", "recover", "quant_aware_distill")


def options(work: str, model: str, *, epochs: int, batch: int, default: Path = MODEL) -> tuple[Option, ...]:
    """Return the common options of training benchmarks. model: help text of `--model`."""
    return (
        Option("--model", default, model),
        Option("--data", SHARED / "data" / "ppe", "with splits train, val and test"),
        Option("--epochs", epochs),
        Option("--batch", batch),
        Option("--image-size", 640, "of training, and of the graphs"),
        IMAGES,
        Option("--work", Path("runs") / work, "logs and finished rows"),
    )


class JobError(Exception):
    """A process failed. The message is the last line of its output."""


class Trainings:
    """Base class of training benchmarks. Each row is made in its own processes.

    asked: names of options that must be equal, like the model, for a run to continue with earlier rows; numbers: names
    of a row's numbers; required: the method whose failure ends the run, as the others are compared with it.
    """

    asked: tuple[str, ...]
    numbers: tuple[str, ...]
    required: str | None = None

    def __init__(self, given: Given) -> None:
        for name in ("model", "data", "work"):
            setattr(given, name, getattr(given, name).absolute())
        given.device = getattr(given, "device", "cpu")
        self.given = given
        self.progress = PlainProgress(interval_s=30)
        settings = {name: getattr(given, name) for name in self.asked}
        settings["model"] = file_sha256(given.model)
        self.kept = FinishedRows(given.work / "rows.json", settings, given.threads)
        self.rows, self.packages = self.kept.rows, self.kept.packages
        self.scored: Dataset = load_dataset(given.data)
        self.data = given.work / "data" / "data.yaml"
        if not self.data.is_file():  # written last
            shutil.rmtree(self.data.parent, ignore_errors=True)
            copy_data(given.data, self.data.parent, given.images, getattr(given, "unlabelled", 0.0))
        hidden = {} if given.device != "cpu" else {"CUDA_VISIBLE_DEVICES": ""}
        threads = {"OMP_NUM_THREADS": str(given.threads)}  # unless it is set, Ultralytics sets it to 1
        self.environment = {**ultralytics_environment(given.scratch), **hidden, **threads}

    # For subclasses

    def ways(self) -> Iterator[Way]:
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        return {}

    def finish(self) -> None:
        """Make measurements that need all rows."""

    def notes_of(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        """Return the fields of a row from the scores by split."""
        return {name: {split: getattr(one, name) for split, one in scores.items()} for name in ("map50_95", "map50")}

    # The run

    @classmethod
    def run(cls, given: Given) -> Iterator[Result]:
        return cls(given).documents()

    def documents(self) -> Iterator[dict[str, Any]]:
        """Make every row that is missing, and yield the result after each."""
        for method, seed, make in self.ways():
            if self.missing(method, seed):
                self._add_made(method, seed, make)
                yield self.document()
        self.finish()
        yield self.document()

    def document(self) -> dict[str, Any]:
        return {
            "images": {name: len(self.split(name)) for name in ("train", *SPLITS)},
            **self.kept.conditions,
            "rows": self.rows,
            "packages": self.packages,
            **self.result(),
        }

    def split(self, name: str) -> Split:
        """Return a split as it is scored: its first `--images` images."""
        whole = self.scored.split(name)
        return replace(whole, samples=whole.samples[: self.given.images])

    def row(self, method: str, seed: int | None = None, **known: Any) -> Document:
        """Return a row. Numbers that are not in `known` are None."""
        empty: dict[str, Any] = {**dict.fromkeys(self.numbers), "map50_95": {}, "map50": {}, "error": None}
        return Document({"method": method, "seed": seed, **empty, **known})

    def missing(self, method: str, seed: int | None = None) -> bool:
        return not any(row.method == method and row.seed == seed for row in self.rows)

    def add(self, row: Document) -> None:
        self.kept.add(row)
        scores = ", ".join(f"{split} {score:.4f}" for split, score in row.map50_95.items())
        self.progress.note(f"{row.method}, seed {row.seed}: {row.error or scores}")

    def _add_made(self, method: str, seed: int | None, make: Callable[[], Document]) -> None:
        try:
            row = make()
        except (JobError, EdgeKDError) as error:
            if method == self.required:
                raise SystemExit(str(error)) from error
            folders = [value for value in vars(self.given).values() if isinstance(value, Path)]
            row = self.row(method, seed, error=without_folders(str(error), *folders)[:300])
        self.add(row)

    def with_scores(self, row: Document, graph: Path) -> Document:
        """Return the row with the scores of its graph on every split."""
        detector = detector_in(graph)
        scores = {name: detector.evaluation(self.split(name)).score for name in SPLITS}
        return Document(row, **self.notes_of(scores))

    def bundle_scores(self, name: str, bundle: Path) -> dict[str, dict[str, float]]:
        """Score a bundle with `edgekd eval`. Return its scores by name and split. Raises JobError."""
        asked = ("eval", bundle, "--data", self.data)
        found = {split: self.edgekd(f"{name}-{split}", *asked, "--split", split) for split in SPLITS}
        return {key: {split: score[key] for split, score in found.items()} for key in ("map50_95", "map50")}

    def job(self, name: str, job: Job, environment: str = "edgekd", **arguments: Any) -> dict[str, Any]:
        """Run a job in its own process and return its result. Raises JobError."""
        arguments |= {"device": self.given.device, "threads": self.given.threads}
        took = self.process(name, in_process(job, **arguments))
        self.packages[environment] = took.pop("packages")
        return took

    def process(self, name: str, command: Sequence[str]) -> dict[str, Any]:
        """Run a command with its output in the log `name`. Return the JSON object on its last line. Raises JobError."""
        log = self.given.work / f"{name}.log"
        self.progress.note(f"{name}: running, see {log} ...")
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(command, env=self.environment, cwd=self.given.work, stdout=output, stderr=output)
        text = log.read_text("utf-8")
        if done.returncode:
            killed = f"\nkilled by signal {-done.returncode}" if done.returncode < 0 else ""
            raise JobError(((text + killed).strip() or "no output").splitlines()[-1])
        return last_json(text)

    def edgekd(self, name: str, *arguments: object, accepted: Container[int] = (0,)) -> dict[str, Any]:
        """Run an edgekd command with its messages in the log `name`. Return its JSON output. Raises JobError."""
        log = self.given.work / f"{name}.log"
        command = [sys.executable, "-m", "edgekd", *map(str, arguments), "--json"]
        with log.open("w", encoding="utf-8") as messages:
            done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=messages, text=True)
        if done.returncode not in accepted:
            raise JobError(log.read_text("utf-8").strip().rsplit("\n", 1)[-1])
        return dict(json.loads(done.stdout))


def seconds_of_training(built: Mapping[str, Any]) -> float:
    """Return the total seconds of a build's training stages."""
    return float(sum(each["seconds"] for each in built["stages"] if each["name"] in TRAINING_STEPS))


def none_failed(found: Document) -> bool:
    return not any(row.error for row in found.rows)


def by_method(rows: Iterable[Document]) -> dict[str, list[Document]]:
    good = [row for row in rows if not row.error]
    return {
        name: sorted((row for row in good if row.method == name), key=lambda row: row.seed or 0)
        for name in dict.fromkeys(row.method for row in good)
    }


def mean(rows: Sequence[Document], name: str) -> float | None:
    """Return the mean of a number over the rows that have it; None if none has."""
    values = [value for row in rows if (value := row.get(name)) is not None]
    return statistics.fmean(values) if values else None


def scores(rows: Sequence[Document], split: str) -> list[float]:
    return [row.map50_95[split] for row in rows]


def mean_score(rows: Sequence[Document], split: str) -> float:
    """Return the mean mAP50-95 of the rows; NaN without rows."""
    return statistics.fmean(scores(rows, split)) if rows else float("nan")


def seeds_of(rows: Sequence[Document]) -> str:
    return ", ".join(str(row.seed) for row in rows if row.seed is not None) or "–"


def spreads(rows: Sequence[Document]) -> str:
    return " | ".join(spread(scores(rows, split)) for split in SPLITS)


def failures(found: Document) -> list[str]:
    return [f"{row.method}, seed {row.seed}: {row.error}" for row in found.rows if row.error]


def epochs_line(found: Document) -> str:
    """Return a sentence with the epochs and the numbers of training and scored images."""
    counts = found.images
    return (
        f"{found.epochs} epochs of {counts.train} images of {found.image_size} pixels; scored on "
        f"{counts.val} (val) and {counts.test} (test)."
    )


def trained_on(found: Document) -> str:
    gpus = ", ".join(gpu.name for gpu in found.host.gpus)
    return f"Trained on {'the CPU' if found.device == 'cpu' else gpus}."


def shipped() -> Distill:
    """Return the step of the shipped recipe `distill`."""
    return load_recipe("distill").only(Distill)


def beside_objects(step: Distill) -> Distill:
    """Return the step with a single stage and only the losses that cached objects allow: classes and boxes."""
    weights = {name: max(getattr(stage.weights, name) for stage in step.stages) for name in ("classes", "boxes")}
    return replace(step, stages=(DistillStage("objects", 1.0, Weights(**weights)),), teacher="cached")


def on_labels(step: Distill) -> Distill:
    return replace(step, stages=(DistillStage("none", 1.0, Weights()),))


def step_table(step: Any) -> dict[str, Any]:
    """Return a step as a TOML table: its fields that are not None."""
    return {name: value for name, value in asdict(step).items() if value is not None}


def count_cpu_time() -> None:
    """Replace `time.time` in this process by CPU seconds of all threads, so that trainings are limited by CPU time."""
    time.time = time.process_time


def settings_of(given: Given, seed: int) -> dict[str, Any]:
    return {"epochs": given.epochs, "batch": given.batch, "image_size": given.image_size, "seed": seed}


def export_sized(checkpoint: str | Path, out: Path, size: int) -> None:
    """Export a checkpoint as a float graph for images of this size."""
    with tempfile.TemporaryDirectory() as folder:
        resized = Path(folder, "sized.pt")
        sized(checkpoint, resized, size)
        exported(resized, out, trust_checkpoint=True)


def sized(checkpoint: str | Path, out: Path, size: int) -> None:
    """Copy a checkpoint with this image size in its training arguments."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    content["train_args"] = {**(content.get("train_args") or {}), "imgsz": size}
    torch.save(content, out)


def gap(stamps: Sequence[float]) -> float | None:
    gaps = [after - before for before, after in pairwise(stamps)]
    return statistics.median(gaps) if gaps else None


def start_job(step: Mapping[str, Any], out: str, data: str, **_: Any) -> dict[str, Any]:
    """Write the initial checkpoint of a seed's methods. Return parameters and multiply-adds."""
    import torch
    from pruning import sizes_of

    from edgekd.detectors.ultralytics.distill import student_network

    settings = parse_table(Distill, dict(step), "start")
    network = student_network(settings, load_dataset(Path(data)).classes, trust=True)
    torch.save({"model": network, "train_args": {"imgsz": settings.image_size, "task": "detect"}}, out)
    return sizes_of(network, settings.image_size)


def edgekd_job(
    step: Mapping[str, Any],
    teacher: str,
    out: str,
    data: str,
    state: str,
    device: str,
    threads: int,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Train with edgekd and export. Return parameters, epochs, updates, `seconds` and `step_seconds`.

    cpu_time: whether minutes and seconds are CPU time. The teacher's labelling and predictions count towards the
    minutes.
    """
    import torch

    from edgekd.detectors.ultralytics.distill import distill_student
    from edgekd.detectors.ultralytics.loop import Loop

    torch.set_num_threads(threads)
    if cpu_time:
        count_cpu_time()
    stamps: list[float] = []
    follow = Loop.run_callbacks

    def stamped(loop: Any, event: str) -> None:
        if event == "on_train_batch_end":
            stamps.append(time.time())
        follow(loop, event)

    Loop.run_callbacks = stamped
    settings = parse_table(Distill, dict(step), "step")
    paths = (Path(teacher), Path(out), Path(data))
    progress = PlainProgress(interval_s=30)
    began = time.time()
    frames = teachers_frames(Path(teacher), Path(data), settings, progress) if settings.unlabelled else ()
    cache = Path(out).with_suffix(".predictions")
    cache.unlink(missing_ok=True)
    if settings.uses_cache:
        detect_objects(Path(teacher), Path(data), frames, settings, cache, device)
    predicting = time.time() - began
    if settings.minutes:
        settings = replace(settings, minutes=settings.minutes - predicting / 60)
    done = distill_student(*paths, settings, Path(state), True, device, progress, frames, cache)
    export_sized(out, Path(out).with_suffix(".onnx"), settings.image_size)
    found = {"parameters": done.parameters, "epochs": done.epochs, "updates": done.updates}
    return {**found, "seconds": predicting + done.seconds, "step_seconds": gap(stamps)}


def detect_objects(
    teacher: Path, data: Path, frames: Sequence[Sample], step: Distill, cache: Path, device: str
) -> None:
    """Fill the cache of the teacher's objects, as a training would."""
    from edgekd.data.images import readable_samples
    from edgekd.detectors.cached_teacher import cached_objects
    from edgekd.detectors.family import load_teacher
    from edgekd.detectors.torch_support import one_device

    samples = readable_samples(load_dataset(data).split("train").samples)
    network = load_teacher(teacher, trust=True).to(one_device(device.split(",")[0]))
    cached_objects(network, (*samples, *frames), cache, step.max_cache_bytes, SILENT)


def teachers_frames(teacher: Path, data: Path, step: Distill, progress: Progress) -> tuple[Sample, ...]:
    """Return the step's unlabelled frames with the teacher's labels."""
    from edgekd.builds.stages import label
    from edgekd.builds.stages.base import StageContext

    with tempfile.TemporaryDirectory() as folder:
        context = StageContext.within(Path(folder), False, progress)
        return label.run(context, step, teacher, load_dataset(data), trust=True)


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
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Train with Ultralytics' own distillation for these epochs or minutes, and export the last moving average.

    teacher: None to train without distillation; more: further arguments of `train`; cpu_time: whether minutes are CPU
    time. As in edgekd's trainings, images are in memory, and on CPUs channels-last layout and bfloat16 are used.
    """
    import torch
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    from edgekd.detectors.torch_support import fast_in_bfloat16, parameters_in

    torch.set_num_threads(threads)
    if cpu_time:
        count_cpu_time()
    stamps: list[float] = []
    size = settings["image_size"]
    hardware = {"amp": False, "workers": 0} if device == "cpu" else {"amp": "bf16"}
    hardware["cache"] = "ram"
    length = {"epochs": settings["epochs"], "batch": settings["batch"], "imgsz": size, "seed": settings["seed"]}
    # No validation during training, as with edgekd: all time is for training.
    quietly = {"val": False, "plots": False, "project": str(Path(out).parent), "name": Path(out).stem, "exist_ok": True}

    def speed_up(trainer: Any) -> None:
        if device == "cpu":
            trainer.model.to(memory_format=torch.channels_last)
            fast = fast_in_bfloat16(torch.device("cpu"))
            trainer.model.forward = torch.autocast("cpu", torch.bfloat16, enabled=fast)(trainer.model.forward)

    class Trainer(DetectionTrainer):
        """Trains the loaded network itself: a pruned one cannot be rebuilt from its YAML."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return weights

    yolo = YOLO(start)
    yolo.add_callback("on_train_start", speed_up)
    yolo.add_callback("on_train_batch_end", lambda trainer: stamps.append(time.time()))
    yolo.add_callback("on_train_start", lambda trainer: stamps.append(time.time()))
    # On CPUs Ultralytics uses one core less than available; edgekd uses all.
    yolo.add_callback("on_train_start", lambda trainer: torch.set_num_threads(threads))
    time_h = minutes / 60 if minutes else None
    settings = {**length, **hardware, **quietly, **more, "device": device, "time": time_h}
    yolo.train(data=data, distill_model=teacher, trainer=Trainer, **settings)
    last = yolo.trainer.ema.ema
    student = getattr(last, "student_model", last).cpu()
    student.criterion = None
    for module in student.modules():
        module._forward_hooks.clear()
    torch.save({"model": student.half(), "train_args": {"imgsz": size, "task": "detect"}}, out)
    export_sized(out, Path(out).with_suffix(".onnx"), size)
    took = {
        "epochs": yolo.trainer.epoch + 1,
        "updates": yolo.trainer.ema.updates,
        "seconds": stamps[-1] - stamps[0],
        "step_seconds": gap(stamps),
    }
    return {"parameters": parameters_in(student), "step_seconds": gap(stamps), **took}
