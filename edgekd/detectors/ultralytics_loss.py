"""What a student of Ultralytics' kind is trained by on a batch: the loss on its labels, and what its teacher says.

The losses are in `compress/`: here is where their ingredients come from, in networks that Ultralytics has built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.builds.recipe import Distill, Weights
from edgekd.data.long_tail import class_weights, epoch_order, instances, repeat_factors
from edgekd.data.pseudo_labels import mixed_order
from edgekd.data.types import Sample

# First: it says what is missing where PyTorch or Ultralytics are.
from edgekd.detectors.ultralytics_loop import Lesson  # isort: skip

import torch

from edgekd.compress.distillation.boxes import best_inside, corners, ignored
from edgekd.compress.distillation.gradient_conflict import reconcile
from edgekd.compress.distillation.loss_terms import Comparison, Said
from edgekd.compress.distillation.loss_weighting import Weighing
from edgekd.compress.distillation.region_text import confidence, contrastive_loss, modality_weights, relation_loss
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.ultralytics_seen import Watched

LEVELS = tuple(entry.name for entry in fields(Weights))
WEIGHT = "weight_"
"""What the name of a number begins with that is a weight, or says where one comes from, and no loss."""


@dataclass(frozen=True)
class StudentLesson(Lesson):
    """What a student is trained on and by.

    state: the file in which its training is kept after every epoch; frames: how many samples, the last ones, have their
    labels from the teacher.
    """

    step: Distill
    teacher: Teacher
    pairs: tuple[tuple[int, int], ...]
    state: Path
    frames: int = 0

    @property
    def labelled(self) -> tuple[Sample, ...]:
        """The samples that people have labelled."""
        return self.samples[: len(self.samples) - self.frames]

    def class_weights(self) -> torch.Tensor | None:
        """How much each class counts, float32 [classes]; None where all count alike."""
        if not self.step.class_power:
            return None
        counts = instances((sample.truth for sample in self.labelled), len(self.classes))
        return torch.tensor(class_weights(counts, self.step.class_power), dtype=torch.float32)

    def order(self, batch: int) -> Callable[[int], NDArray[np.int64]] | None:
        """What an epoch shows, indices of samples by its number; None where that is every one once, in any order.

        batch: images a step. Epochs are equally long, for learning rates and times are planned by their length.
        """
        step, count = self.step, len(self.labelled)
        if not step.repeat and not self.frames:
            return None
        factors = repeat_factors([sample.truth for sample in self.labelled], len(self.classes), step.repeat)
        length = round(factors.sum())

        def labelled(epoch: int) -> NDArray[np.int64]:
            return np.resize(epoch_order(factors, step.seed, epoch), length)

        def mixed(epoch: int) -> NDArray[np.int64]:
            frames, share = np.arange(count, len(self.samples)), step.unlabelled_share
            return mixed_order(labelled(epoch), frames, batch, share, step.seed, epoch).flatten()

        return mixed if self.frames else labelled


@dataclass(frozen=True)
class Worded:
    """What the words of the classes say to a batch.

    loss: a scalar; sure: how sure the words are of each region, [n]; boxes [n, 4] in pixels of the input, and images
    [n], the number in the batch, of the regions.
    """

    loss: torch.Tensor
    sure: torch.Tensor
    boxes: torch.Tensor
    images: torch.Tensor


class StudentLoss:
    """The loss of a student on a batch: what Ultralytics trains on, and what its teacher says, stage by stage.

    Called by Ultralytics with the student's raw predictions. progress: gives the share of the training that is done.
    """

    def __init__(self, student: Any, lesson: StudentLesson, progress: Callable[[], float]) -> None:
        step, device = lesson.step, next(student.parameters()).device
        self._step, self._progress = step, progress
        self._labels = student.init_criterion()
        self._weighing = Weighing(step)
        self._told = any(stage.weights.any for stage in step.stages)
        self._classes, self._doubtful = len(lesson.classes), lesson.frames > 0
        self._words: Any = student.aids.words if step.text else None
        weights = lesson.class_weights()
        self._class_weights = None if weights is None else weights.to(device)
        if self._told or self._words or self._doubtful:
            self._student_seen = Watched(student)
        if self._told:
            self._teacher = lesson.teacher.to(device).to(memory_format=torch.channels_last)
            self._compare = Comparison(step, lesson.pairs, student.aids, self._class_weights)
        levels = (*LEVELS, *(WEIGHT + name for name in (*LEVELS, "teacher", "disagreement", "temperature")))
        words, cosine = ("text", f"{WEIGHT}text"), (f"{WEIGHT}cosine",)
        self._names = (*levels * self._told, *words * bool(step.text), *cosine * step.conflict)

    def __call__(self, found: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, part by part, times the batch's size; and each part, its weight, and what that follows from."""
        if self._doubtful:
            batch = self._without_doubtful(batch)
        labels, items = self._labels(found, batch)
        if not (self._told or self._words):
            return labels, items
        zero, progress = labels.new_zeros(()), self._progress()
        items |= {name: zero + (name == f"{WEIGHT}teacher") for name in self._names}
        stage = self._step.stage_at(progress)
        said = self._from_teacher(found, batch["img"], stage.weights, progress) if stage.weights.any else None
        worded = self._from_words(batch) if self._words else None
        losses = {**(said.losses if said else {}), **({"text": worded.loss} if worded else {})}
        if not losses:
            return torch.cat([labels, zero[None]]), items
        size, weights = len(batch["img"]), {}
        factors = self._weighing.factors(labels.sum() / size, losses, self._student_seen.neck)
        by_text, by_teacher = self._modalities(said, worded)
        if said:
            weights = self._weighing.of_teacher(stage, said, factors)
            weights |= {name: weights[name] * by_teacher for name in said.losses}
            weights |= {"disagreement": said.apart, "temperature": said.temperature}
        if worded:
            weights["text"] = self._step.text * factors["text"] * by_text
        total = sum((weights[name] * loss for name, loss in losses.items()), zero)
        items |= {name: loss.detach() for name, loss in losses.items()}
        items |= {f"{WEIGHT}{name}": zero + weight for name, weight in weights.items()}
        if self._step.conflict:
            both = {"labels": labels.sum(), "teacher": total * size}
            # Ultralytics calls backward on their sum, unscaled: without mixed precision, or with bfloat16.
            (cosine,) = reconcile(both, self._student_seen.neck)[0].cosines.values()
            items[f"{WEIGHT}cosine"] = zero + cosine
        return torch.cat([labels, total[None] * size]), items

    def _from_teacher(self, found: Any, images: torch.Tensor, weights: Weights, progress: float) -> Said:
        with torch.no_grad():
            wanted = self._teacher(images)
        with torch.autocast(images.device.type, enabled=False):
            return self._compare(self._student_seen.seen(found), wanted, weights, progress, self._shares())

    def _shares(self) -> Mapping[str, float]:
        """How much each branch of a head with two counts to Ultralytics, which changes from epoch to epoch."""
        labels = self._labels
        return {"one2many": labels.o2m, "one2one": labels.o2o} if hasattr(labels, "o2m") else {}

    def _from_words(self, batch: Mapping[str, Any]) -> Worded:
        """How far what the student sees in the labels' boxes is from the words of their classes."""
        boxes, images = corners(batch["bboxes"], *batch["img"].shape[2:]), batch["batch_idx"].long()
        classes, neck = batch["cls"].flatten().long(), [each.float() for each in self._student_seen.neck]
        with torch.autocast(boxes.device.type, enabled=False):
            regions = self._words(neck, self._student_seen.grid.strides, boxes, images)
            logits = self._words.logits(regions)
            apart = contrastive_loss(logits, classes, self._class_weights)
            apart = apart + relation_loss(regions, classes, self._words.texts)
        return Worded(apart, confidence(logits), boxes, images)

    def _modalities(
        self, said: Said | None, worded: Worded | None
    ) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """What the words' loss and the teacher's are multiplied with: 1 where one of them is silent."""
        if said is None or worded is None:
            return 1.0, 1.0
        points, _ = self._student_seen.grid.points(worded.boxes.device)
        return modality_weights(worded.sure, best_inside(said.sure, points, worded.boxes, worded.images))

    def _without_doubtful(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with its objects alone; what its other boxes cover stays out of the class loss on the labels."""
        away = batch["cls"].flatten() >= self._classes
        index, named = batch["batch_idx"][away].long(), batch["cls"].flatten()[away].long() - self._classes
        grid, size = self._student_seen.grid, len(batch["img"])
        places = corners(batch["bboxes"][away], *batch["img"].shape[2:])
        hidden = ignored(grid.points(places.device)[0], places, index, named, size, self._classes)
        branches = [getattr(self._labels, name, self._labels) for name in ("one2many", "one2one")]
        for loss in branches:
            loss.class_weights = ~hidden.transpose(1, 2)  # by which Ultralytics multiplies its class loss
        return {**batch, **{name: batch[name][~away] for name in ("cls", "bboxes", "batch_idx")}}

    def update(self) -> None:
        """An epoch has ended: a head with two branches now learns more with the one that ships."""
        if hasattr(self._labels, "update"):
            self._labels.update()

    def state(self) -> dict[str, Any]:
        """What a training that goes on has to know."""
        return self._weighing.state()

    def restore(self, state: Mapping[str, Any], epochs: int) -> None:
        """Go on from a state after so many epochs."""
        self._weighing.restore(state)
        if hasattr(self._labels, "update"):
            self._labels.updates = epochs - 1
            self._labels.update()
