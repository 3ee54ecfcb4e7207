"""Distillation of torchvision's detectors: a small training loop with the same losses as for Ultralytics.

The teacher is of any family; the losses on labels are torchvision's. The augmentation of an image depends only on seed,
epoch and index, so that a resumed training gives the same result as an uninterrupted one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from edgekd.compress.distillation.loss_terms import DistillationTerms, shared_classes
from edgekd.compress.distillation.loss_weighting import Balance
from edgekd.compress.steps import Distill
from edgekd.core.detection.preprocess import letterbox, to_input
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import Image, read_image, readable_samples
from edgekd.data.types import Sample
from edgekd.detectors.family import load_teacher
from edgekd.detectors.results import DistillationRecord
from edgekd.detectors.teacher import Teacher, paired_aids
from edgekd.detectors.torch_support import (
    fast_in_bfloat16,
    fitting_batches,
    one_device,
    parameters_in,
    read_state,
    require_finite,
    warmup_factor,
    write_content,
)
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.detectors.torchvision.family import FAMILY
from edgekd.detectors.torchvision.network import TorchvisionNetwork, save_network, with_classes

UNSUPPORTED = ("width", "class_power", "repeat", "unlabelled", "conflict", "text")
"""Settings of a distillation that this loop does not support."""
DEFAULT_RATE = 5e-4
"""Learning rate of AdamW if none is set."""
WEIGHT_DECAY = 5e-4
"""Weight decay of AdamW, as in Ultralytics' training."""
MAX_GRADIENT_NORM = 10.0
"""Gradients with a larger norm are scaled to this norm."""
MIN_OBJECT_SIDE = 2.0
"""Smallest side in pixels; objects that augmentation has cropped to less are dropped."""
EMA_DECAY = 0.9999
"""Share of the old moving average at each step, after the ramp."""
EMA_RAMP_STEPS = 2000
"""Steps after which the decay has reached 63 % of EMA_DECAY: at first the average follows quickly."""

FrameLabels = Mapping[str, torch.Tensor]
"""Labels of a frame, as for `TorchvisionNetwork.losses`."""


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
    """Train the student of `step` with a teacher, and write it to `out`, a `.tv.pt` file.

    Arguments: `Family.distill`. The step's settings in UNSUPPORTED must be off, so `frames` is empty; `mosaic` and
    `close_mosaic` are ignored. `learning_rate` None is DEFAULT_RATE. The written student has the moving average of its
    weights.
    """
    torch_device = _one_device(device)
    _require_supported(step)
    dataset = load_dataset(data)
    samples = readable_samples(dataset.split("train").samples, progress)
    network_of_teacher = load_teacher(teacher, trust)
    pairs = shared_classes(dataset.classes, network_of_teacher.classes, step.same_classes)
    frames_of_teacher = network_of_teacher.preprocess
    side = step.image_size or max(frames_of_teacher.height, frames_of_teacher.width)
    network = student_network(step, dataset.classes, side)
    training = _Training(network, network_of_teacher, step, pairs, torch_device)
    if (kept := read_state(state, torch_device)) is not None:
        training.restore(kept)
    with fitting_batches():
        training.run(AugmentedFrames(samples, network.image_size, step.seed), state, progress)
    network.load_state_dict(training.average.module["network"].state_dict())
    save_network(network.cpu(), out)
    sizes = (parameters_in(network), parameters_in(network_of_teacher))
    counts = (len(training.losses), training.updates)
    return DistillationRecord(*counts, tuple(training.losses), training.seconds, tuple(training.weights), *sizes)


def student_network(step: Distill, classes: tuple[str, ...], side: int) -> TorchvisionNetwork:
    """Return the untrained student, from a `.tv.pt` file or a builder. side: side of its frames in pixels.

    Raises SpecError.
    """
    name, size = str(step.student), (side, side)
    torch.manual_seed(step.seed)
    if not name.endswith(FAMILY.suffix):
        return TorchvisionNetwork(name.removeprefix("torchvision/"), classes, size)
    if not Path(name).is_file():
        raise SpecError(f"{name}: no such file", expected="a .tv.pt file, or torchvision/ and the name of a builder")
    return with_classes(TorchvisionDetector(Path(name)).network(), classes, size)


def _require_supported(step: Distill) -> None:
    defaults = {entry.name: entry.default for entry in fields(Distill)}
    for name in UNSUPPORTED:
        if getattr(step, name) != defaults[name]:
            fix = "leave it out, or train a student by Ultralytics"
            raise SpecError(f"distill: {name} is not for students by torchvision", fix=fix)
    if step.teacher == "cached":
        raise SpecError("distill: a cached teacher is not for students by torchvision", fix='teacher = "live"')


def _one_device(device: str | None) -> torch.device:
    if device and "," in device:
        raise SpecError("distill: students by torchvision train on one GPU", found=f"device {device}", fix="name one")
    return one_device(device)


# ----------------------------------------------------------------------------------------------------------- the frames


def labelled_frame(sample: Sample, image: Image, preprocess: Preprocess) -> tuple[torch.Tensor, FrameLabels]:
    """Return a letterboxed frame float32 [3, h, w], and its objects, without boxes around crowds."""
    pixels, placement = letterbox(image, preprocess)
    single = ~sample.truth.crowd
    boxes = to_input(sample.truth.boxes[single], placement).astype(np.float32)
    labels = torch.from_numpy(sample.truth.classes[single].astype(np.int64)) + 1
    return torch.from_numpy(pixels[0]), {"boxes": torch.from_numpy(boxes), "labels": labels}


class AugmentedFrames(TorchDataset[tuple[torch.Tensor, FrameLabels]]):  # type: ignore[misc]
    """Letterboxed frames float32 [3, h, w], RGB, 0 to 1, with their objects; `epoch` determines the augmentation."""

    def __init__(self, samples: Sequence[Sample], image_size: tuple[int, int], seed: int) -> None:
        self.epoch = 0
        self._samples, self._seed = samples, seed
        self._preprocess = Preprocess(*image_size)
        self._augment = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.5, 1.5), fill=self._preprocess.pad_value / 255),
                v2.ColorJitter(brightness=0.4, saturation=0.7, hue=0.015),
                v2.SanitizeBoundingBoxes(min_size=MIN_OBJECT_SIDE),
            ]
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, FrameLabels]:
        sample = self._samples[index]
        pixels, target = labelled_frame(sample, read_image(sample.image), self._preprocess)
        size = pixels.shape[1:]
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size, dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self._seed, self.epoch, index]).generate_state(1)[0]))
            frame, target = self._augment(tv_tensors.Image(pixels), {**target, "boxes": boxes})
        return frame.as_subclass(torch.Tensor), {name: each.as_subclass(torch.Tensor) for name, each in target.items()}

    def order(self) -> list[int]:
        """Return the indices of all samples, shuffled for this epoch."""
        return list(np.random.default_rng([self._seed, self.epoch]).permutation(len(self)))


class Batch(NamedTuple):
    """Frames float32 [b, 3, h, w], RGB, 0 to 1, and the labels of each."""

    frames: torch.Tensor
    targets: Sequence[FrameLabels]


def collate(pairs: Sequence[tuple[torch.Tensor, FrameLabels]]) -> Batch:
    """Return pairs of a frame and its labels as a batch."""
    frames, targets = zip(*pairs, strict=True)
    return Batch(torch.stack(frames), list(targets))


# --------------------------------------------------------------------------------------------------------- the training


class TorchvisionStudentLoss:
    """The loss of a student on a batch: torchvision's loss on labels, and the distillation losses of the stage."""

    def __init__(self, teacher: Teacher, step: Distill, pairs: Sequence[tuple[int, int]], aids: Any) -> None:
        self.balance = Balance(step.balance_every)
        self._teacher, self._step = teacher, step
        self._compare = DistillationTerms(step, pairs, aids)

    def __call__(
        self, student: TorchvisionNetwork, batch: Batch, progress: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the total loss, a scalar, and its parts and their weights, by name. progress: share done, 0 to 1."""
        losses, features = student.losses(*batch)
        labels = torch.stack(list(losses.values())).sum()
        stage = self._step.stage_at(progress)
        if not stage.weights.any:
            return labels, losses, {}
        with torch.no_grad():
            teacher = self._teacher(batch.frames)
        with torch.autocast(batch.frames.device.type, enabled=False):
            distilled = self._compare(features, teacher, stage)
        factors = self.balance(labels, distilled.losses, features.neck)
        weights = {name: labels.new_tensor(getattr(stage.weights, name) * factors[name]) for name in distilled.losses}
        total = sum((weights[name] * loss for name, loss in distilled.losses.items()), labels)
        weights |= distilled.record()
        return total, {**losses, **distilled.losses}, weights


class _Training:
    """A student in training. losses, weights: means of each epoch; seconds: duration, including before a resumption."""

    def __init__(
        self,
        network: TorchvisionNetwork,
        teacher: Teacher,
        step: Distill,
        pairs: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        self.losses: list[dict[str, float]] = []
        self.weights: list[dict[str, float]] = []
        self.seconds = 0.0
        self._step, self._device, self._finished = step, device, False
        aids = paired_aids(network.widths, network.strides, teacher, step)
        self._model = torch.nn.ModuleDict({"network": network, "aids": aids}).to(device)
        self.average = AveragedModel(self._model, avg_fn=_moving_average, use_buffers=True)
        self._rate = step.learning_rate or DEFAULT_RATE
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=self._rate, weight_decay=WEIGHT_DECAY)
        self._loss = TorchvisionStudentLoss(teacher.to(device), step, pairs, aids)
        # Not on CPUs: see `compressed` in recover.py.
        self._mixed = step.amp and device.type != "cpu" and fast_in_bfloat16(device)

    @property
    def updates(self) -> int:
        """Number of weight updates so far."""
        return int(self.average.n_averaged)

    def run(self, frames: AugmentedFrames, state: Path, progress: Progress) -> None:
        """Train until the epochs, or the minutes, are over; write the state after each epoch.

        Raises CompressError if a loss is not finite.
        """
        per_epoch = len(_batched(range(len(frames)), self._step.batch))
        left = 0 if self._finished else per_epoch * (self._step.epochs - len(self.losses))
        ticks = progress.items(range(left), "distill", left)
        self._model.train()
        before, began = self.seconds, monotonic()

        def spent() -> float:
            return before + monotonic() - began

        while not self._finished:
            frames.epoch = len(self.losses)
            self._train_epoch(frames, per_epoch, spent, ticks)
            self.seconds = spent()
            self._finished = self._share(len(self.losses) * per_epoch, per_epoch, self.seconds) >= 1
            write_content(self._state(), state)
        next(ticks, None)  # completes the progress bar

    def _train_epoch(
        self, frames: AugmentedFrames, per_epoch: int, spent: Callable[[], float], ticks: Iterator[int]
    ) -> None:
        """Train one epoch, or until the time is over; append the means of its losses and weights."""
        sums: dict[str, dict[str, float]] = {"losses": defaultdict(float), "weights": defaultdict(float)}
        done = 0
        for done, batch in enumerate(self._batches(frames), start=1):
            next(ticks, None)
            steps = len(self.losses) * per_epoch + done - 1
            share = min(self._share(steps, per_epoch, spent()), 1.0)
            loss, *numbers = self._train_batch(batch, share, self._share(steps + 1, per_epoch, spent()))
            for total, items in zip(sums.values(), numbers, strict=True):
                for name, value in items.items():
                    total[name] += float(value)
            if self._share(steps + 1, per_epoch, spent()) >= 1:
                break
        losses, weights = ({name: value / done for name, value in each.items()} for each in sums.values())
        require_finite(len(self.losses), losses, loss, "lower learning_rate, or the weights of the stages")
        self.losses.append(losses)
        self.weights.append(weights)

    def _train_batch(
        self, batch: Batch, share: float, share_after: float
    ) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Train on one batch; return the total loss, its parts and weights.

        share: share of the training that is done before this batch; share_after: after it.
        """
        rising = warmup_factor(self.updates + 1, self._step.warmup_steps, share_after)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * rising * (1 - share * (1 - self._step.final_rate))
        with torch.autocast(self._device.type, torch.bfloat16) if self._mixed else nullcontext():
            loss, parts, weights = self._loss(self._model["network"], batch, share)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        self.average.update_parameters(self._model)
        return float(loss.detach()), parts, weights

    def _share(self, steps: int, per_epoch: int, seconds: float) -> float:
        """Return the share of the training done after this many steps and seconds: of its minutes, if they are set."""
        if self._step.minutes is not None:
            return seconds / (self._step.minutes * 60)
        return steps / (per_epoch * self._step.epochs)

    def _batches(self, frames: AugmentedFrames) -> Iterator[Batch]:
        gpu = self._device.type == "cuda"
        options = {"collate_fn": collate, "num_workers": 8 if gpu else 0, "pin_memory": gpu}
        for images, targets in DataLoader(frames, batch_sampler=_batched(frames.order(), self._step.batch), **options):
            moved = [{name: each.to(self._device, non_blocking=True) for name, each in one.items()} for one in targets]
            yield Batch(images.to(self._device, non_blocking=True), moved)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "weighing": self._loss.balance.state(),
            "losses": self.losses,
            "weights": self.weights,
            "seconds": self.seconds,
            "finished": self._finished,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state."""
        self._model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._loss.balance.restore(state["weighing"])
        self.losses, self.weights = list(state["losses"]), list(state["weights"])
        self.seconds, self._finished = state["seconds"], state["finished"]


def _batched(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split an epoch into batches. The last one has at least 2 images, which batch norm needs for 1 x 1 maps."""
    ends = [*range(size, len(order) - (size > 1), size), len(order)]
    return [order[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _moving_average(average: torch.Tensor, new: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return the updated moving average, which follows quickly at first, like Ultralytics'."""
    decay = EMA_DECAY * (1 - torch.exp(-(steps + 1.0) / EMA_RAMP_STEPS))
    return average * decay + new * (1 - decay)
