"""Distillation of Ultralytics detectors: a student trained as Ultralytics trains it, and told more by its teacher.

The losses are in `compress/`: here is what they are made of, inside Ultralytics' own loop. Everything that is added to
the labels' loss goes through `StudentLoss`; everything that is trained on is in the lesson.
"""

from __future__ import annotations

import io
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from edgekd.data.dataset import load_dataset
from edgekd.data.images import ReadableImages
from edgekd.detectors.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics import HEADS, UltralyticsDetector, require_box_detector
from edgekd.errors import SpecError
from edgekd.files import write_file
from edgekd.progress import SILENT, Progress
from edgekd.spec import Distill, Weights

# First: it says what is missing where PyTorch or Ultralytics are.
from edgekd.detectors.ultralytics_loop import Lesson, Loop, Trained, quiet  # isort: skip

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, yaml_model_load
from ultralytics.utils.torch_utils import unwrap_model

from edgekd.compress.adaptive import Average, Balance, teachers_share
from edgekd.compress.anchors import Grid, nearest_levels
from edgekd.compress.terms import Aids, Comparison, Predictions, Seen, shared_classes, spread

LEVELS = tuple(entry.name for entry in fields(Weights))
SIDE = 256
"""Pixels of the blank frame on which a network is looked at."""
UNKNOWN = -4.6
"""The logit of a class that a student's checkpoint does not know: a probability of 1 %."""
_WEIGHT = "weight_"


@dataclass(frozen=True)
class StudentLesson(Lesson):
    """What a student is trained on and by. state: the file in which its training is kept after every epoch."""

    step: Distill
    teacher: Any
    pairs: tuple[tuple[int, int], ...]
    state: Path


@dataclass(frozen=True)
class Distilled(Trained):
    """What distillation did: also the mean of each weight in each epoch, and the sizes of both networks.

    weights: of each level; `teacher`, the share by which an adaptive stage scales them; and what that and they follow
    from, `disagreement` and `temperature`.
    """

    weights: tuple[Mapping[str, float], ...]
    parameters: int
    teacher_parameters: int


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
    """Train the student that `step` names beside a teacher, and write it to `out`, an Ultralytics checkpoint.

    data: a data set, of which only the split `train` is read; nothing is written beside it. The student is the moving
    average of its weights at the end: no epoch is chosen, so no split is needed to choose it by. state: written after
    every epoch; where it is there, training goes on from it, so it must be of the same arguments. device: `cpu`, `0`,
    or `0,1` for one process on each of two GPUs; None for a GPU if there is one. On the CPU the same arguments give the
    same student.
    Raises SpecError for checkpoints that are no detectors and a student that does not exist, DataError for unusable
    data, CompressError where training diverges.
    """
    dataset = load_dataset(data)
    samples = [sample for sample, _ in ReadableImages(dataset.split("train").samples, progress, label="read images")]
    found = teacher_network(teacher, trust)
    pairs = shared_classes(dataset.classes, [found.names[at] for at in sorted(found.names)], step.same_classes)
    network = student_network(step, dataset.classes, trust)
    trained = deepcopy(network)
    trained.aids = _aids(trained, found, step)
    lesson = StudentLesson(tuple(samples), dataset.classes, step, found, pairs, state)
    if not (_read(state) or {}).get("finished"):
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch, quiet():
            trainer = _StudentTrainer.of(lesson, _settings(step, scratch, device), progress)
            trainer.model = trained
            trainer.train()
    done = _read(state)
    assert done is not None, "it is written after every epoch"
    network.load_state_dict({name: value for name, value in done["ema"].items() if not name.startswith("aids.")})
    _write(network, step, out)
    sizes = [sum(each.numel() for each in one.parameters()) for one in (network, found)]
    return Distilled(done["epoch"] + 1, tuple(done["losses"]), done["seconds"], tuple(done["weights"]), *sizes)


def teacher_network(checkpoint: Path, trust: bool) -> Any:
    """A YOLO whose head says what it finds undecoded, or an RT-DETR; it never changes. Raises SpecError."""
    network = load_checkpoint(checkpoint, trust).model
    network.eval().requires_grad_(False)
    if type(network) is RTDETRDetectionModel:
        return network
    require_box_detector(network, checkpoint)
    head = network.model[-1]
    if getattr(head, "one2one_cv2", None) is None:
        network.fuse(verbose=False)  # which would drop one branch of a head with two
    head.training = True  # the head alone, for that is when it does not decode
    return network


def student_network(step: Distill, classes: tuple[str, ...], trust: bool) -> Any:
    """The student before training, with these classes: from a checkpoint, or with random weights. Raises SpecError."""
    if step.student is None:
        raise SpecError(
            "distillation: no student", expected="a .pt checkpoint or a model such as yolo11n.yaml", fix="name one"
        )
    torch.manual_seed(step.seed)
    if step.student.endswith(".pt"):
        if step.width is not None:
            raise SpecError(f"{step.student}: has its width", fix="leave out width, or name a .yaml model")
        network, _ = UltralyticsDetector(Path(step.student), trust).network()
        if network.is_fused():
            raise SpecError(f"{step.student}: batch norms are folded in", fix="pass the checkpoint that was trained")
        return _with_classes(network, classes)
    name = step.student if step.student.endswith((".yaml", ".yml")) else f"{step.student}.yaml"
    try:
        with quiet():
            network = DetectionModel(_description(name, step.width), nc=len(classes), verbose=False)
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        expected = "a .pt checkpoint, a model by Ultralytics such as yolo11n.yaml, or a description in a .yaml file"
        raise SpecError(f"{step.student}: no student", expected=expected, found=str(error)[:200]) from error
    head = type(network.model[-1]).__name__
    if head not in HEADS:
        raise SpecError(f"{step.student}: not a box detector", expected=" or ".join(HEADS), found=head)
    network.names = dict(enumerate(classes))
    return network


def _description(name: str, width: float | None) -> dict[str, Any]:
    """Ultralytics' description of a model; with `width` in place of its scale's, whose depth stays."""
    told: dict[str, Any] = yaml_model_load(name)
    if width is None:
        return told
    if "scales" not in told:
        return {**told, "width_multiple": width}
    depth, _, most = told["scales"].get(told.get("scale")) or next(iter(told["scales"].values()))
    return {**told, "scales": {"own": [depth, width, most]}, "scale": "own"}


def _with_classes(network: Any, classes: tuple[str, ...]) -> Any:
    """A network that tells these classes apart: what it knows of them by name stays, the others it has to learn."""
    known = [network.names[at] for at in sorted(network.names)]
    if known == list(classes):
        return network
    head = network.model[-1]
    for branch in filter(None, (head.cv3, getattr(head, "one2one_cv3", None))):
        for level in branch:
            old = level[-1]
            new = nn.Conv2d(old.in_channels, len(classes), 1)
            new.bias.data.fill_(UNKNOWN)
            for at, name in enumerate(classes):
                if name in known:
                    new.weight.data[at], new.bias.data[at] = old.weight[known.index(name)], old.bias[known.index(name)]
            level[-1] = new
    head.nc, head.no = len(classes), len(classes) + 4 * head.reg_max
    network.names, network.nc = dict(enumerate(classes)), len(classes)
    network.yaml = {**network.yaml, "nc": len(classes)}
    return network


# ------------------------------------------------------------------------------------------------- what networks see


@dataclass(frozen=True)
class Look:
    """Of each level of a head: the backbone's layer that goes with it, and channels and stride of the map it reads.

    That layer is the first one of nearly its stride whose output the neck reads.
    """

    hidden: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]


def look(network: Any) -> Look:
    """What there is to see in a network, found with a blank frame; the network stays as it is."""
    head = network.model[-1]
    shapes: dict[int, Any] = {}

    def note(at: int, layer: Any, inputs: Any, output: Any) -> None:
        shapes[at] = [each.shape for each in inputs[0]] if at == head.i else output.shape

    watched = [*sorted(set(network.save) - set(head.f)), head.i]
    hooks = [network.model[at].register_forward_hook(partial(note, at)) for at in watched]
    modes = {module: module.training for module in network.modules()}
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, SIDE, SIDE, device=next(network.parameters()).device))
    for module, mode in modes.items():
        module.training = mode
    for hook in hooks:
        hook.remove()
    read = shapes.pop(head.i)
    hidden = tuple(
        min(shapes, key=lambda at, shape=shape: (abs(math.log(shapes[at][-1] / shape[-1])), at))  # type: ignore[misc]
        for shape in read
    )
    return Look(hidden, tuple(shape[1] for shape in read), tuple(SIDE / shape[-1] for shape in read))


def _aids(student: Any, teacher: Any, step: Distill) -> Aids:
    """The projectors between the levels that go together, the same for the same seed."""
    ours, theirs = look(student), look(teacher)
    levels = nearest_levels(ours.strides, theirs.strides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        return Aids(ours.widths, [theirs.widths[at] for at in levels], step.learn_temperature)


class Watched:
    """A network of which it is known what it has just seen. neck: the maps that its head has read."""

    def __init__(self, network: Any) -> None:
        self.neck: tuple[torch.Tensor, ...] = ()
        self._maps: dict[int, torch.Tensor] = {}
        self._look = look(network)
        for at in set(self._look.hidden):
            network.model[at].register_forward_hook(partial(self._keep, at))
        network.model[-1].register_forward_pre_hook(self._keep_neck)

    def _keep(self, at: int, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        self._maps[at] = output

    def _keep_neck(self, head: Any, inputs: Any) -> None:
        self.neck = tuple(inputs[0])

    def seen(self, said: Any) -> Seen:
        """What it saw in the batch of which it has just said this, in float32: a YOLO undecoded, an RT-DETR decoded."""
        grid = Grid(tuple((each.shape[2], each.shape[3]) for each in self.neck), self._look.strides)
        if isinstance(said, tuple):
            boxes, scores = (each[-1].float() for each in said[1][:2])  # of the decoder's last layer
            branches = {"one2many": spread(boxes, scores, grid)}
        else:
            found = {name: said[name] for name in ("one2many", "one2one") if said.get(name)} or {"one2many": said}
            if "one2many" not in found:  # a fused head has kept one of them
                found = {"one2many": found["one2one"]}
            branches = {
                name: Predictions(told["scores"].float(), told["boxes"].float()) for name, told in found.items()
            }
        hidden = tuple(self._maps[at].float() for at in self._look.hidden)
        return Seen(grid, tuple(each.float() for each in self.neck), hidden, branches)


class StudentLoss:
    """The loss of a student on a batch: what Ultralytics trains on, and what its teacher says, stage by stage.

    Called by Ultralytics with the student's raw predictions. progress: gives the share of the training that is done.
    """

    def __init__(self, student: Any, lesson: StudentLesson, progress: Callable[[], float]) -> None:
        step, device = lesson.step, next(student.parameters()).device
        self._step, self._progress = step, progress
        self._labels = student.init_criterion()
        self._balance, self._apart = Balance(step.balance_every), Average(step.momentum)
        self._told = any(stage.weights.any for stage in step.stages)
        if self._told:
            self._teacher = lesson.teacher.to(device)
            if device.type == "cuda":
                self._teacher = self._teacher.to(memory_format=torch.channels_last)
            self._student_seen, self._teacher_seen = Watched(student), Watched(self._teacher)
            self._compare = Comparison(step, lesson.pairs, student.aids)

    def __call__(self, found: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, part by part, times the batch's size; and each part, its weight, and what that follows from."""
        labels, items = self._labels(found, batch)
        if not self._told:
            return labels, items
        zero, progress = labels.new_zeros(()), self._progress()
        stage = self._step.stage_at(progress)
        items |= dict.fromkeys((*LEVELS, *(_WEIGHT + name for name in (*LEVELS, "disagreement", "temperature"))), zero)
        items[f"{_WEIGHT}teacher"] = zero + 1
        if not stage.weights.any:
            return torch.cat([labels, zero[None]]), items
        with torch.no_grad():
            wanted = self._teacher_seen.seen(self._teacher(batch["img"]))
        with torch.autocast(labels.device.type, enabled=False):
            said = self._compare(self._student_seen.seen(found), wanted, stage.weights, progress)
        share = teachers_share(self._apart(said.apart), self._step.alpha if stage.adaptive else "off")
        size = len(batch["img"])
        factors = self._balance(labels.sum() / size, said.losses, self._student_seen.neck)
        weights = {name: getattr(stage.weights, name) * factors[name] * share for name in said.losses}
        total = sum((weights[name] * loss for name, loss in said.losses.items()), zero)
        items |= {name: loss.detach() for name, loss in said.losses.items()}
        weights |= {"teacher": share, "disagreement": said.apart, "temperature": said.temperature}
        items |= {f"{_WEIGHT}{name}": weight for name, weight in weights.items()}
        return torch.cat([labels, total[None] * size]), items

    def update(self) -> None:
        """An epoch has ended: a head with two branches now learns more with the one that ships."""
        if hasattr(self._labels, "update"):
            self._labels.update()

    def state(self) -> dict[str, Any]:
        """What a training that goes on has to know."""
        return {"factors": dict(self._balance.factors), "apart": self._apart.value}

    def restore(self, state: Mapping[str, Any], epochs: int) -> None:
        """Go on from a state after so many epochs."""
        self._balance.factors = dict(state["factors"])
        self._apart.value = state["apart"]
        if hasattr(self._labels, "update"):
            self._labels.updates = epochs - 1
            self._labels.update()


# ------------------------------------------------------------------------------------------------------- the training


class _StudentTrainer(Loop):
    """Ultralytics' training of a detector, which keeps its state in a file of the lesson's after every epoch."""

    remedy = "lower learning_rate, or the weights of the stages"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.weights: list[dict[str, float]] = []
        self._state: dict[str, Any] | None = None
        super().__init__(*arguments, **named)

    def share_done(self) -> float:
        """How much of the training is done, 0 to 1: of its time where that is set, else of its steps."""
        if self.args.time:
            spent: float = time.time() - self.train_time_start
            return min(spent / float(self.args.time * 3600), 1.0)
        return (self.steps_done - 1) / self.steps

    def _setup_train(self) -> None:
        super()._setup_train()
        # Only now: the moving average has copied the model, and needs no copy of the teacher.
        student = unwrap_model(self.model)
        student.criterion = StudentLoss(student, self.lesson, self.share_done)
        if self._state:
            student.criterion.restore(self._state["criterion"], self.start_epoch)

    def resume_training(self, ckpt: Any) -> None:
        """Go on from the lesson's state, if there is one."""
        self._state = state = _read(self.lesson.state, self.device)
        if state is None:
            return
        unwrap_model(self.model).load_state_dict(state["network"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.losses, self.weights = state["losses"], state["weights"]
        self.start_epoch = state["epoch"] + 1
        if self.args.time:  # then their number is an estimate, which was better than the first one
            self.epochs = self.args.epochs = max(state["epochs"], self.start_epoch + 1)
            self._setup_scheduler()

    def run_callbacks(self, event: str) -> None:
        super().run_callbacks(event)
        if event == "on_train_start" and self._state:
            self.train_time_start -= self._state["seconds"]
        elif event == "on_train_epoch_start":
            self.start_epoch = 0  # an epoch's mean time is that of all of them, also of those before a resumption

    def _note_losses(self, losses: dict[str, float]) -> None:
        super()._note_losses({name: value for name, value in losses.items() if not name.startswith(_WEIGHT)})
        self.weights.append({n.removeprefix(_WEIGHT): value for n, value in losses.items() if n.startswith(_WEIGHT)})

    def save_model(self) -> bool:
        """Keep everything that a resumption needs; the file is there complete or not at all."""
        student = unwrap_model(self.model)
        content = {
            "network": student.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": student.criterion.state(),
            "losses": self.losses,
            "weights": self.weights,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "seconds": time.time() - self.train_time_start,
            "finished": bool(self.stop),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_file(self.lesson.state, buffer.getvalue())
        return True


def _settings(step: Distill, folder: str, device: str | None) -> dict[str, Any]:
    """What Ultralytics' trainer is told; what is not said here is as Ultralytics has it."""
    gpu = torch.cuda.is_available() and device != "cpu"
    rate = {"optimizer": "auto"} if step.learning_rate is None else {"optimizer": "AdamW", "lr0": step.learning_rate}
    return {
        **{"task": "detect", "model": "edgekd.pt", "data": "edgekd.yaml", "save_dir": folder},
        **{"epochs": step.epochs, "time": None if step.minutes is None else step.minutes / 60},
        **{"batch": step.batch, "imgsz": step.image_size, "seed": step.seed},
        **{**rate, "lrf": step.final_rate, "warmup_epochs": step.warmup_epochs},
        **{"mosaic": step.mosaic, "close_mosaic": step.close_mosaic},
        # bfloat16 needs no scaling of losses, and no network to try it on, which Ultralytics would download.
        **{"amp": "bf16" if gpu and step.amp and torch.cuda.is_bf16_supported() else False},
        **{"device": device, "cache": "ram" if gpu else False},
        **{"val": False, "plots": False, "save": True, "verbose": False, "patience": 0},
    }


def _read(state: Path, device: Any = "cpu") -> dict[str, Any] | None:
    """The state of a training, None where there is none or it is not whole; nothing in it is executed."""
    if not state.is_file():
        return None
    try:
        return dict(torch.load(state, map_location=device, weights_only=True))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return None


def _write(network: Any, step: Distill, out: Path) -> None:
    """An Ultralytics checkpoint, in half precision as Ultralytics stores them."""
    buffer = io.BytesIO()
    told = {"task": "detect", "imgsz": step.image_size, "epochs": step.epochs, "batch": step.batch, "seed": step.seed}
    torch.save({"epoch": -1, "model": network.half(), "ema": None, "optimizer": None, "train_args": told}, buffer)
    write_file(out, buffer.getvalue())
