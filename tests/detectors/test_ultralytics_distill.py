"""Training a student beside its teacher: plain training where nothing weighs, told more where something does."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from family_marks import of_families
from hashed_words import hashed_words
from random_detector import GENERATIONS, WIDTHS

from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.progress import SilentProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.labels import Truth
from edgekd.data.long_tail import epoch_order, repeat_factors
from edgekd.data.types import Sample
from edgekd.detectors.export import export
from edgekd.detectors.torch_support import read_state
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics.detector import UltralyticsDetector
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

from rtdetr import write_rtdetr  # noqa: E402
from ultralytics.engine import trainer  # noqa: E402
from ultralytics.utils import LOGGER  # noqa: E402
from ultralytics.utils.callbacks import get_default_callbacks  # noqa: E402

from edgekd.compress.distillation import text  # noqa: E402
from edgekd.compress.distillation.loss_terms import shared_classes  # noqa: E402
from edgekd.compress.distillation.text import class_texts  # noqa: E402
from edgekd.detectors.family import load_teacher  # noqa: E402
from edgekd.detectors.results import DistillationRecord  # noqa: E402
from edgekd.detectors.teacher import Teacher, paired_aids  # noqa: E402
from edgekd.detectors.torch_support import fast_in_bfloat16, require_device  # noqa: E402
from edgekd.detectors.ultralytics import distill as module  # noqa: E402
from edgekd.detectors.ultralytics.distill import distill_student, student_network  # noqa: E402
from edgekd.detectors.ultralytics.features import tap_points  # noqa: E402
from edgekd.detectors.ultralytics.loop import Batches, Lesson, Loop, quiet  # noqa: E402
from edgekd.detectors.ultralytics.loss import StudentLesson, StudentLoss  # noqa: E402
from edgekd.detectors.ultralytics.upstream import DetectionTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 64
ALL = Weights(neurons=1, attention=1, features=1, classes=1, boxes=1, relations=1)
STEP = Distill(
    student="yolo11n.yaml",
    width=0.06,
    epochs=2,
    batch=6,
    image_size=SIDE,
    warmup_steps=0,
    stages=(DistillStage("all", 1.0, ALL, adaptive=True),),
    balance_every=2,
)
NOTHING = (DistillStage("none", 1.0, Weights()),)
BATCHES = 2
"""Batches of an epoch: the tiny data set has 12 training images."""
OPPOSED = (DistillStage("opposed", 1.0, Weights(classes=30.0)),)
"""A teacher with random weights is sure where there is nothing, and the other way round."""


def write_checkpoint(path: Path, model: str, width: float, classes: dict[int, str]) -> Path:
    """A detector with random weights that is sure of something here and there."""
    network = student_network(replace(STEP, student=model, width=width, seed=5), tuple(classes.values()), trust=False)
    for branch in filter(None, (network.model[-1].cv3, getattr(network.model[-1], "one2one_cv3", None))):
        for level in branch:
            level[-1].weight.data.normal_(0, 1)
            level[-1].bias.data.fill_(-1)
    torch.save({"model": network.half(), "train_args": {"imgsz": SIDE}}, path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    return write_checkpoint(path, "yolo11n.yaml", 0.1, {0: "red", 1: "green"})


@pytest.fixture(scope="module")
def trained(
    teacher: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DistillationRecord]:
    folder = tmp_path_factory.mktemp("trained")
    before = sorted(tiny_data.rglob("*"))
    done = distill_student(teacher, folder / "student.pt", tiny_data, STEP, folder / "state")
    assert sorted(tiny_data.rglob("*")) == before, "nothing may be written beside the data"
    return folder / "student.pt", done


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(checkpoint).model.state_dict())


def same(one: Path, other: Path) -> bool:
    found, wanted = state_of(one), state_of(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.family("YOLO11", "distill", "teach", package="Ultralytics")
def test_the_student_is_a_checkpoint_that_the_safe_loader_takes_and_that_exports(
    trained: tuple[Path, DistillationRecord], tmp_path: Path
) -> None:
    spec = export(UltralyticsDetector(trained[0]), tmp_path / "student.onnx", 17).spec
    assert spec.classes == ("red", "green")
    assert (spec.preprocess.height, spec.preprocess.width) == (SIDE, SIDE)
    assert not any("aids" in name for name in state_of(trained[0]))


def test_every_level_and_its_weight_are_noted_in_each_epoch(trained: tuple[Path, DistillationRecord]) -> None:
    done = trained[1]
    assert done.epochs == len(done.losses) == len(done.weights) == 2
    assert done.updates == 2 * BATCHES, "a weight update for each batch"
    levels = {entry.name for entry in fields(Weights)}
    assert set(done.losses[0]) == levels | {"box_loss", "cls_loss", "dfl_loss"}
    assert set(done.weights[0]) == levels | {"teacher", "disagreement"}
    for losses, weights in zip(done.losses, done.weights, strict=True):
        assert all(losses[level] > 0 for level in levels)
        assert all(weights[level] > 0 for level in levels)
        assert 0.5 <= weights["teacher"] < 1


@pytest.mark.slow
def test_the_same_arguments_give_the_same_student(
    teacher: Path,
    trained: tuple[Path, DistillationRecord],
    tiny_data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    again = distill_student(teacher, tmp_path / "student.pt", tiny_data, STEP, tmp_path / "state")
    assert again.losses == trained[1].losses
    assert same(tmp_path / "student.pt", trained[0])
    assert capfd.readouterr().out == "", "stdout is for results"
    other = distill_student(teacher, tmp_path / "other.pt", tiny_data, replace(STEP, seed=1), tmp_path / "state1")
    assert other.losses != again.losses


def test_where_nothing_weighs_it_is_ultralytics_training(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The same weights as Ultralytics' own trainer leaves, which knows nothing of teachers."""
    step = replace(STEP, stages=NOTHING, amp=False)
    done = distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state", device="cpu")
    assert set(done.losses[0]) == {"box_loss", "cls_loss", "dfl_loss"}

    class Plain(Loop):
        remedy = ""

        def _setup_train(self) -> None:
            super()._setup_train()
            self.model.to(memory_format=torch.channels_last)  # in which sums have another order

        def save_model(self) -> bool:
            return False

    data = load_dataset(tiny_data)
    lesson = Lesson(tuple(data.split("train").samples), data.classes)
    with quiet():
        trainer = Plain.of(lesson, module._settings(step, str(tmp_path / "plain"), "cpu"), module.SILENT)
        trainer.model = student_network(step, data.classes, trust=False)
        trainer.train()
    wanted = trainer.ema.ema.half().float().state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in state_of(tmp_path / "student.pt").items())
    assert [dict(losses) for losses in done.losses] == trainer.losses


class EnoughSeenError(Exception):
    """Ends a training early."""


def test_the_warm_up_takes_a_tenth_of_the_updates(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def record(trainer: Loop) -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.ema.updates += 1
        if len(rates) == 4:
            raise EnoughSeenError

    monkeypatch.setattr(DetectionTrainer, "optimizer_step", record)
    step = replace(STEP, epochs=15, warmup_steps=1000, learning_rate=0.3, final_rate=1.0, stages=NOTHING)
    with pytest.raises(EnoughSeenError):
        distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3]), "30 updates"


@pytest.mark.skipif(not fast_in_bfloat16(torch.device("cpu")), reason="this CPU has no bfloat16")
def test_amp_is_felt_where_the_cpu_has_it(
    teacher: Path, trained: tuple[Path, DistillationRecord], tiny_data: Path, tmp_path: Path
) -> None:
    step = replace(STEP, amp=False)
    precise = distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state", device="cpu")
    assert precise.losses != trained[1].losses
    for name, loss in precise.losses[0].items():
        assert trained[1].losses[0][name] == pytest.approx(loss, rel=0.1, abs=0.02), name


@pytest.mark.parametrize("level", [entry.name for entry in fields(Weights)])
def test_each_level_pulls_on_the_student(level: str, teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    def gradient(weights: Weights) -> torch.Tensor:
        step = replace(STEP, stages=(DistillStage("one", 1.0, weights),), balance_every=0)
        student, batch = lesson_on(step, teacher)
        loss, items = student.criterion(student(batch["img"]), batch)
        assert (items[level] > 0) == (getattr(weights, level) > 0)
        loss.sum().backward()
        return student.model[4].cv1.conv.weight.grad  # type: ignore[no-any-return]

    assert (gradient(Weights(**{level: 1.0})) - gradient(Weights(**{_other(level): 1e-30}))).abs().max() > 1e-6


def _other(level: str) -> str:
    return "boxes" if level != "boxes" else "classes"


def aids(student: Any, teacher: Teacher, step: Distill, texts: Any = None) -> Any:
    seen = tap_points(student)
    return paired_aids(seen.widths, seen.strides, teacher, step, texts)


def lesson_on(
    step: Distill,
    teacher: Path,
    classes: tuple[str, ...] = ("red", "green"),
    samples: tuple[Sample, ...] = (),
    frames: int = 0,
    texts: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """A student in training with its criterion, and a batch."""
    from types import SimpleNamespace

    found = load_teacher(teacher)
    student = student_network(step, classes, trust=False)
    student.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=2)
    student.aids = aids(student, found, step, texts)
    pairs = shared_classes(classes, found.classes, step.same_classes)
    student.criterion = StudentLoss(
        student, StudentLesson(samples, classes, step, found, pairs, Path(), frames), lambda: 0.5
    )
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])
    batch = {"img": torch.rand(2, 3, SIDE, SIDE, generator=generator), "bboxes": boxes}
    return student.train(), {**batch, "batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.tensor([[0.0], [1.0]])}


@pytest.mark.parametrize(
    ("student", "teacher_model"),
    [
        pytest.param(
            "yolov8n.yaml", "yolo11n.yaml", marks=pytest.mark.family("YOLOv8", "distill", package="Ultralytics")
        ),
        pytest.param("yolo26n.yaml", "yolo11n.yaml", marks=pytest.mark.release),
        pytest.param(
            "yolo26n.yaml",
            "yolo26n.yaml",
            marks=[pytest.mark.slow, pytest.mark.family("YOLO26", "distill", "teach", package="Ultralytics")],
        ),
        pytest.param("yolo11n.yaml", "yolo26n.yaml", marks=pytest.mark.release),
        pytest.param("yolo11n.yaml", "yolov8-p6.yaml", marks=pytest.mark.slow),
        ("yolov8-p2.yaml", "yolo11n.yaml"),
    ],
)
def test_other_families_strides_and_class_lists_teach(student: str, teacher_model: str, tmp_path: Path) -> None:
    names = {0: "car", 1: "Green ", 2: "blue", 3: "crimson"}
    checkpoint = write_checkpoint(tmp_path / "teacher.pt", teacher_model, 0.1, names)
    step = replace(STEP, student=student, same_classes=("crimson = red",))
    network, batch = lesson_on(step, checkpoint)
    loss, items = network.criterion(network(batch["img"]), batch)
    loss.sum().backward()
    assert all(items[entry.name] > 0 for entry in fields(Weights))
    assert torch.isfinite(loss).all()
    assert network.model[0].conv.weight.grad.abs().max() > 0


OTHERS = {model: name for model, name in GENERATIONS.items() if model not in ("yolo11n", "yolo26n")}


@pytest.mark.parametrize("model", of_families("Ultralytics", OTHERS, "distill", "teach", release=OTHERS))
def test_further_generations_teach_and_learn(model: str, tmp_path: Path) -> None:
    width, names = WIDTHS[model], {0: "red", 1: "green"}
    checkpoint = write_checkpoint(tmp_path / "teacher.pt", f"{model}.yaml", width, names)
    network, batch = lesson_on(replace(STEP, student=f"{model}.yaml", width=width), checkpoint)
    loss, items = network.criterion(network(batch["img"]), batch)
    loss.sum().backward()
    assert all(items[entry.name] > 0 for entry in fields(Weights))
    assert network.model[0].conv.weight.grad.abs().max() > 0


def test_the_branch_that_ships_hears_its_teacher_beside_the_labels_to_the_end(tmp_path: Path) -> None:
    """Ultralytics lets the labels count more and more in it, from 0.2 to 0.9, and less in the other one."""
    checkpoint = write_checkpoint(tmp_path / "teacher.pt", "yolo26n.yaml", 0.1, {0: "red", 1: "green"})
    stages = (DistillStage("classes", 1.0, Weights(classes=1.0)),)
    step = replace(STEP, student="yolo26n.yaml", stages=stages)

    def pull(one2many: float) -> float:
        student, batch = lesson_on(step, checkpoint)
        labels = student.criterion._labels_loss
        labels.o2m, labels.o2o = one2many, 1 - one2many
        loss, _ = student.criterion(student(batch["img"]), batch)
        ships = student.model[-1].one2one_cv3[0][-1].weight
        by_labels, by_teacher = (
            torch.autograd.grad(part, ships, retain_graph=True)[0].norm() for part in (loss[:-1].sum(), loss[-1])
        )
        return float(by_teacher / by_labels)

    assert pull(0.1) == pytest.approx(pull(0.8), rel=0.05)


def test_a_student_that_is_its_teacher_is_told_nothing_new(teacher: Path) -> None:
    step = replace(STEP, student=str(teacher), width=None)
    network, batch = lesson_on(step, teacher)
    network.eval()
    network.model[-1].training = True
    items = network.criterion(network(batch["img"]), batch)[1]
    for name in ("neurons", "attention", "classes", "boxes", "relations", "weight_disagreement"):
        assert float(items[name]) == pytest.approx(0, abs=1e-4), name


def test_a_teacher_without_a_class_in_common_is_refused(teacher: Path) -> None:
    with pytest.raises(SpecError, match=r"knows none of the classes.*same_classes"):
        lesson_on(STEP, teacher, ("person", "vest"))
    with pytest.raises(SpecError, match="crimson"):
        lesson_on(replace(STEP, same_classes=("crimson = person",)), teacher, ("person", "vest"))


def test_a_students_checkpoint_keeps_what_it_knows_of_the_classes(teacher: Path) -> None:
    step = replace(STEP, student=str(teacher), width=None)
    network = student_network(step, ("green", "person", "red"), trust=False)
    known = load_checkpoint(teacher).model
    old, new = (each.model[-1].cv3[0][-1] for each in (known, network))
    assert torch.equal(new.weight[[0, 2]], old.weight[[1, 0]])
    assert torch.equal(new.bias[[0, 2]], old.bias[[1, 0]])
    assert network.model[-1].no == 3 + 4 * network.model[-1].reg_max
    assert network.eval()(torch.zeros(1, 3, SIDE, SIDE))[0].shape[1] == 7


def test_hidden_maps_are_those_of_the_backbone(teacher: Path) -> None:
    network = load_teacher(teacher)
    seen = network(torch.zeros(1, 3, SIDE, SIDE))
    assert tap_points(network.network).hidden == (4, 6, 10)  # type: ignore[attr-defined]
    assert [maps.shape[2] for maps in seen.hidden] == [maps.shape[2] for maps in seen.neck] == [8, 4, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": None}, "no student"),
        ({"student": "yolo99n"}, "yolo99n: no student"),
        ({"student": "yolo11n-seg.yaml"}, "not a box detector"),
        ({"student": "nowhere.pt"}, "nowhere.pt"),
    ],
)
def test_a_student_that_is_none_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        student_network(replace(STEP, **change), ("red",), trust=False)
    with pytest.raises(SpecError, match="leave out width"):
        student_network(replace(STEP, student="some.pt", width=0.5), ("red",), trust=False)


def test_a_description_that_does_not_describe_is_refused(tmp_path: Path) -> None:
    for layers in ("[[99, 1, Conv, [8]]]", "[[-1, 1, Conv, [8, 3, 2]]", "[[-1, 1, Nothing, [8]]]"):
        (tmp_path / "own.yaml").write_text(f"nc: 1\nbackbone: {layers}\nhead: []\n", "ascii")
        with pytest.raises(SpecError, match=r"own.yaml: no student"):
            student_network(replace(STEP, student=str(tmp_path / "own.yaml"), width=None), ("red",), trust=False)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in (None, "cpu", "1", "0,1"):
        require_device(device)
    for device in ("2", "0,2", "0,0", "cuda", "-1", ""):
        with pytest.raises(SpecError, match=r"device to train on; expected cpu, or of the GPUs 0, 1"):
            require_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="finds no GPU here"):
        require_device("0")


def test_bfloat16_that_a_gpu_only_emulates_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not fast_in_bfloat16(torch.device("cuda"))
    assert module._settings(STEP, "", None)["amp"] is False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert module._settings(STEP, "", None)["amp"] == "bf16"
    for step, device in ((STEP, "cpu"), (replace(STEP, amp=False), "0")):
        assert module._settings(step, "", device)["amp"] is False


def test_width_changes_channels_and_not_depth() -> None:
    wide, narrow = (student_network(replace(STEP, width=width), ("red",), trust=False) for width in (None, 0.14))
    assert len(list(wide.modules())) == len(list(narrow.modules()))
    assert sum(each.numel() for each in narrow.parameters()) < sum(each.numel() for each in wide.parameters()) / 2


class StoppedError(Exception):
    """What stands for a machine that stops."""


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_and_is_finished(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _shown(monkeypatch)
    step = replace(STEP, epochs=12)  # a weight moves in the 6th epoch, and in the first after the stop
    arguments = (teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    original = StudentLoss.update

    def stop(loss: Any) -> None:
        original(loss)
        if len(read_state(tmp_path / "state")["losses"] if (tmp_path / "state").exists() else []) == 7:  # type: ignore[index]
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(StudentLoss, "update", stop)
        with pytest.raises(StoppedError):
            distill_student(*arguments)
    assert not (tmp_path / "student.pt").exists()
    kept = read_state(tmp_path / "state")
    assert kept is not None
    assert (kept["epoch"], kept["finished"], kept["updates"]) == (6, False, 14)
    assert [len(files) for files in shown] == [12] * 8
    begun: list[tuple[int, torch.Tensor]] = []
    monkeypatch.setattr(module._StudentTrainer, "_model_train", _noted(begun))
    done = distill_student(*arguments)
    assert [epoch for epoch, _ in begun] == [7, 8, 9, 10, 11], "the others were not trained again"
    assert len(shown) == 8 + 5
    assert all(files not in shown[:at] for at, files in enumerate(shown)), "each epoch has an order of its own"
    assert torch.equal(begun[0][1], kept["network"]["model.0.conv.weight"])
    assert not torch.equal(begun[0][1], student_network(step, ("red", "green"), False).model[0].conv.weight)
    assert not torch.equal(begun[1][1], begun[0][1])
    assert read_state(tmp_path / "state")["updates"] == 24  # type: ignore[index]
    assert done.epochs == len(done.losses) == len(done.weights) == 12
    assert done.losses[:7] == tuple(kept["losses"])
    assert done.seconds > kept["seconds"]
    monkeypatch.setattr(module._StudentTrainer, "train", None)  # it is finished, so it is not called
    (tmp_path / "student.pt").unlink()
    assert distill_student(*arguments).losses == done.losses


def _shown(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The images of each epoch in order."""
    epochs: list[list[str]] = []
    originals = module._StudentTrainer._model_train, module._StudentTrainer.preprocess_batch

    def begin(trainer: Any) -> None:
        epochs.append([])
        originals[0](trainer)

    def note(trainer: Any, batch: Any) -> Any:
        epochs[-1] += batch["im_file"]
        return originals[1](trainer, batch)

    monkeypatch.setattr(module._StudentTrainer, "_model_train", begin)
    monkeypatch.setattr(module._StudentTrainer, "preprocess_batch", note)
    return epochs


def _noted(begun: list[tuple[int, torch.Tensor]]) -> Any:
    original = module._StudentTrainer._model_train

    def noting(trainer: Any) -> None:
        begun.append((trainer.epoch, trainer.model.model[0].conv.weight.detach().clone()))
        original(trainer)

    return noting


class Clock:
    """A clock by which each batch takes half a second, of the first epoch longer, and all else no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: float = 0.5) -> None:
        self.now = 1000.0
        original = Loop.run_callbacks

        def ticking(loop: Any, event: str) -> None:
            self.now += (0.5 if getattr(loop, "epoch", 0) else first) * (event == "on_train_batch_start")
            original(loop, event)

        monkeypatch.setattr(Loop, "run_callbacks", ticking)
        for user in (module, trainer):
            monkeypatch.setattr(user, "time", self)

    def time(self) -> float:
        return self.now


@pytest.mark.slow
def test_a_time_is_kept_and_counts_what_was_trained_before(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches are an epoch of a second."""
    Clock(monkeypatch)
    step = replace(STEP, epochs=50, minutes=3 / 60)
    done = distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert 3 <= done.seconds <= 4
    assert done.epochs in (3, 4)
    kept = read_state(tmp_path / "state")
    assert kept is not None
    torch.save({**kept, "seconds": 170.0, "finished": False}, tmp_path / "state")
    done = distill_student(teacher, tmp_path / "again.pt", tiny_data, replace(step, minutes=2.8), tmp_path / "state")
    assert done.epochs == kept["epoch"] + 2, "one more epoch was begun, and then the time was found to be over"
    assert 170 < done.seconds <= 171


def test_a_time_is_used_up_where_the_first_epoch_was_slow(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one of 3 seconds Ultralytics thinks that there is time for two; it is over in the third."""
    clock, rates, update = Clock(monkeypatch, first=1.5), [], Loop.optimizer_step

    def noted(loop: Any) -> None:
        update(loop)
        rates.append((clock.now - 1000, {group["lr"] / group["initial_lr"] for group in loop.optimizer.param_groups}))

    monkeypatch.setattr(Loop, "optimizer_step", noted)
    step = replace(STEP, epochs=50, minutes=4.5 / 60, stages=NOTHING)
    done = distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert 4.5 <= done.seconds <= 5
    assert done.epochs == 3
    for seconds, (factor,) in rates:
        assert factor == pytest.approx(max(1 - seconds / 4.5, 0) * 0.99 + 0.01), "the rate falls with the time"


def test_batches_that_are_halved_for_lack_of_memory_are_told_and_counted(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    kept: list[Any] = []
    original = StudentLoss.__call__

    def short(loss: Any, found: Any, batch: Any) -> Any:
        if not shares:
            kept.extend(weakref.ref(each) for each in loss._recorder.neck)
        else:
            assert not any(each() is not None for each in kept), "what was too large is gone"
        shares.append(loss._progress())
        if len(batch["img"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(loss, found, batch)

    class Notes(SilentProgress):
        said: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    monkeypatch.setattr(StudentLoss, "__call__", short)
    step = replace(STEP, epochs=1)
    distill_student(teacher, tmp_path / "one.pt", tiny_data, step, tmp_path / "state", progress=Notes())
    assert shares == [0, 0, 0.25, 0.5, 0.75]
    assert Notes.said == ["distill: too little memory for batches of 6, now 3"]


def test_a_gpu_without_memory_for_any_batch_is_an_error_of_one_line(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(StudentLoss, "__call__", short)
    with pytest.raises(CompressError, match=r"too little memory; found CUDA out of memory; fix: a smaller batch"):
        distill_student(teacher, tmp_path / "one.pt", tiny_data, replace(STEP, epochs=1), tmp_path / "state")


def test_a_training_that_diverges_is_said_to(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    stages = (DistillStage("far", 1.0, Weights(features=1e38, classes=1e38)),)
    step = replace(STEP, stages=stages, balance_every=0)
    with pytest.raises(CompressError, match=r"diverged in epoch \d.*weights of the stages"):
        distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert not (tmp_path / "student.pt").exists()


def test_what_travels_to_other_processes_arrives(
    teacher: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ultralytics starts one process per GPU, and hands over class, settings, model and listeners as a pickle."""
    import pickle

    found = load_teacher(teacher)
    data = load_dataset(tiny_data)
    lesson = StudentLesson(tuple(data.split("train").samples), data.classes, STEP, found, ((0, 0),), tmp_path / "state")
    with quiet():
        trainer = module._StudentTrainer.of(lesson, module._settings(STEP, str(tmp_path / "run"), "cpu"), module.SILENT)
        student = student_network(STEP, data.classes, trust=False)
        student.aids = aids(student, found, STEP)
        listeners = {**get_default_callbacks(), "edgekd": trainer.callbacks["edgekd"]}
        sent = {"args": vars(trainer.args), "model": student, "callbacks": listeners, "trainer": type(trainer)}
        arrived = pickle.loads(pickle.dumps(sent))
    monkeypatch.setattr("edgekd.detectors.ultralytics.loop.RANK", 1)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    level = LOGGER.level
    try:
        again = arrived["trainer"](overrides=arrived["args"], _callbacks=arrived["callbacks"])
        again.model = arrived["model"]
        again.train()
    finally:
        LOGGER.setLevel(level)
    assert capfd.readouterr().out == "", "stdout is for results"
    assert read_state(tmp_path / "state")["finished"]  # type: ignore[index]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rtdetr(tmp_path_factory.mktemp("rtdetr") / "rtdetr.pt", ("green", "red"), SIDE)


@pytest.mark.family("RT-DETR", "describe", package="Ultralytics")
def test_a_transformers_graph_finds_what_ultralytics_finds(transformer: Path, tmp_path: Path) -> None:
    """Boxes, scores, classes and their order: of a frame that is stretched to the input."""
    spec = export(UltralyticsDetector(transformer), tmp_path / "graph.onnx", 17).spec
    assert spec.classes == ("green", "red")
    frame = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 4 * SIDE, 3), np.uint8)
    batch, placement = letterbox(frame, spec.preprocess)
    with torch.no_grad():
        rows = load_checkpoint(transformer).model(torch.from_numpy(batch))[0][0].numpy()
    x, y, width, height = rows[:, :4].T * np.array([[4 * SIDE], [2 * SIDE], [4 * SIDE], [2 * SIDE]])
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    with ONNXRUNTIME_CPU.load(tmp_path / "graph.onnx") as session:
        found = decode(session.run(batch), spec, placement, SCORING)
    assert len(rows) == 20 < len(found)  # Ultralytics finds as many as it has queries
    assert np.allclose(found.boxes[:20], corners.clip(0, [4 * SIDE, 2 * SIDE] * 2), atol=1e-2)
    assert np.allclose(found.scores[:20], rows[:, 4], atol=1e-5)
    assert found.classes[:20].tolist() == rows[:, 5].tolist()


def test_frames_of_a_transformer_are_those_that_it_was_trained_on(transformer: Path, tmp_path: Path) -> None:
    spec = export(UltralyticsDetector(transformer), tmp_path / "graph.onnx", 17).spec
    assert load_teacher(transformer).preprocess == spec.preprocess


def test_mixed_precision_does_not_round_a_transformers_boxes(transformer: Path) -> None:
    """Their places in the frame would have steps of 1/256 of it: 2.5 of 640 pixels."""
    found, frames = load_teacher(transformer), torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    wanted = found(frames).objects
    with torch.autocast("cpu", torch.bfloat16):
        mixed = found(frames).objects
    assert mixed is not None
    assert wanted is not None
    assert torch.equal(mixed.boxes, wanted.boxes)
    assert torch.equal(mixed.scores, wanted.scores)


@pytest.mark.slow
@pytest.mark.family("RT-DETR", "teach", package="Ultralytics")
def test_a_transformer_teaches(transformer: Path, tiny_data: Path, tmp_path: Path) -> None:
    step = replace(STEP, epochs=1)
    done = distill_student(transformer, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert all(done.losses[0][entry.name] > 0 for entry in fields(Weights))
    assert export(UltralyticsDetector(tmp_path / "student.pt"), tmp_path / "s.onnx", 17).spec.classes == (
        "red",
        "green",
    )


def test_rare_classes_count_more_in_what_the_teacher_says(teacher: Path) -> None:
    def told(power: float) -> float:
        step = replace(STEP, class_power=power)
        truth = Truth(np.zeros((5, 4), np.float32), np.array([0, 0, 0, 0, 1]), np.zeros(5, bool))
        student, batch = lesson_on(step, teacher, samples=(Sample(Path(), truth),))
        return float(student.criterion(student(batch["img"]), batch)[1]["classes"])

    assert told(0.5) != pytest.approx(told(0.0), rel=1e-3)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The samples of each epoch, in order."""
    epochs: list[list[int]] = []
    original = Batches.__iter__

    def noted(batches: Any) -> Iterator[list[int]]:
        epochs.append([])
        for batch in original(batches):
            epochs[-1] += batch
            yield batch

    monkeypatch.setattr(Batches, "__iter__", noted)
    return epochs


def test_images_with_rare_classes_are_seen_more_often_and_as_the_seed_and_the_epoch_say(
    teacher: Path, tiny_data: Path, tmp_path: Path, shown: list[list[int]]
) -> None:
    step = replace(STEP, repeat=1.0, close_mosaic=1, epochs=3)
    done = distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    data = load_dataset(tiny_data)
    factors = repeat_factors([sample.truth for sample in data.split("train").samples], 2, 1.0)
    assert done.epochs == 3
    assert factors.max() > 1
    length = round(factors.sum())
    assert shown[:3] == [np.resize(epoch_order(factors, 0, epoch), length).tolist() for epoch in range(3)]


def test_what_needs_one_process_is_refused_on_several_gpus(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    files = (teacher, tmp_path / "student.pt", tiny_data)
    for name, value in (("repeat", 0.5), ("unlabelled", "frames"), ("conflict", True)):
        with pytest.raises(SpecError, match=f"{name} is for one GPU"):
            distill_student(*files, replace(STEP, **{name: value}), tmp_path / "state", device="0,1")


@pytest.mark.parametrize("model", ["yolo11n.yaml", "yolo26n.yaml"])
def test_a_doubtful_box_of_a_teacher_is_neither_an_object_nor_background(teacher: Path, model: str) -> None:
    """One over the whole frame takes its class out of the loss on the labels, and only its class."""
    step = replace(STEP, student=model, stages=NOTHING)

    def gradient(number: float | None) -> torch.Tensor:
        student, batch = lesson_on(step, teacher, frames=1)
        batch = {name: batch[name][:1] for name in batch}
        if number is not None:
            batch["cls"] = torch.cat([batch["cls"], torch.tensor([[number]])])
            batch["bboxes"] = torch.cat([batch["bboxes"], torch.tensor([[0.5, 0.5, 1.0, 1.0]])])
            batch["batch_idx"] = torch.zeros(2)
        student.criterion(student(batch["img"]), batch)[0].sum().backward()
        return student.model[-1].cv3[0][-1].bias.grad  # type: ignore[no-any-return]

    free, red, green = gradient(None), gradient(2.0), gradient(3.0)
    assert free.abs().min() > 0
    assert red[0] == green[1] == 0
    assert red[1] == free[1]
    assert green[0] == free[0]


def test_frames_that_the_teacher_labelled_are_a_share_of_each_batch(
    teacher: Path, tiny_data: Path, tmp_path: Path, shown: list[list[int]]
) -> None:
    step = replace(STEP, unlabelled="given below", unlabelled_share=0.5)
    frames = load_dataset(tiny_data).split("val").samples[:5]
    files = (teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert distill_student(*files, frames=frames).epochs == 2
    batches = [epoch[at : at + 6] for epoch in shown[:2] for at in range(0, len(epoch), 6)]
    assert len(batches) == 8, "each labelled image once an epoch, three at a time"
    assert all([at >= 12 for at in batch] == [False] * 3 + [True] * 3 for batch in batches)
    assert {at for batch in batches for at in batch} == set(range(17))


def test_where_labels_and_teacher_disagree_the_neck_hears_both_and_the_heads_their_sum(teacher: Path) -> None:
    def gradients(conflict: bool) -> tuple[list[Any], torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        step = replace(STEP, conflict=conflict, balance_every=0, stages=OPPOSED)
        student, batch = lesson_on(step, teacher)
        loss, items = student.criterion(student(batch["img"]), batch)
        neck = student.criterion._recorder.neck
        parts = [torch.autograd.grad(part, neck, retain_graph=True) for part in (loss[:-1].sum(), loss[-1])]
        for each in neck:
            each.retain_grad()
        loss.sum().backward()
        reached = torch.cat([each.grad.flatten() for each in neck])
        found = {name: each.grad for name, each in student.named_parameters() if each.grad is not None}
        return [torch.cat([each.flatten() for each in part]) for part in parts], reached, found, items

    parts, plain, before, _ = gradients(False)
    _, reconciled, after, items = gradients(True)
    rows = torch.stack(parts)
    cosine = torch.nn.functional.cosine_similarity(*parts, dim=0)
    assert cosine < 0, "otherwise there is nothing to reconcile"
    assert items["weight_cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert not torch.allclose(plain, reconciled, rtol=0.01)
    assert (rows @ reconciled / rows.norm(dim=1) / reconciled.norm()).min() > -1e-3, "neither gets worse"
    head = [name for name in before if name.startswith("model.23.cv")]
    assert head
    assert all(torch.allclose(before[name], after[name], rtol=1e-4, atol=1e-6) for name in head)
    assert not torch.allclose(before["model.4.cv1.conv.weight"], after["model.4.cv1.conv.weight"], rtol=0.01)


def test_words_pull_on_the_student_and_share_with_its_teacher(
    teacher: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def encode(sentences: Sequence[str]) -> Any:
        asked.extend(sentences)
        return hashed_words(sentences)

    monkeypatch.setattr(text, "minilm", lambda: encode)
    step = replace(STEP, text=0.5, prompts={"red": ("crimson square",)}, balance_every=0, epochs=1)
    files = (tmp_path / "student.pt", tiny_data)
    done = distill_student(teacher, *files, step, tmp_path / "state")
    assert "a photo of a crimson square" in asked
    assert done.losses[0]["text"] > 0
    assert 0.5 * 0.24 < done.weights[0]["text"] < 0.5 * 1.76
    assert done.weights[0]["text"] != pytest.approx(0.5, abs=1e-3), "how sure both are decides"
    assert done.weights[0]["classes"] == pytest.approx(2 - done.weights[0]["text"] / 0.5, rel=0.05)
    assert not any("aids" in name for name in state_of(tmp_path / "student.pt"))


def test_words_alone_teach_without_a_teacher(teacher: Path) -> None:
    texts = torch.from_numpy(class_texts(("red", "green"), hashed_words))
    step = replace(STEP, stages=NOTHING, text=1.0)
    student, batch = lesson_on(step, teacher, texts=texts)
    loss, items = student.criterion(student(batch["img"]), batch)
    loss[-1].backward()
    assert set(items) == {"box_loss", "cls_loss", "dfl_loss", "text", "weight_text"}
    assert student.model[4].cv1.conv.weight.grad.abs().max() > 0
    assert student.aids.words.project.weight.grad.abs().max() > 0
