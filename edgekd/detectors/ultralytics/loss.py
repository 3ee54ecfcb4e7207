"""The loss of an Ultralytics student on a batch: on labels, and by distillation.

The distillation losses are in `compress/`; this module gets their inputs from Ultralytics networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.compress.distillation.anchors import best_inside, corners, ignored
from edgekd.compress.distillation.gradient_conflict import reconcile
from edgekd.compress.distillation.loss_terms import (
    DetectorFeatures,
    DistillationLosses,
    DistillationTerms,
    Predictions,
)
from edgekd.compress.distillation.loss_weighting import Balance
from edgekd.compress.distillation.region_text import confidence, contrastive_loss, modality_weights, relation_loss
from edgekd.compress.distillation.teacher_objects import detected_objects
from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.data.long_tail import class_weights, epoch_order, instances, repeat_factors
from edgekd.data.pseudo_labels import mixed_order
from edgekd.data.types import Sample
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.ultralytics.detector import is_transformer
from edgekd.detectors.ultralytics.features import FeatureRecorder
from edgekd.detectors.ultralytics.loop import Lesson
from edgekd.detectors.ultralytics.objects import split_objects

LEVELS = tuple(entry.name for entry in fields(Weights))
WEIGHT_PREFIX = "weight_"
"""Prefix of entries in a training's record that are weights of losses, or values that determine them."""


@dataclass(frozen=True)
class StudentLesson(Lesson):
    """The samples, teacher and settings of a distillation.

    teacher: None with cached objects; pairs: as for `DistillationTerms`; state: the file for the training's state after
    every epoch; frames: number of samples, the last ones, with labels by the teacher; objects: the teacher's objects in
    the samples, records of `object_record_type`.
    """

    step: Distill
    teacher: Teacher | None
    pairs: tuple[tuple[int, int], ...]
    state: Path
    frames: int = 0
    objects: NDArray[Any] | None = None

    @property
    def labelled(self) -> tuple[Sample, ...]:
        """The samples of the data set, with its own labels."""
        return self.samples[: len(self.samples) - self.frames]

    def class_weights(self) -> torch.Tensor | None:
        """Return the weights of the classes, float32 [classes]; None if they are equal."""
        if not self.step.class_power:
            return None
        counts = instances((sample.truth for sample in self.labelled), len(self.classes))
        return torch.tensor(class_weights(counts, self.step.class_power), dtype=torch.float32)

    def order(self, batch: int) -> Callable[[int], NDArray[np.int64]] | None:
        """Return a function from an epoch to its samples' indices; None for each sample once, in any order.

        batch: images per step. All epochs have equal length, which schedules of learning rate and time depend on.
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
class RegionTextLoss:
    """The loss between regions and their classes' texts on a batch.

    loss: a scalar; confidence: of the text classification of each region, [n]; boxes [n, 4]: regions in pixels of the
    input; images [n]: batch index of each region.
    """

    loss: torch.Tensor
    confidence: torch.Tensor
    boxes: torch.Tensor
    images: torch.Tensor


class LabelsOfQueries:
    """Ultralytics' own loss of an RT-DETR on labels: of all layers, and in training also of denoising queries."""

    def __init__(self, student: Any) -> None:
        student.nc = student.model[-1].nc  # otherwise set only by Ultralytics' trainer
        self._student, self._criterion, self._loss = student, student.init_criterion(), type(student).loss

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss [1], and its parts by name. output: raw output; None: compute it with denoising queries."""
        attributes = vars(self._student)
        own = attributes.get("criterion")
        attributes["criterion"] = self._criterion  # only for this call: a network with a criterion cannot be saved
        try:
            total, items = self._loss(self._student, batch, output if self._student.training else (None, output))
        finally:
            attributes["criterion"] = own
        return total[None], items


def install_loss(student: Any, loss: StudentLoss) -> None:
    """Make Ultralytics' loop train a student with this loss."""
    student.criterion = loss
    if is_transformer(student):
        student.loss = lambda batch, output=None: loss(output, batch)


class StudentLoss:
    """The loss of a student on a batch: Ultralytics' loss on labels, and the distillation losses of the stage.

    Called by Ultralytics with the student's raw predictions; None for an RT-DETR in training, whose denoising queries
    depend on the labels. progress: returns the share of the training that is done, 0 to 1.
    """

    def __init__(self, student: Any, lesson: StudentLesson, progress: Callable[[], float]) -> None:
        step, device = lesson.step, next(student.parameters()).device
        self._step, self._progress = step, progress
        self._queries = is_transformer(student)
        self._labels_loss: Any = LabelsOfQueries(student) if self._queries else student.init_criterion()
        self._balance = Balance(step.balance_every)
        self._distills = any(stage.weights.any for stage in step.stages)
        self._classes, self._has_ignored = len(lesson.classes), lesson.frames > 0
        self._region_text: Any = student.aids.words if step.text else None
        weights = lesson.class_weights()
        self._class_weights = None if weights is None else weights.to(device)
        self._objects = lesson.objects
        if self._distills or self._region_text or self._has_ignored:
            self._recorder = FeatureRecorder(student)
        if self._distills:
            if lesson.teacher is not None:
                self._teacher = lesson.teacher.to(device).to(memory_format=torch.channels_last)
            self._compare = DistillationTerms(step, lesson.pairs, student.aids, self._class_weights)
        weight_names = (f"{WEIGHT_PREFIX}{name}" for name in (*LEVELS, "teacher", "disagreement"))
        texts, cosine = ("text", f"{WEIGHT_PREFIX}text"), (f"{WEIGHT_PREFIX}cosine",)
        self._names = (*(*LEVELS, *weight_names) * self._distills, *texts * bool(step.text), *cosine * step.conflict)

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the losses times the batch size, and by name each loss, its weight, and values that determine it.

        As in Ultralytics, losses of an RT-DETR are not multiplied by the batch size.
        """
        objects = None
        if self._objects is not None:
            batch, objects = split_objects(batch, self._objects, self._classes)
        if self._has_ignored:
            batch = self._without_ignored(batch)
        labels, items = self._labels_loss(output, batch)
        if not (self._distills or self._region_text):
            return labels, items
        zero = labels.new_zeros(())
        items |= {name: zero + (name == f"{WEIGHT_PREFIX}teacher") for name in self._names}
        stage = self._step.stage_at(self._progress())
        teacher = self._distillation(output, batch["img"], objects, stage) if stage.weights.any else None
        text = self._text_loss(batch) if self._region_text else None
        losses = {**(teacher.losses if teacher else {}), **({"text": text.loss} if text else {})}
        if not losses:
            return torch.cat([labels, zero[None]]), items
        size, weights = 1 if self._queries else len(batch["img"]), {}
        factors = self._balance(labels.sum() / size, losses, self._recorder.neck)
        by_text, by_teacher = self._modality_weights(teacher, text)
        if teacher:
            weights = {name: getattr(stage.weights, name) * factors[name] * by_teacher for name in teacher.losses}
        if text:
            weights["text"] = self._step.text * factors["text"] * by_text
        total = sum((weights[name] * loss for name, loss in losses.items()), zero)
        items |= {name: loss.detach() for name, loss in losses.items()}
        if teacher:
            weights |= teacher.record()
        items |= {f"{WEIGHT_PREFIX}{name}": zero + weight for name, weight in weights.items()}
        if self._step.conflict:
            both = {"labels": labels.sum(), "teacher": total * size}
            # Ultralytics calls backward on their sum without scaling: precision is float32 or bfloat16.
            (cosine,) = reconcile(both, self._recorder.neck)[0].cosines.values()
            items[f"{WEIGHT_PREFIX}cosine"] = zero + cosine
        return torch.cat([labels, total[None] * size]), items

    def _distillation(
        self, output: Any, images: torch.Tensor, objects: Predictions | None, stage: DistillStage
    ) -> DistillationLosses:
        """Return the distillation losses for the teacher's cached objects; for None, for its features of the images."""
        if objects is not None:
            teacher = DetectorFeatures(self._recorder.grid, (), (), {}, objects)
        else:
            with torch.no_grad():
                teacher = self._teacher(images)
                if self._queries:
                    teacher = replace(teacher, objects=detected_objects(teacher))
        with torch.autocast(images.device.type, enabled=False):
            student = self._recorder.features(self._recorder.output if output is None else output)
            return self._compare(student, teacher, stage, self._branch_shares())

    def _branch_shares(self) -> Mapping[str, float]:
        """Return Ultralytics' present weights of the two branches of a head; empty for one branch."""
        labels = self._labels_loss
        return {"one2many": labels.o2m, "one2one": labels.o2o} if hasattr(labels, "o2m") else {}

    def _text_loss(self, batch: Mapping[str, Any]) -> RegionTextLoss:
        """Return the loss between the student's features in the labels' boxes and the texts of their classes."""
        boxes, images = corners(batch["bboxes"], *batch["img"].shape[2:]), batch["batch_idx"].long()
        classes, neck = batch["cls"].flatten().long(), [each.float() for each in self._recorder.neck]
        with torch.autocast(boxes.device.type, enabled=False):
            regions = self._region_text(neck, self._recorder.grid.strides, boxes, images)
            logits = self._region_text.logits(regions)
            loss = contrastive_loss(logits, classes, self._class_weights)
            loss = loss + relation_loss(regions, classes, self._region_text.texts)
        return RegionTextLoss(loss, confidence(logits), boxes, images)

    def _modality_weights(
        self, teacher: DistillationLosses | None, text: RegionTextLoss | None
    ) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Return the factors of the text loss and of the teacher's losses; 1 if either is missing."""
        if teacher is None or text is None:
            return 1.0, 1.0
        points, _ = self._recorder.grid.points(text.boxes.device)
        return modality_weights(text.confidence, best_inside(teacher.certainty, points, text.boxes, text.images))

    def _without_ignored(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch without ignored boxes, and exclude their anchors from the class loss on labels."""
        excluded = batch["cls"].flatten() >= self._classes
        images, classes = batch["batch_idx"][excluded].long(), batch["cls"].flatten()[excluded].long() - self._classes
        grid, size = self._recorder.grid, len(batch["img"])
        boxes = corners(batch["bboxes"][excluded], *batch["img"].shape[2:])
        hidden = ignored(grid.points(boxes.device)[0], boxes, images, classes, size, self._classes)
        branches = [getattr(self._labels_loss, name, self._labels_loss) for name in ("one2many", "one2one")]
        for loss in branches:
            loss.class_weights = ~hidden.transpose(1, 2)  # Ultralytics multiplies its class loss by these
        return {**batch, **{name: batch[name][~excluded] for name in ("cls", "bboxes", "batch_idx")}}

    def update(self) -> None:
        """End an epoch: in a head with two branches, increase the weight of the shipped one."""
        if hasattr(self._labels_loss, "update"):
            self._labels_loss.update()

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs to resume a training."""
        return self._balance.state()

    def restore(self, state: Mapping[str, Any], epochs: int) -> None:
        """Resume from a state. epochs: number of completed epochs."""
        self._balance.restore(state)
        if hasattr(self._labels_loss, "update"):
            self._labels_loss.updates = epochs - 1
            self._labels_loss.update()
