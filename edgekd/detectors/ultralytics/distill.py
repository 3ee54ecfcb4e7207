"""Distillation of Ultralytics detectors: Ultralytics' training, with distillation losses.

This module has the networks, the loop and the files. All losses beside the loss on labels are in `StudentLoss`
(`detectors/ultralytics/loss.py`); samples, teacher and settings are in `StudentLesson`.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgekd.compress.distillation import text
from edgekd.compress.distillation.gradient_conflict import projector
from edgekd.compress.distillation.loss_terms import shared_classes
from edgekd.compress.distillation.prediction_cache import SUFFIX
from edgekd.compress.distillation.text import class_texts
from edgekd.compress.steps import Distill
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import readable_samples
from edgekd.data.types import Sample
from edgekd.detectors.cached_teacher import cached_objects
from edgekd.detectors.family import load_teacher
from edgekd.detectors.results import DistillationRecord
from edgekd.detectors.teacher import paired_aids
from edgekd.detectors.torch_support import (
    fast_in_bfloat16,
    fitting_batches,
    one_device,
    parameters_in,
    read_state,
    require_device,
    warmup_factor,
    write_content,
)
from edgekd.detectors.ultralytics.checkpoint import write_checkpoint
from edgekd.detectors.ultralytics.classes import with_classes
from edgekd.detectors.ultralytics.detector import STUDENTS, is_transformer, unfused_network
from edgekd.detectors.ultralytics.features import tap_points
from edgekd.detectors.ultralytics.loop import Batches, Loop, base_settings, quiet, ultralytics_label
from edgekd.detectors.ultralytics.loss import WEIGHT_PREFIX, StudentLesson, StudentLoss, install_loss
from edgekd.detectors.ultralytics.objects import labels_with_objects
from edgekd.detectors.ultralytics.upstream import (
    RANK,
    DetectionModel,
    RTDETRDetectionModel,
    init_seeds,
    unwrap_model,
    yaml_model_load,
)
from edgekd.graph.runtimes.types import import_problem

EPOCHS_SEED = 1009
"""Difference of the seeds of two epochs; larger than the number of processes."""


def distill_student(
    teacher: Path,
    out: Path,
    data: Path,
    step: Distill,
    state: Path,
    trust: bool = False,
    device: str | None = None,
    progress: Progress = SILENT,
    frames: Sequence[Sample] = (),
    cache: Path | None = None,
) -> DistillationRecord:
    """Train the student of `step` with a teacher, and write it to `out`, an Ultralytics checkpoint.

    Arguments: `Family.distill`. The written student has the moving average of its weights after the last epoch: no
    epoch is selected, so no validation split is needed. state: written after every epoch; training resumes from it, so
    it must come from the same arguments. device: `cpu`, `0`, or `0,1` for one process on each of two GPUs; None for a
    GPU if there is one. frames: their share of each batch is the step's `unlabelled_share`. cache: file of the
    teacher's objects; None for one beside `state`.
    """
    _require_one_process(step, device)
    require_device(device)
    if step.conflict:
        projector()  # raises SpecError if its library is missing
    dataset = load_dataset(data)
    samples = readable_samples(dataset.split("train").samples, progress)
    network_of_teacher = load_teacher(teacher, trust)
    pairs = shared_classes(dataset.classes, network_of_teacher.classes, step.same_classes)
    frames_of_teacher = network_of_teacher.preprocess
    step = replace(step, image_size=step.image_size or max(frames_of_teacher.height, frames_of_teacher.width))
    network = student_network(step, dataset.classes, trust)
    if is_transformer(network):
        _require_no_anchors(step)
        step = replace(step, amp=False)  # half precision is too coarse for boxes: see `full_precision`
    trained = deepcopy(network)
    texts = torch.from_numpy(class_texts(dataset.classes, text.minilm(), step.prompts)) if step.text else None
    taps = tap_points(trained)
    trained.aids = paired_aids(taps.widths, taps.strides, network_of_teacher, step, texts, live=not step.uses_cache)
    lesson = StudentLesson(
        (*samples, *frames), dataset.classes, step, network_of_teacher, pairs, state, frames=len(frames)
    )
    if not (read_state(state) or {}).get("finished"):
        if step.uses_cache:
            lesson = _with_objects(lesson, cache or state.with_suffix(SUFFIX), device, progress)
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch, quiet(), fitting_batches():
            trainer = _StudentTrainer.of(lesson, _settings(step, scratch, device), progress)
            trainer.model = trained
            _train(trainer)
    done = read_state(state)
    assert done is not None, "it is written after every epoch"
    network.load_state_dict({name: value for name, value in done["ema"].items() if not name.startswith("aids.")})
    args = {"task": "detect", "imgsz": step.image_size, "epochs": step.epochs, "batch": step.batch, "seed": step.seed}
    write_checkpoint(network, args, out)
    sizes = (parameters_in(network), parameters_in(network_of_teacher))
    counts = (done["epoch"] + 1, done["updates"])
    return DistillationRecord(*counts, tuple(done["losses"]), done["seconds"], tuple(done["weights"]), *sizes)


def _with_objects(lesson: StudentLesson, cache: Path, device: str | None, progress: Progress) -> StudentLesson:
    """Return a lesson with the teacher's objects instead of the teacher; they are computed if the cache lacks them."""
    assert lesson.teacher is not None
    teacher = lesson.teacher.to(one_device(device.split(",")[0] if device else None))
    objects = cached_objects(teacher, lesson.samples, cache, lesson.step.max_cache_bytes, progress)
    return replace(lesson, teacher=None, objects=objects)


def initialize_student(step: Distill, classes: tuple[str, ...], out: Path, trust: bool = False) -> None:
    """Write the checkpoint of an untrained student, with the step's `image_size`. Raises SpecError."""
    write_checkpoint(student_network(step, classes, trust), {"task": "detect", "imgsz": step.image_size}, out)


def _train(trainer: Any) -> None:
    """Run the training; with several GPUs in one process for each.

    Raises SpecError if cloudpickle is missing for that, CompressError if a process fails.
    """
    several = "," in str(trainer.args.device)
    if several and (problem := import_problem("cloudpickle")):  # else Ultralytics would install it
        raise SpecError("training on several GPUs needs cloudpickle", found=problem, fix="pip install cloudpickle")
    try:
        trainer.train()
    except subprocess.CalledProcessError as error:
        found = f"exit status {error.returncode}; their output is above"
        raise CompressError("training on several GPUs: a process failed", found=found) from error


def _require_one_process(step: Distill, device: str | None) -> None:
    for name in ("repeat", "unlabelled", "conflict"):
        if getattr(step, name) and device and "," in device:
            fix = "leave it out, or name one GPU"
            raise SpecError(f"distill: {name} is for one GPU", found=f"device {device}", fix=fix)


def _require_no_anchors(step: Distill) -> None:
    """Raise SpecError for settings that need anchors, which an RT-DETR does not have."""
    weights = [stage.weights for stage in step.stages]
    for name, given, fix in (
        ("relations", any(each.relations for each in weights), "leave it out"),
        (
            'features = "weighted"',
            step.features == "weighted" and any(each.features for each in weights),
            'features = "correlation" or "channels"',
        ),
        ("text", bool(step.text), "leave it out"),
        ("unlabelled", step.unlabelled is not None, "leave it out"),
    ):
        if given:
            expected = "a student with anchors, such as a YOLO"
            raise SpecError(f"distill: {name}", expected=expected, found="an RT-DETR as student", fix=fix)


def student_network(step: Distill, classes: tuple[str, ...], trust: bool) -> Any:
    """Return the untrained student: from a checkpoint, or with random weights. Raises SpecError."""
    if step.student is None:
        raise SpecError(
            "distillation: no student", expected="a .pt checkpoint or a model such as yolo11n.yaml", fix="name one"
        )
    torch.manual_seed(step.seed)
    if step.student.endswith(".pt"):
        if step.width is not None:
            raise SpecError(f"{step.student}: has its width", fix="leave out width, or name a .yaml model")
        network, _ = unfused_network(Path(step.student), trust, STUDENTS)
        return with_classes(network, classes)
    name = step.student if step.student.endswith((".yaml", ".yml")) else f"{step.student}.yaml"
    try:
        with quiet():
            described = _description(name, step.width)
            kind = RTDETRDetectionModel if described["head"][-1][2] == "RTDETRDecoder" else DetectionModel
            network = kind(described, nc=len(classes), verbose=False)
    except Exception as error:  # a description names functions to call, so it can raise anything
        expected = "a .pt checkpoint, a model by Ultralytics such as yolo11n.yaml, or a description in a .yaml file"
        raise SpecError(f"{step.student}: no student", expected=expected, found=str(error)[:200]) from error
    head, heads = type(network.model[-1]).__name__, STUDENTS[type(network).__name__]
    if head not in heads:
        raise SpecError(f"{step.student}: not a box detector", expected=" or ".join(heads), found=head)
    network.names = dict(enumerate(classes))
    return network


def _description(name: str, width: float | None) -> dict[str, Any]:
    """Return Ultralytics' description of a model, with `width` instead of the width of its scale; depth is kept."""
    model: dict[str, Any] = yaml_model_load(name)
    if width is None:
        return model
    if "scales" not in model:
        return {**model, "width_multiple": width}
    depth, _, max_channels = model["scales"].get(model.get("scale")) or next(iter(model["scales"].values()))
    return {**model, "scales": {"own": [depth, width, max_channels]}, "scale": "own"}


class _StudentTrainer(Loop):
    """Ultralytics' training of a detector, which writes its state to the lesson's file after every epoch."""

    remedy = "lower learning_rate, or the weights of the stages"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.weights: list[dict[str, float]] = []
        self._state: dict[str, Any] | None = None
        self._batches: Batches | None = None
        super().__init__(*arguments, **named)

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> Any:
        dataset = super().build_dataset(img_path, mode, batch)
        classes, objects = len(self.lesson.classes), self.lesson.objects
        if self.lesson.frames:
            dataset.labels = [ultralytics_label(sample, classes) for sample in img_path]
        if objects is not None:
            dataset.labels = labels_with_objects(dataset.labels, objects, classes)
        return dataset

    def get_dataloader(self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode == "train" and (order := self.lesson.order(loader.batch_size)) is not None:
            self._batches = loader.batch_sampler.sampler = Batches(order, loader.batch_size)
        return loader

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self._batches:
            self._batches.next = self.epoch  # discards the batches that were prefetched

    def share_done(self, *, with_current: bool = False) -> float:
        """Return the share of the training that is done: of its time if that is set, else of its batches.

        with_current: Count the current batch as done.
        """
        if self.args.time:
            spent: float = time.time() - self.train_time_start
            return min(spent / float(self.args.time * 3600), 1.0)
        return (self.steps_done - (not with_current)) / self.steps

    def rate_factor(self) -> float:
        """Return the factor of the learning rate at this update: Ultralytics' schedule, with a warm-up in updates.

        If a time is set, the rate falls with the time: by epochs, a few epochs with a shortened last one would end at a
        high rate.
        """
        share = self.share_done(with_current=True)
        schedule = 1 - share * (1 - self.args.lrf) if self.args.time else super().rate_factor()
        return schedule * warmup_factor(self.ema.updates + 1, self.lesson.step.warmup_steps, share)

    def _setup_train(self) -> None:
        super()._setup_train()
        # Only after the moving average has copied the model, so that the teacher is not copied.
        student = unwrap_model(self.model)
        if self.device.type == "cpu":
            self._speed_up_on_cpu(student)
        self._loss = StudentLoss(student, self.lesson, self.share_done)
        install_loss(student, self._loss)
        if self._state:
            self._loss.restore(self._state["criterion"], self.start_epoch)

    def _speed_up_on_cpu(self, student: Any) -> None:
        """Use the channels-last layout and mixed precision, which Ultralytics does on GPUs only."""
        student.to(memory_format=torch.channels_last)
        if self.lesson.step.amp and fast_in_bfloat16(self.device):
            student.forward = torch.autocast("cpu", torch.bfloat16)(student.forward)

    def resume_training(self, ckpt: Any) -> None:
        """Resume from the lesson's state, if there is one."""
        self._state = state = read_state(self.lesson.state, self.device)
        if state is None:
            return
        unwrap_model(self.model).load_state_dict(state["network"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.losses, self.weights = state["losses"], state["weights"]
        self.start_epoch = state["epoch"] + 1
        # Otherwise shuffling and augmentation of the first epochs would repeat.
        seed = self.args.seed + 1 + RANK + EPOCHS_SEED * self.start_epoch
        init_seeds(seed, self.args.deterministic)
        self.train_loader.generator.manual_seed(seed)
        if self.args.time:  # the number is an estimate; the saved one is better than the initial one
            self.epochs = self.args.epochs = max(state["epochs"], self.start_epoch + 1)
            self._setup_scheduler()

    def run_callbacks(self, event: str) -> None:
        super().run_callbacks(event)
        if event == "on_train_start" and self._batches:
            self._batches.next = self.start_epoch
        if event == "on_train_start" and self._state:
            self.train_time_start -= self._state["seconds"]
        elif event == "on_train_epoch_start":
            self.start_epoch = 0  # so that the mean time of an epoch includes those before a resumption

    def _record_losses(self, losses: dict[str, float]) -> None:
        weights = {name: value for name, value in losses.items() if name.startswith(WEIGHT_PREFIX)}
        super()._record_losses({name: value for name, value in losses.items() if name not in weights})
        self.weights.append({name.removeprefix(WEIGHT_PREFIX): value for name, value in weights.items()})

    def save_model(self) -> bool:
        """Write the state for a resumption, atomically; return True."""
        if self.args.time:
            # Ultralytics would also stop after the estimated number of epochs.
            self.stop = self.share_done() >= 1
        student = unwrap_model(self.model)
        content = {
            "network": student.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": self._loss.state(),
            "losses": self.losses,
            "weights": self.weights,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "seconds": time.time() - self.train_time_start,
            "finished": bool(self.stop),
        }
        write_content(content, self.lesson.state)
        return True


def _settings(step: Distill, folder: str, device: str | None) -> dict[str, Any]:
    """Return the settings of Ultralytics' trainer that differ from its defaults."""
    half = step.amp and device != "cpu" and torch.cuda.is_available() and fast_in_bfloat16(torch.device("cuda"))
    rate: dict[str, Any] = {"optimizer": "auto"}
    if step.learning_rate is not None:
        rate = {"optimizer": "AdamW", "lr0": step.learning_rate}
    return {
        **base_settings(step, step.image_size, folder),
        **{"time": None if step.minutes is None else step.minutes / 60},
        **{**rate, "lrf": step.final_rate},
        **{"mosaic": step.mosaic, "close_mosaic": step.close_mosaic},
        # bfloat16 needs no scaling of losses, and no trial with a network, which Ultralytics would download.
        **{"amp": "bf16" if half else False},
        **{"device": device, "cache": "ram", "save": True},
    }
