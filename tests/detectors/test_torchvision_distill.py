"""torchvision's detectors as teachers and as students: told by either family, kept over stops, and exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_marks import of_families
from test_torchvision_detector import NAMES, SIDE, SMALL, make

from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.core.errors import CompressError, SpecError
from edgekd.data.dataset import load_dataset
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, export

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from edgekd.compress.distillation.loss_terms import shared_classes  # noqa: E402
from edgekd.detectors.family import load_teacher  # noqa: E402
from edgekd.detectors.results import DistillationRecord  # noqa: E402
from edgekd.detectors.teacher import paired_aids  # noqa: E402
from edgekd.detectors.torch_support import read_state  # noqa: E402
from edgekd.detectors.torchvision import distill as module  # noqa: E402
from edgekd.detectors.torchvision.distill import (  # noqa: E402
    UNSUPPORTED,
    AugmentedFrames,
    Batch,
    TorchvisionStudentLoss,
    distill_student,
    student_network,
)
from edgekd.detectors.torchvision.network import load_network, save_network  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's own
ALL = Weights(neurons=1, attention=1, features=1, classes=1, boxes=1, relations=1)
STEP = Distill(
    student=f"torchvision/{SMALL}",
    epochs=2,
    batch=6,
    image_size=SIDE,
    warmup_steps=2,
    stages=(DistillStage("all", 1.0, ALL, adaptive=True),),
    balance_every=2,
)
NOTHING = (DistillStage("none", 1.0, Weights()),)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.tv.pt"
    save_network(make("fcos_resnet50_fpn", ("green", "red")), path)
    return path


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the other family, with random weights, that is sure of something here and there."""
    ultralytics_distill = pytest.importorskip("edgekd.detectors.ultralytics.distill")
    network = ultralytics_distill.student_network(Distill("yolo11n.yaml", width=0.1), ("red", "green"), trust=False)
    for level in network.model[-1].cv3:
        level[-1].weight.data.normal_(0, 1)
        level[-1].bias.data.fill_(-1)
    path = tmp_path_factory.mktemp("yolo") / "teacher.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": SIDE}}, path)
    return path


@pytest.fixture(scope="module")
def trained(yolo: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistillationRecord]:
    folder = tmp_path_factory.mktemp("trained")
    return folder / "one.tv.pt", distill_student(yolo, folder / "one.tv.pt", tiny_data, STEP, folder / "state")


def same(one: Path, other: Path) -> bool:
    found, wanted = (load_network(path).state_dict() for path in (one, other))
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


def test_the_student_is_a_file_like_any_of_its_family(trained: tuple[Path, DistillationRecord], tmp_path: Path) -> None:
    done = export(load(trained[0]), tmp_path / "student.onnx", 17)
    assert done.error < TOLERANCE
    assert done.spec.classes == ("red", "green")
    assert (done.spec.preprocess.height, done.spec.preprocess.width) == (SIDE, SIDE)
    assert trained[1].parameters == sum(each.numel() for each in load_network(trained[0]).parameters())


def test_every_level_and_its_weight_are_noted_in_each_epoch(trained: tuple[Path, DistillationRecord]) -> None:
    done = trained[1]
    assert done.epochs == len(done.losses) == len(done.weights) == 2
    assert done.updates == 2 * 2, "a weight update for each batch"
    levels = {entry.name for entry in fields(Weights)}
    assert set(done.losses[0]) == levels | {"bbox_regression", "classification"}
    assert set(done.weights[0]) == levels | {"teacher", "disagreement"}
    assert all(value > 0 for epoch in (*done.losses, *done.weights) for value in epoch.values())


@pytest.mark.slow
def test_the_same_arguments_give_the_same_student(
    yolo: Path, trained: tuple[Path, DistillationRecord], tiny_data: Path, tmp_path: Path
) -> None:
    again = distill_student(yolo, tmp_path / "one.tv.pt", tiny_data, STEP, tmp_path / "state")
    assert again.losses == trained[1].losses
    assert same(tmp_path / "one.tv.pt", trained[0])
    other = distill_student(yolo, tmp_path / "two.tv.pt", tiny_data, replace(STEP, seed=1), tmp_path / "other")
    assert other.losses != again.losses


class StoppedError(Exception):
    """What stands for a machine that stops."""


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_as_if_it_had_not(
    yolo: Path,
    trained: tuple[Path, DistillationRecord],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (yolo, tmp_path / "one.tv.pt", tiny_data, STEP, tmp_path / "state")
    original = module._Training._train_epoch

    def stop(training: Any, *others: Any) -> None:
        if training.losses:
            raise StoppedError
        original(training, *others)

    with monkeypatch.context() as patched:
        patched.setattr(module._Training, "_train_epoch", stop)
        with pytest.raises(StoppedError):
            distill_student(*arguments)
    kept = read_state(tmp_path / "state")
    assert kept is not None
    assert (len(kept["losses"]), kept["finished"]) == (1, False)
    assert not (tmp_path / "one.tv.pt").exists()
    done = distill_student(*arguments)
    assert done.losses == trained[1].losses
    assert done.weights == trained[1].weights
    assert same(tmp_path / "one.tv.pt", trained[0])
    monkeypatch.setattr(module._Training, "_train_epoch", stop)  # it is finished, so it is not called
    (tmp_path / "one.tv.pt").unlink()
    assert distill_student(*arguments).losses == done.losses
    assert same(tmp_path / "one.tv.pt", trained[0])


@pytest.mark.slow
def test_a_time_is_kept_within_a_step(
    yolo: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which a step takes a second: after four of two an epoch the time is over, in the first half of one."""
    seconds = iter(range(1000))
    steps: list[float] = []
    original = module._Training._train_batch

    def step_of_a_second(training: Any, batch: Batch, share: float, epochs: float) -> Any:
        steps.append(share)
        clock["now"] = float(next(seconds)) + 1
        return original(training, batch, share, epochs)

    clock = {"now": 0.0}
    monkeypatch.setattr(module._Training, "_train_batch", step_of_a_second)
    monkeypatch.setattr(module, "monotonic", lambda: clock["now"])
    step = replace(STEP, epochs=1, minutes=5 / 60, stages=NOTHING)
    done = distill_student(yolo, tmp_path / "one.tv.pt", tiny_data, step, tmp_path / "state")
    assert steps == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert (done.seconds, done.epochs) == (5.0, 3)
    kept = read_state(tmp_path / "state")
    assert kept is not None
    torch.save({**kept, "seconds": 170.0, "finished": False}, tmp_path / "state")
    steps.clear()
    done = distill_student(yolo, tmp_path / "two.tv.pt", tiny_data, replace(step, minutes=172 / 60), tmp_path / "state")
    assert (len(steps), done.seconds) == (2, 172.0), "what was trained before counts"


def lesson_on(
    step: Distill, teacher: Path, classes: tuple[str, ...] = ("red", "green")
) -> tuple[Any, TorchvisionStudentLoss, Batch]:
    """A student in training with its loss, and a batch."""
    found, student = load_teacher(teacher), student_network(step, classes, SIDE).train()
    pairs = shared_classes(classes, found.classes, step.same_classes)
    aids = paired_aids(student.widths, student.strides, found, step)
    generator = torch.Generator().manual_seed(0)
    targets = [
        {"boxes": torch.tensor([[10.0, 10.0, 40.0, 30.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return (
        student,
        TorchvisionStudentLoss(found, step, pairs, aids),
        Batch(torch.rand(2, 3, SIDE, SIDE, generator=generator), targets),
    )


@pytest.mark.slow
def test_each_level_pulls_on_the_student(teacher: Path) -> None:
    levels = {entry.name for entry in fields(Weights)}

    def gradient(stages: tuple[DistillStage, ...], weighted: set[str]) -> torch.Tensor:
        student, loss, batch = lesson_on(replace(STEP, stages=stages, balance_every=0), teacher)
        total, losses, weights = loss(student, batch, 0.5)
        assert levels & losses.keys() == levels & weights.keys() == weighted
        total.backward()
        return student.model.backbone.features[0][0][0].weight.grad  # type: ignore[no-any-return]

    labels_alone = gradient(NOTHING, set())
    for level in sorted(levels):
        pulled = gradient((DistillStage("one", 1.0, Weights(**{level: 1.0})),), {level})
        assert (pulled - labels_alone).abs().max() > 1e-7, level


@pytest.mark.parametrize("builder", of_families("torchvision", NAMES, "distill", fast=[SMALL]))
def test_each_builder_learns_from_either_family(builder: str, yolo: Path, teacher: Path) -> None:
    for path in (yolo, teacher):
        student, loss, batch = lesson_on(replace(STEP, student=builder), path)
        total, losses, _ = loss(student, batch, 0.5)
        total.backward()
        assert all(losses[entry.name] > 0 for entry in fields(Weights))
        assert torch.isfinite(total)
        assert all(torch.isfinite(each.grad).all() for each in student.parameters() if each.grad is not None)


@pytest.mark.slow
@pytest.mark.family("FCOS", "teach", package="torchvision")
def test_it_teaches_a_student_by_ultralytics(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    ultralytics_distill = pytest.importorskip("edgekd.detectors.ultralytics.distill")
    step = replace(STEP, student="yolo11n.yaml", width=0.06, epochs=1)
    done = ultralytics_distill.distill_student(teacher, tmp_path / "one.pt", tiny_data, step, tmp_path / "state")
    assert all(done.losses[0][entry.name] > 0 for entry in fields(Weights))
    assert done.teacher_parameters == sum(each.numel() for each in load_network(teacher).parameters())


def test_a_students_file_keeps_what_it_knows_of_the_classes(teacher: Path) -> None:
    old = load_network(teacher)
    new = student_network(replace(STEP, student=str(teacher)), ("red", "person"), SIDE)
    assert (new.classes, new.image_size) == (("red", "person"), (SIDE, SIDE))
    name = "head.classification_head.cls_logits.bias"
    found, wanted = (each.model.state_dict()[name] for each in (new, old))
    assert torch.equal(found[[0, 1]], wanted[[0, 2]])  # the background, and red


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": "torchvision/ssd"}, "ssd"),
        ({"student": "nowhere.tv.pt"}, "no such file"),
        ({"image_size": 100}, "multiples of 32"),
        ({"width": 0.5}, "width is not for students by torchvision"),
        ({"repeat": 0.5}, "repeat is not for"),
        ({"conflict": True}, "conflict is not for"),
        ({"text": 0.5}, "text is not for"),
        ({"unlabelled": "frames"}, "unlabelled is not for"),
        ({"class_power": 0.5}, "class_power is not for"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    change: dict[str, Any], said: str, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    arguments = (teacher, tmp_path / "one.tv.pt", tiny_data, replace(STEP, **change), tmp_path / "state")
    with pytest.raises(SpecError, match=said):
        distill_student(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_setting_that_is_not_here_is_one_of_the_steps() -> None:
    assert set(UNSUPPORTED) <= {entry.name for entry in fields(Distill)}


def test_several_gpus_are_refused(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one GPU"):
        distill_student(teacher, tmp_path / "one.tv.pt", tiny_data, STEP, tmp_path / "state", device="0,1")


@pytest.mark.slow
def test_a_training_that_diverges_is_said_to(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    step = replace(STEP, stages=(DistillStage("far", 1.0, Weights(features=1e38, classes=1e38)),), balance_every=0)
    with pytest.raises(CompressError, match=r"diverged in epoch 1.*weights of the stages"):
        distill_student(teacher, tmp_path / "one.tv.pt", tiny_data, step, tmp_path / "state")
    assert not (tmp_path / "one.tv.pt").exists()


def test_frames_are_varied_with_their_boxes_and_as_seed_epoch_and_image_say(tiny_data: Path) -> None:
    """The squares are far brighter or darker than what surrounds them in one channel, wherever they are moved to."""
    data = load_dataset(tiny_data)

    def shown(seed: int, epoch: int) -> list[Any]:
        frames = AugmentedFrames(data.split("train").samples, (SIDE, SIDE), seed)
        frames.epoch = epoch
        return [frames[at] for at in range(len(frames))]

    first = shown(0, 0)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(first, shown(0, 0), strict=True))
    for others in (shown(0, 1), shown(1, 0)):
        assert not any(torch.equal(one[0], other[0]) for one, other in zip(first, others, strict=True))
    contrasts = []
    for frame, target in first:
        assert (frame.shape, frame.dtype) == ((3, SIDE, SIDE), torch.float32)
        assert 0 <= frame.min() <= frame.max() <= 1
        for (left, top, right, bottom), label in zip(target["boxes"].round().int(), target["labels"], strict=True):
            inside = frame[:, top:bottom, left:right].mean((1, 2))
            contrasts.append(float(inside[int(label) - 1] - inside[2 - int(label)]))  # red is class 1, green class 2
    assert np.mean(contrasts) > 0.2
    assert np.mean(np.array(contrasts) > 0) > 0.9


@pytest.mark.slow
def test_no_image_is_alone_in_a_batch(yolo: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The last maps of SSDlite have one place: batch norm cannot train on that of one image."""
    arguments = (yolo, tmp_path / "one.tv.pt", tiny_data)
    step = replace(STEP, epochs=1, batch=11, stages=NOTHING)  # of 12 images
    assert distill_student(*arguments, step, tmp_path / "state").epochs == 1
    with pytest.raises(CompressError, match=r"one image alone.*a batch of 2 or more"):
        distill_student(*arguments, replace(step, batch=1), tmp_path / "other")
    for images in range(1, 30):
        for batch in range(1, 30):
            parts = module._batched(range(images), batch)
            assert [at for part in parts for at in part] == list(range(images))
            assert {len(part) for part in parts[:-1]} <= {batch}
            assert 1 < len(parts[-1]) <= batch + 1 or len(parts) == 1 or batch == 1


def test_a_crowd_is_no_object(tiny_data: Path) -> None:
    sample = load_dataset(tiny_data).split("train").samples[0]
    crowd = replace(sample, truth=replace(sample.truth, crowd=np.ones(len(sample.truth), bool)))
    _, target = AugmentedFrames([crowd], (SIDE, SIDE), 0)[0]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)


@pytest.mark.release
def test_it_is_trained_and_scored_by_command(
    edgekd: Callable[..., Any], teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = 'name = "small"\n[[steps]]\nkind = "distill"\nbatch = 6\n'
    (tmp_path / "small.toml").write_text(recipe, "utf-8")
    flags = ("--data", tiny_data, "--recipe", tmp_path / "small.toml", "--epochs", 1, "--device", "cpu", "--json")
    done = edgekd("distill", teacher, f"torchvision/{SMALL}", *flags, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.json["checkpoint"].endswith("student.tv.pt")
    assert done.json["after"]["map50_95"] is not None
    assert load_network(tmp_path / "out" / "student.tv.pt").image_size == (SIDE, SIDE)
    scored = edgekd("eval", tmp_path / "out" / "student.tv.pt", "--data", tiny_data, "--json")
    assert scored.json["map50_95"] == done.json["after"]["map50_95"]
