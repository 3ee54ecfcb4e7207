"""A cached teacher: its objects stay on what they show, and it runs once for each image."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from random_detector import write_detector

from edgekd.builds.stages import train
from edgekd.builds.stages.base import StageContext
from edgekd.compress.distillation.prediction_cache import MAX_OBJECTS, object_record_type
from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.detectors.results import DistillationRecord

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from edgekd.detectors.cached_teacher import cached_objects  # noqa: E402
from edgekd.detectors.family import load_teacher  # noqa: E402
from edgekd.detectors.ultralytics.distill import distill_student  # noqa: E402
from edgekd.detectors.ultralytics.features import UltralyticsTeacher  # noqa: E402
from edgekd.detectors.ultralytics.loop import LabelledImages, ultralytics_label  # noqa: E402
from edgekd.detectors.ultralytics.objects import labels_with_objects, split_objects  # noqa: E402
from edgekd.detectors.ultralytics.upstream import DEFAULT_CFG  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 96
IMAGES = 12
"""Training images of the tiny data set."""
TASK = (DistillStage("task", 1.0, Weights(classes=1.0, boxes=1.0)),)
STEP = Distill(student="yolo11n.yaml", width=0.06, epochs=2, batch=6, image_size=64, warmup_steps=0, stages=TASK)


def scenes(folder: Path, count: int) -> tuple[list[Sample], np.ndarray]:
    """Black images with a white rectangle each, labelled with every second one, and the rectangles: x, y, w, h."""
    rng, samples = np.random.default_rng(0), []
    middle, size = rng.uniform(0.4, 0.6, (count, 2)), rng.uniform(0.2, 0.5, (count, 2))
    for index, (x, y, width, height) in enumerate(np.concatenate([middle, size], axis=1)):
        image = np.zeros((80 + 8 * index, 128, 3), np.uint8)
        frame = np.array([128, len(image)])
        low, high = (np.rint((np.array([x, y]) + sign * np.array([width, height]) / 2) * frame) for sign in (-1, 1))
        cv2.rectangle(image, low.astype(int).tolist(), (high.astype(int) - 1).tolist(), (255, 255, 255), -1)
        cv2.imwrite(str(folder / f"{index}.png"), image)
        box = np.concatenate([low / frame, high / frame]).astype(np.float32)
        own = index % 2
        truth = Truth(np.tile(box, (own, 1)), np.zeros(own, np.int64), np.zeros(own, bool))
        samples.append(Sample(folder / f"{index}.png", truth))
        middle[index], size[index] = (low + high) / 2 / frame, (high - low) / frame
    return samples, np.concatenate([middle, size], axis=1)


def augmented(samples: list[Sample], records: np.ndarray, mosaic: float) -> LabelledImages:
    settings = ultralytics_settings(mosaic=mosaic, scale=0.4, translate=0.1, fliplr=0.5, flipud=0.5, hsv_v=0, hsv_s=0)
    images = LabelledImages(samples, SIDE, data={"nc": 2, "channels": 3, "names": {}}, hyp=settings, batch_size=4)
    images.labels = labels_with_objects(images.labels, records, 2)
    return images


def ultralytics_settings(**changes: Any) -> Any:
    return SimpleNamespace(**{**vars(DEFAULT_CFG), **changes})


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_augmentation_moves_an_object_with_what_it_shows(mosaic: float, tmp_path: Path) -> None:
    samples, rectangles = scenes(tmp_path, 6)
    records = np.zeros(6, object_record_type(3))
    order = np.array([3, 0, 1, 5, 2, 4])  # of the records: an image that was read later may come first
    records["index"], records["count"], records["boxes"][:, 0] = order, 1, rectangles[order]
    records["scores"][:, 0] = np.arange(6)[:, None] + np.array([0, 0.25, 0.5])
    images, alone, labelled = augmented(samples, records, mosaic), 0, 0
    for seed in range(12):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        batch, objects = split_objects(images.collate_fn([images[seed % 6]]), records, 2)
        taught = objects.boxes[0].mT[objects.scores[0].amax(dim=0) > -1]
        pixels = batch["img"][0].float().mean(dim=0)
        if not mosaic:  # a single object: its box is that of the white pixels
            rows, columns = (pixels > 128 + 64).nonzero().aminmax(dim=0)
            ((x, y, width, height),) = (taught * SIDE).tolist()
            assert [y - height / 2, x - width / 2] == pytest.approx(rows.tolist(), abs=1.6)
            assert [y + height / 2, x + width / 2] == pytest.approx([each + 1 for each in columns.tolist()], abs=1.6)
            assert objects.scores[0, 0, 0] == order.tolist().index(seed % 6)
        for x, y, *_ in (taught * (SIDE - 1)).tolist():
            assert pixels[round(y), round(x)] > 128 + 64
        for own in batch["bboxes"]:
            assert (taught - own).abs().amax(dim=1).min() < 1e-4, "an object with a label has the label's box"
        assert (batch["cls"] == 0).all()
        assert batch["cls"].dtype == torch.float32
        alone += len(taught) > len(batch["bboxes"])
        labelled += len(batch["bboxes"])
    assert alone, "and one without a label has its own"
    assert labelled


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights that is sure of something here and there; its own size is 96 pixels."""
    path = write_detector(tmp_path_factory.mktemp("teacher"), "yolo11n.yaml", 0.1, SIDE)
    content = torch.load(path, weights_only=False)
    torch.manual_seed(0)
    for level in content["model"].model[-1].cv3:
        level[-1].weight.data.normal_(0, 1)
        level[-1].bias.data.fill_(-1)
    torch.save(content, path)
    return path


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the batches that the teacher sees."""
    shapes: list[tuple[int, ...]] = []
    forward = UltralyticsTeacher.forward

    def noted(network: Any, batch: Any) -> Any:
        shapes.append(tuple(batch.shape))
        return forward(network, batch)

    monkeypatch.setattr(UltralyticsTeacher, "forward", noted)
    return shapes


def test_a_cached_teacher_runs_once_for_each_image_at_its_own_size(
    teacher: Path, tiny_data: Path, tmp_path: Path, frames: list[tuple[int, ...]]
) -> None:
    losses = []
    for name in ("one", "two"):
        files = (tmp_path / f"{name}.pt", tiny_data, STEP, tmp_path / f"{name}.state")
        losses.append(distill_student(teacher, *files, device="cpu", cache=tmp_path / "a.predictions").losses)
        assert frames == [(4, 3, SIDE, SIDE)] * (IMAGES // 4)
    assert losses[0] == losses[1]
    assert all(epoch[name] > 0 for epoch in losses[0] for name in ("classes", "boxes"))


def test_a_live_teacher_runs_in_every_step(
    teacher: Path, tiny_data: Path, tmp_path: Path, frames: list[tuple[int, ...]]
) -> None:
    step = replace(STEP, teacher="live", epochs=1)
    distill_student(teacher, tmp_path / "student.pt", tiny_data, step, tmp_path / "state", device="cpu")
    assert frames == [(6, 3, 64, 64)] * 2
    assert not list(tmp_path.glob("*.predictions"))


def test_a_killed_process_does_not_run_the_teacher_again_on_what_it_has_stored(
    teacher: Path, tiny_data: Path, tmp_path: Path, frames: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = load_dataset(tiny_data).split("train").samples
    network, cache = load_teacher(teacher), tmp_path / "a.predictions"
    whole = cached_objects(network, samples, tmp_path / "b.predictions", 1 << 20, SILENT)
    frames.clear()
    forward = UltralyticsTeacher.forward

    def killed(network: Any, batch: Any) -> Any:
        if len(frames) == 2:
            raise KeyboardInterrupt
        return forward(network, batch)

    with monkeypatch.context() as patch:
        patch.setattr(UltralyticsTeacher, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_objects(network, samples, cache, 1 << 20, SILENT)
    assert np.array_equal(cached_objects(network, samples, cache, 1 << 20, SILENT), whole)
    assert len(frames) == 3, "two batches, and after the kill the third one"
    assert whole["index"].tolist() == list(range(IMAGES))
    assert 0 < whole["count"].max() <= MAX_OBJECTS
    assert (whole["boxes"] >= 0).all()
    assert (whole["boxes"] <= 1).all()
    with pytest.raises(SpecError, match="larger cache_size"):
        cached_objects(network, samples, tmp_path / "c.predictions", whole.nbytes - 1, SILENT)


def test_objects_count_neither_as_labels_nor_as_crowds(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Beside a teacher whose stage never comes the losses on the labels are those of a training without one."""
    never = (DistillStage("labels", 1.0, Weights()), DistillStage("never", 1e-9, Weights(classes=1.0)))
    crowd = np.array([True])
    frames = [replace_truth(sample, crowd) for sample in load_dataset(tiny_data).split("val").samples[:4]]
    losses = []
    for name, stages in (("taught", never), ("alone", never[:1])):
        step = replace(STEP, epochs=1, stages=stages, unlabelled="given below", unlabelled_share=0.5)
        files = (tmp_path / f"{name}.pt", tiny_data, step, tmp_path / f"{name}.state")
        (epoch,) = distill_student(teacher, *files, device="cpu", frames=frames).losses
        losses.append({part: epoch[part] for part in ("box_loss", "cls_loss", "dfl_loss")})
    assert losses[0] == losses[1]
    assert len(list(tmp_path.glob("*.predictions"))) == 1


def replace_truth(sample: Sample, crowd: np.ndarray) -> Sample:
    truth = sample.truth
    return Sample(sample.image, Truth(truth.boxes[:1], truth.classes[:1], crowd[: len(truth)]))


def test_the_labels_of_an_image_come_before_its_objects(tiny_data: Path) -> None:
    sample = load_dataset(tiny_data).split("train").samples[0]
    records = np.zeros(1, object_record_type(2))
    records["count"], records["boxes"][0, :2] = 2, 0.5
    (label,) = labels_with_objects([ultralytics_label(sample)], records, 2)
    assert label["cls"].flatten().tolist() == [*sample.truth.classes.tolist(), 4, 5]
    assert len(label["bboxes"]) == len(sample.truth) + 2


def test_losses_that_compare_maps_need_the_teacher_in_every_step() -> None:
    assert STEP.uses_cache
    assert not replace(STEP, teacher="live").uses_cache
    assert not replace(STEP, stages=(DistillStage("none", 1.0, Weights()),)).uses_cache
    both = (*TASK, DistillStage("maps", 1.0, Weights(classes=1.0, relations=0.1, neurons=1.0)))
    assert not replace(STEP, stages=both).uses_cache
    with pytest.raises(SpecError, match="a cached teacher has no feature maps; found weights of neurons, relations"):
        replace(STEP, teacher="cached", stages=both)
    with pytest.raises(SpecError, match="cache_size"):
        replace(STEP, cache_size="much")


def test_trainings_share_the_objects_of_one_teacher_and_data_set(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[Path] = []

    def training(teacher: Path, out: Path, *known: Any) -> DistillationRecord:
        caches.append(known[-1])
        out.write_text("student")
        return DistillationRecord(1, 1, ({"boxes": 1.0},), 1.0, ({},), 1, 1)

    family = SimpleNamespace(libraries=(), suffix=".pt", capability=lambda _: training)
    monkeypatch.setattr(train, "student_family", lambda _: family)
    monkeypatch.setattr(train, "require_family", lambda _: family)
    for name in ("teacher.pt", "stranger.pt"):
        (tmp_path / name).write_text(name)
    context = StageContext.within(tmp_path / "out", False, SILENT)
    dataset = load_dataset(tiny_data)
    stages = [
        train.distill(context, step, tmp_path / "teacher.pt", dataset)
        for step in (STEP, replace(STEP, seed=1), replace(STEP, image_size=96), replace(STEP, cache_size="1GB"))
    ]
    assert len({stage.key for stage in stages}) == 3, "a limit of disk space changes no result"
    assert len(caches) == 3
    assert len(set(caches)) == 1
    assert caches[0].parent == tmp_path / "out" / "stages"
    train.distill(context, STEP, tmp_path / "stranger.pt", dataset)
    assert len(set(caches)) == 2
