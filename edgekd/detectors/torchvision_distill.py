"""Distillation of torchvision's detectors: a small training loop around the same losses as for Ultralytics' ones.

A teacher of either family; the student's own losses are torchvision's. Every image is varied as seed, epoch and image
say, so a training that goes on after a stop ends as if it had not stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgekd.builds.recipe import Distill
from edgekd.core.detection.preprocess import letterbox, to_input
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image, readable
from edgekd.data.types import Sample
from edgekd.detectors.checkpoint import read_state, write_content
from edgekd.detectors.teacher import Teacher, load_teacher, paired_aids, parameters_in
from edgekd.detectors.torchvision import TorchvisionDetector
from edgekd.detectors.torchvision_names import SUFFIX
from edgekd.detectors.trained import Distilled, fast_in_bfloat16, fitting_batches, require_device, require_finite

try:
    import torch
    from torch.optim.swa_utils import AveragedModel
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise SpecError(
        "training needs PyTorch and torchvision",
        found=str(error),
        fix='pip install "edgekd[train]"; `edgekd doctor` says what is missing',
    ) from error

from edgekd.compress.distillation.loss_terms import Comparison, shared_classes
from edgekd.compress.distillation.loss_weighting import Weighing
from edgekd.detectors.torchvision_network import TorchvisionNetwork, save_network, with_classes

NOT_HERE = ("width", "class_power", "repeat", "unlabelled", "conflict", "text")
"""Settings of a distillation that this loop does not have."""
RATE = 5e-4
"""Learning rate of AdamW where none is given."""
WEIGHT_DECAY = 5e-4
LONGEST_STEP = 10.0
"""Gradients longer than this are shortened to it."""
SMALLEST = 2.0
"""Sides in pixels; what is left of an object after an image was varied is no object below."""
AVERAGED, RISE = 0.9999, 2000
"""How much of the moving average stays with each step, once many more than RISE steps are done."""

Target = Mapping[str, torch.Tensor]


def distill_student(
    teacher: Path,
    out: Path,
    data: Path,
    step: Distill,
    state: Path,
    trust: bool = False,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Distilled:
    """Train the student that `step` names beside a teacher, and write it to `out`, a `.tv.pt` file.

    As `ultralytics_distill.distill_student`; of the step's settings those in NOT_HERE must be off, and no images are
    put together to one, whatever `mosaic` says. `learning_rate` None is RATE. Raises the same errors.
    """
    where = _one_device(device)
    _require_offered(step)
    dataset = load_dataset(data)
    samples = readable(dataset.split("train").samples, progress)
    found = load_teacher(teacher, trust)
    pairs = shared_classes(dataset.classes, found.classes, step.same_classes)
    network = student_network(step, dataset.classes, step.image_size or max(found.image_size))
    training = _Training(network, found, step, pairs, where)
    if (kept := read_state(state, where)) is not None:
        training.restore(kept)
    with fitting_batches():
        training.run(VariedFrames(samples, network.image_size, step.seed), state, progress)
    network.load_state_dict(training.average.module.network.state_dict())
    save_network(network.cpu(), out)
    sizes = (parameters_in(network), parameters_in(found))
    return Distilled(len(training.losses), tuple(training.losses), training.seconds, tuple(training.weights), *sizes)


def student_network(step: Distill, classes: tuple[str, ...], side: int) -> TorchvisionNetwork:
    """The student before training, with these classes, for frames with this side in pixels. Raises SpecError.

    It is from a `.tv.pt` file, or of a builder.
    """
    name, size = str(step.student), (side, side)
    torch.manual_seed(step.seed)
    if not name.endswith(SUFFIX):
        return TorchvisionNetwork(name.removeprefix("torchvision/"), classes, size)
    if not Path(name).is_file():
        raise SpecError(f"{name}: no such file", expected="a .tv.pt file, or torchvision/ and the name of a builder")
    return with_classes(TorchvisionDetector(Path(name)).network(), classes, size)


def _require_offered(step: Distill) -> None:
    defaults = {entry.name: entry.default for entry in fields(Distill)}
    for name in NOT_HERE:
        if getattr(step, name) != defaults[name]:
            fix = "leave it out, or train a student by Ultralytics"
            raise SpecError(f"distill: {name} is not for students by torchvision", fix=fix)


def _one_device(device: str | None) -> torch.device:
    if device and "," in device:
        raise SpecError("distill: students by torchvision train on one GPU", found=f"device {device}", fix="name one")
    require_device(device)
    if device is None:
        device = "0" if torch.cuda.is_available() else "cpu"
    return torch.device("cpu" if device == "cpu" else f"cuda:{device}")


# ----------------------------------------------------------------------------------------------------------- the frames


class VariedFrames(TorchDataset[tuple[torch.Tensor, Target]]):  # type: ignore[misc]
    """Letterboxed frames float32 [3, h, w], RGB, 0 to 1, with their objects, each epoch a little different.

    Targets as `TorchvisionNetwork.losses` takes them; a box around a crowd is no box around an object. Set `epoch`.
    """

    def __init__(self, samples: Sequence[Sample], image_size: tuple[int, int], seed: int) -> None:
        self.epoch = 0
        self._samples, self._seed = samples, seed
        self._how = Preprocess(*image_size)
        self._vary = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.5, 1.5), fill=self._how.pad_value / 255),
                v2.ColorJitter(brightness=0.4, saturation=0.7, hue=0.015),
                v2.SanitizeBoundingBoxes(min_size=SMALLEST),
            ]
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, Target]:
        sample = self._samples[at]
        pixels, place = letterbox(read_image(sample.image), self._how)
        single = ~sample.truth.crowd
        boxes = to_input(sample.truth.boxes[single], place)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=pixels.shape[2:], dtype=torch.float32),
            "labels": torch.from_numpy(sample.truth.classes[single].astype(np.int64)) + 1,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self._seed, self.epoch, at]).generate_state(1)[0]))
            frame, target = self._vary(tv_tensors.Image(pixels[0]), target)
        return frame.as_subclass(torch.Tensor), {name: each.as_subclass(torch.Tensor) for name, each in target.items()}

    def order(self) -> list[int]:
        """All samples as this epoch shows them."""
        return list(np.random.default_rng([self._seed, self.epoch]).permutation(len(self)))


def _together(pairs: Sequence[tuple[torch.Tensor, Target]]) -> tuple[torch.Tensor, list[Target]]:
    frames, targets = zip(*pairs, strict=True)
    return torch.stack(frames), list(targets)


# --------------------------------------------------------------------------------------------------------- the training


@dataclass(frozen=True)
class Batch:
    """What one step has to go by. targets: as `TorchvisionNetwork.losses` takes them."""

    frames: torch.Tensor
    targets: Sequence[Target]


class StudentLoss:
    """The loss of a student on a batch: what torchvision trains on, and what its teacher says, stage by stage."""

    def __init__(self, teacher: Teacher, step: Distill, pairs: Sequence[tuple[int, int]], aids: Any) -> None:
        self.weighing = Weighing(step)
        self._teacher, self._step = teacher, step
        self._compare = Comparison(step, pairs, aids)

    def __call__(
        self, student: TorchvisionNetwork, batch: Batch, progress: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The loss, a scalar; its parts by name, and their weights. progress: share of the training that is done."""
        losses, seen = student.losses(batch.frames, batch.targets)
        labels = torch.stack(list(losses.values())).sum()
        stage = self._step.stage_at(progress)
        if not stage.weights.any:
            return labels, losses, {}
        with torch.no_grad():
            wanted = self._teacher(batch.frames)
        with torch.autocast(batch.frames.device.type, enabled=False):
            said = self._compare(seen, wanted, stage.weights, progress)
        factors = self.weighing.factors(labels, said.losses, seen.neck)
        weights = self.weighing.of_teacher(stage, said, factors)
        total = sum((weights[name] * loss for name, loss in said.losses.items()), labels)
        weights |= {"disagreement": said.apart, "temperature": said.temperature}
        return total, {**losses, **said.losses}, weights


class _Beside(torch.nn.Module):  # type: ignore[misc]
    """A student, and what is trained beside it."""

    def __init__(self, network: TorchvisionNetwork, aids: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.aids = network, aids


class _Training:
    """A student in training. losses, weights: the means of each epoch; seconds: spent so far, also before a stop."""

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
        self._model = _Beside(network, aids).to(device)
        self.average = AveragedModel(self._model, avg_fn=_averaged, use_buffers=True)
        self._rate = step.learning_rate or RATE
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=self._rate, weight_decay=WEIGHT_DECAY)
        self._loss = StudentLoss(teacher.to(device), step, pairs, aids)
        self._mixed = step.amp and fast_in_bfloat16(device)

    def run(self, frames: VariedFrames, state: Path, progress: Progress) -> None:
        """Train until the epochs, or the minutes, are over; everything is kept in `state` after each epoch."""
        per_epoch = len(_parted(range(len(frames)), self._step.batch))
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
        next(ticks, None)  # a bar is done when nothing is left

    def _train_epoch(
        self, frames: VariedFrames, per_epoch: int, spent: Callable[[], float], ticks: Iterator[int]
    ) -> None:
        """One pass, or what there is time for; the means of what it found are kept."""
        sums: dict[str, dict[str, float]] = {"losses": defaultdict(float), "weights": defaultdict(float)}
        done = 0
        for done, batch in enumerate(self._batches(frames), start=1):
            next(ticks, None)
            steps = len(self.losses) * per_epoch + done - 1
            share = min(self._share(steps, per_epoch, spent()), 1.0)
            loss, *found = self._train_batch(batch, share, steps / per_epoch)
            for into, items in zip(sums.values(), found, strict=True):
                for name, value in items.items():
                    into[name] += float(value)
            if self._share(steps + 1, per_epoch, spent()) >= 1:
                break
        losses, weights = ({name: value / done for name, value in each.items()} for each in sums.values())
        require_finite(len(self.losses), losses, loss, "lower learning_rate, or the weights of the stages")
        self.losses.append(losses)
        self.weights.append(weights)

    def _train_batch(
        self, batch: Batch, share: float, epochs: float
    ) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """One step. share: of the training that is done; epochs: the same in passes."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * self._pace(share, epochs)
        mixed = torch.autocast(self._device.type, torch.bfloat16) if self._mixed else nullcontext()
        with mixed:
            loss, parts, weights = self._loss(self._model.network, batch, share)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), LONGEST_STEP)
        self._optimizer.step()
        self.average.update_parameters(self._model)
        return float(loss.detach()), parts, weights

    def _pace(self, share: float, epochs: float) -> float:
        """What the learning rate is multiplied with: it rises in the first epochs, and falls in a line."""
        rising = min((epochs + 0.01) / self._step.warmup_epochs, 1.0) if self._step.warmup_epochs else 1.0
        return rising * (1 - share * (1 - self._step.final_rate))

    def _share(self, steps: int, per_epoch: int, seconds: float) -> float:
        """How much of the training is done after so many steps and seconds: of its time where that is set."""
        if self._step.minutes is not None:
            return seconds / (self._step.minutes * 60)
        return steps / (per_epoch * self._step.epochs)

    def _batches(self, frames: VariedFrames) -> Iterator[Batch]:
        gpu = self._device.type == "cuda"
        how = {"collate_fn": _together, "num_workers": 8 if gpu else 0, "pin_memory": gpu}
        for images, targets in DataLoader(frames, batch_sampler=_parted(frames.order(), self._step.batch), **how):
            moved = [{name: each.to(self._device, non_blocking=True) for name, each in one.items()} for one in targets]
            yield Batch(images.to(self._device, non_blocking=True), moved)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "weighing": self._loss.weighing.state(),
            "losses": self.losses,
            "weights": self.weights,
            "seconds": self.seconds,
            "finished": self._finished,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self._model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._loss.weighing.restore(state["weighing"])
        self.losses, self.weights = list(state["losses"]), list(state["weights"])
        self.seconds, self._finished = state["seconds"], state["finished"]


def _parted(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """An epoch's batches. No image is alone in the last one: batch norm could not see how a map of one place varies."""
    ends = [*range(size, len(order) - (size > 1), size), len(order)]
    return [order[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _averaged(average: torch.Tensor, new: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A moving average that follows quickly at first, as Ultralytics' does."""
    kept = AVERAGED * (1 - torch.exp(-(steps + 1.0) / RISE))
    return average * kept + new * (1 - kept)
