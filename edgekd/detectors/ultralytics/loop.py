"""The training loop of every Ultralytics detector: Ultralytics' own trainer on edgekd's samples.

Loop, augmentation, moving average and detection loss are Ultralytics'; no code of its trainer is copied.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.core.progress import SILENT, Listener, PlainProgress, Progress
from edgekd.data.types import Sample
from edgekd.detectors.torch_support import require_finite
from edgekd.detectors.ultralytics.detector import is_transformer
from edgekd.detectors.ultralytics.upstream import (
    DEFAULT_CFG,
    LOGGER,
    RANK,
    DetectionTrainer,
    YOLODataset,
    get_default_callbacks,
    unwrap_model,
)

_LESSON = "edgekd"
"""Key of the lesson in a trainer's callbacks."""


@dataclass(frozen=True)
class Lesson:
    """The samples and classes of a training; subclasses add further data. It is passed to each training process."""

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]


class LabelledImages(YOLODataset):  # type: ignore[misc]
    """Samples read by edgekd, because Ultralytics' reader writes caches beside the user's files."""

    def get_img_files(self, img_path: Sequence[Sample]) -> list[str]:
        return [str(sample.image) for sample in img_path]

    def get_labels(self) -> list[dict[str, Any]]:
        return [ultralytics_label(sample) for sample in self.img_path]


def ultralytics_label(sample: Sample, classes: int | None = None) -> dict[str, Any]:
    """Return the labels of a sample in Ultralytics' format, without boxes around crowds.

    classes: number of classes; if given, boxes around crowds are included with the class number `classes + c`.
    """
    truth = sample.truth
    single = ~truth.crowd if classes is None else np.ones(len(truth), bool)
    corners, numbers = truth.boxes[single], (truth.classes + truth.crowd * (classes or 0))[single]
    low, high = corners[:, :2], corners[:, 2:]
    return {
        "im_file": str(sample.image),
        "cls": numbers[:, None].astype(np.float32),
        "bboxes": np.concatenate([(low + high) / 2, high - low], axis=1),
        "segments": [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


class StretchedImages(LabelledImages):
    """Samples for an RT-DETR, stretched to a square, like frames on the camera."""

    def load_image(self, i: int, *_: Any, **__: Any) -> Any:
        return super().load_image(i, rect_mode=False)


class Batches:
    """Sampler of the batches of each epoch, for epochs with repeated or mixed images.

    order: returns the samples' indices in an epoch, int64 [images], equally many in all epochs; size: images per batch;
    next: the epoch of the next pass.
    """

    def __init__(self, order: Callable[[int], NDArray[np.int64]], size: int) -> None:
        self.next = 0
        self._order, self._size = order, size
        self._count = -(-len(order(0)) // size)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(self.next)
        self.next += 1  # before the first batch, because workers prefetch
        for index in range(0, len(order), self._size):
            yield order[index : index + self._size].tolist()


class Loop(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' loop with edgekd's network, loss and samples, without validation.

    Every batch is a weight update. losses: the means of each epoch. steps, steps_done: number of batches in all epochs,
    and of started ones. remedy: the fix in the error for losses that are not finite. stage: name in progress messages.
    """

    remedy: str
    stage = "distill"

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: Mapping[str, Any] | None = None, _callbacks: Any = None
    ) -> None:
        """Called by `of`, and by Ultralytics in the processes that it starts, one per GPU."""
        if RANK != -1:  # one of several processes, which share the command's stdout
            sys.stdout = sys.stderr
            LOGGER.setLevel(logging.ERROR)
        self.lesson = _callbacks[_LESSON][0]
        self.progress: Progress = PlainProgress() if RANK == 0 else SILENT
        self.losses: list[dict[str, float]] = []
        self.steps = self.steps_done = 0
        self._ticks: Iterator[int] = iter(())
        threads = torch.get_num_threads()
        super().__init__(cfg, overrides=dict(overrides or {}), _callbacks=_callbacks)
        torch.set_num_threads(threads)  # Ultralytics sets one fewer than there are cores

    @classmethod
    def of(cls, lesson: Lesson, settings: Mapping[str, Any], progress: Progress) -> Any:
        """Return a trainer with these settings of Ultralytics.

        The lesson is stored in the callbacks, which are never called, because Ultralytics passes them to its processes.
        """
        callbacks = get_default_callbacks()
        callbacks[_LESSON] = [lesson]
        trainer = cls(overrides=settings, _callbacks=callbacks)
        trainer.progress = progress
        return trainer

    def run_callbacks(self, event: str) -> None:
        """Handle an event. Ultralytics' own callbacks, which upload and log, are not called."""
        if event == "on_train_start":
            self.steps = len(self.train_loader) * self.epochs
            self.steps_done = len(self.train_loader) * self.start_epoch
            left = self.steps - self.steps_done
            self._ticks = self.progress.items(range(left), self.stage, left)
            self._batch = self.batch_size
        elif event == "on_train_epoch_start":
            self._follow_batches()
        elif event == "on_train_batch_start":
            next(self._ticks, None)
            self.steps_done += 1
        elif event == "on_train_end":
            next(self._ticks, None)
        elif event == "on_train_epoch_end":
            self._record_losses({name: float(value) for name, value in self.tloss.items()})

    def rate_factor(self) -> float:
        """Return the factor of the learning rate at this update: Ultralytics' own schedule, by epochs."""
        return float(self.lf(self.epoch))

    def optimizer_step(self) -> None:
        """Update the weights, with the learning rate of this update."""
        factor = self.rate_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        super().optimizer_step()

    def _follow_batches(self) -> None:
        """Recompute step counts: if a GPU has too little memory, Ultralytics halves batches and restarts the epoch."""
        self.steps = len(self.train_loader) * self.epochs
        self.steps_done = len(self.train_loader) * self.epoch
        if self.batch_size != self._batch:
            self.progress.note(f"{self.stage}: too little memory for batches of {self._batch}, now {self.batch_size}")
            self._batch = self.batch_size

    def _record_losses(self, losses: dict[str, float]) -> None:
        require_finite(self.epoch, losses, float(self.loss.detach()), self.remedy)
        self.losses.append(losses)
        if isinstance(self.progress, Listener):
            self.progress.epoch(self.stage, self.epoch, losses)

    def get_dataset(self) -> dict[str, Any]:
        samples, names = self.lesson.samples, dict(enumerate(self.lesson.classes))
        return {"train": samples, "val": samples, "names": names, "nc": len(names), "channels": 3}

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> Any:
        settings = {"cache": self.args.cache, "hyp": self.args, "data": self.data, "batch_size": batch}
        kind = StretchedImages if is_transformer(unwrap_model(self.model)) else LabelledImages
        return kind(img_path, self.args.imgsz, **settings)

    def get_dataloader(self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        if mode == "val":
            return self.train_loader  # there is no validation, but the trainer needs a loader
        return super().get_dataloader(dataset_path, batch_size, rank, mode)

    def validate(self) -> tuple[dict[str, float], float]:
        return {}, 0.0


def base_settings(step: Any, side: int | None, folder: str) -> dict[str, Any]:
    """Return the settings of Ultralytics' trainer for every training: only its loop, without validation and plots.

    step: with `epochs`, `batch` and `seed`; side: side of the images in pixels; folder: for files of the trainer.
    """
    return {
        **{"task": "detect", "model": "edgekd.pt", "data": "edgekd.yaml", "save_dir": folder},
        **{"epochs": step.epochs, "batch": step.batch, "imgsz": side, "seed": step.seed},
        **{"val": False, "plots": False, "verbose": False, "patience": 0},
        # Otherwise gradients of several batches would be accumulated. `Loop.rate_factor` does the warm-up.
        **{"nbs": step.batch, "warmup_epochs": 0.0},
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Ultralytics' messages and progress bars: edgekd reports by `Progress`, and stdout is for results."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        LOGGER.setLevel(level)
