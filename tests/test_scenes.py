"""The demo's renderer, and the detector and the scenes that ship in the package."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_scenes import scenes
from demo_scenes.backdrop import Backdrop
from demo_scenes.geometry import Mesh, Pose, place
from demo_scenes.objects import person, truck
from demo_scenes.scenes import SPLIT_SIZE, SPLITS, Scene, render, split_seeds, write_dataset
from demo_scenes.traffic import CLASSES, PERSON, TRUCK, Actor

from edgekd.data.dataset import load_dataset
from edgekd.data.demo import DETECTOR, SCENES
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.view import load_graph


@pytest.fixture(scope="module")
def rendered() -> list[Scene]:
    return [render(seed) for seed in range(24)]


def test_a_seed_gives_the_same_bytes_whatever_was_rendered_before(rendered: list[Scene]) -> None:
    for seed in (17, 3):
        again = render(seed)
        assert np.array_equal(again.image, rendered[seed].image)
        assert np.array_equal(again.boxes, rendered[seed].boxes)
        assert np.array_equal(again.classes, rendered[seed].classes)


def test_different_seeds_give_different_pictures(rendered: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in rendered}) == len(rendered)


def test_pictures_are_frames_of_the_stated_shape(rendered: list[Scene]) -> None:
    for scene in rendered:
        assert scene.image.shape == (360, 640, 3)
        assert scene.image.dtype == np.uint8
        assert scene.image.std() > 8


def test_labels_lie_inside_the_frame_and_are_not_tiny(rendered: list[Scene]) -> None:
    for scene in rendered:
        boxes = scene.boxes
        assert boxes.dtype == np.float32
        assert scene.classes.dtype == np.int64
        assert boxes.shape == (len(scene.classes), 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (640, 360)).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides >= scenes.MIN_SIDE).all()
        assert (sides.prod(axis=1) >= scenes.MIN_AREA).all()


def test_every_class_occurs_in_many_sizes(rendered: list[Scene]) -> None:
    classes = np.concatenate([scene.classes for scene in rendered])
    sides = np.concatenate([np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(axis=1)) for s in rendered])
    assert set(classes.tolist()) == set(range(len(CLASSES)))
    assert (sides < 32).sum() > 20
    assert (sides > 96).sum() > 5


def test_scenes_range_from_dark_to_bright_and_from_grey_to_coloured(rendered: list[Scene]) -> None:
    brightness = [float(scene.image.mean()) for scene in rendered]
    colour = [float(np.ptp(scene.image.astype(int), axis=2).mean()) for scene in rendered]
    assert min(brightness) < 60 < 110 < max(brightness)
    assert min(colour) < 4 < 15 < max(colour)


def test_only_what_is_seen_has_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = 6

    def labels(*standing: tuple[int, Mesh, Pose]) -> dict[int, np.ndarray]:
        def fixed(rng: np.random.Generator, view: Backdrop, **_: object) -> list[Actor]:
            return [
                Actor(place(mesh, pose, view.camera), pose, (kind,), (number,), driving=False)
                for number, (kind, mesh, pose) in enumerate(standing, start=1)
            ]

        monkeypatch.setattr(scenes, "traffic", fixed)
        scene = render(seed)
        return {int(kind): box for kind, box in zip(scene.classes, scene.boxes, strict=True)}

    walker = (PERSON, person(np.random.default_rng(1)), Pose(0.0, 16.0, 0.0))
    lorry = truck(np.random.default_rng(2))
    alone = labels(walker)
    assert list(alone) == [PERSON]
    assert set(labels(walker, (TRUCK, lorry, Pose(9.0, 12.0, 0.0)))) == {PERSON, TRUCK}
    assert list(labels(walker, (TRUCK, lorry, Pose(0.0, 12.0, 0.0)))) == [TRUCK]
    farther = labels((PERSON, walker[1], Pose(0.0, 24.0, 0.0)))
    assert np.ptp(farther[PERSON][1::2]) < 0.75 * np.ptp(alone[PERSON][1::2])


def test_splits_share_no_scene() -> None:
    parts = [split_seeds(split, SPLIT_SIZE) for split in SPLITS]
    for a, b in combinations(parts, 2):
        assert max(a[0], b[0]) > min(a[-1], b[-1])


@pytest.mark.parametrize("count", [0, SPLIT_SIZE + 1])
def test_impossible_numbers_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="scenes"):
        split_seeds("train", count)


def test_a_dataset_loads_with_the_labels_that_were_rendered(tmp_path: Path) -> None:
    config = write_dataset(tmp_path / "scenes", 3, 2)
    data = load_dataset(config)
    assert data.classes == CLASSES
    assert [len(data.split(name)) for name in ("train", "val")] == [3, 2]
    for name, count in (("train", 3), ("val", 2)):
        for sample, seed in zip(data.split(name).samples, split_seeds(name, count), strict=True):
            scene = render(seed)
            assert np.array_equal(sample.truth.classes, scene.classes)
            np.testing.assert_allclose(sample.truth.boxes * (640, 360, 640, 360), scene.boxes, atol=1e-3)
            stored = cv2.imread(str(sample.image))
            assert stored is not None
            assert np.abs(stored.astype(int) - scene.image).mean() < 3


def test_a_dataset_is_byte_identical_elsewhere(tmp_path: Path) -> None:
    first, second = write_dataset(tmp_path / "a", 2, 1), write_dataset(tmp_path / "b", 2, 1)
    for path in first.parent.rglob("*.*"):
        assert (second.parent / path.relative_to(first.parent)).read_bytes() == path.read_bytes()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_shipped_scenes_are_what_the_renderer_makes_today() -> None:
    data = load_dataset(SCENES)
    assert data.classes == CLASSES
    for name, count in (("train", 60), ("val", 36)):
        samples = data.split(name).samples
        assert len(samples) == count
        for sample, seed in list(zip(samples, split_seeds(name, count), strict=True))[::8]:
            scene = render(seed)
            assert np.array_equal(sample.truth.classes, scene.classes)
            np.testing.assert_allclose(sample.truth.boxes * (640, 360, 640, 360), scene.boxes, atol=1e-3)
            stored = cv2.imread(str(sample.image))
            assert stored is not None
            assert np.abs(stored.astype(int) - scene.image).mean() < 8


def test_the_shipped_detector_is_small_and_describes_itself() -> None:
    onnx = pytest.importorskip("onnx")
    assert DETECTOR.stat().st_size <= 4_000_000
    model = onnx.load(str(DETECTOR))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["names"] == '["person", "bicycle", "car", "truck", "dog"]'
    assert (metadata["stride"], metadata["edgekd.head"]) == ("32", "yolo")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_shipped_detector_finds_the_objects_of_the_shipped_scenes() -> None:
    found = evaluate(DETECTOR, describe(load_graph(DETECTOR), DETECTOR), load_dataset(SCENES).split("val"))
    assert found.score.map50 >= 0.80
