"""Scoring a graph runs it as it ships, and its detections survive being written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from edgekd.core.detection.types import Detections, DetectorSpec, Head, Preprocess
from edgekd.core.errors import DataError, DeviceError
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import Evaluation, evaluate, load_detections, save_detections
from edgekd.graph.view import load_graph


def spec_of(*classes: str) -> DetectorSpec:
    return DetectorSpec(classes, Preprocess(64, 64), Head("yolo"))


def detections(count: int) -> Detections:
    rng = np.random.default_rng(count)
    scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1]
    return Detections(rng.uniform(0, 64, (count, 4)).astype(np.float32), scores, rng.integers(0, 2, count))


@pytest.fixture(scope="module")
def evaluation(tiny_model: Path, tiny_data: Path) -> Evaluation:
    spec = describe(load_graph(tiny_model), tiny_model)
    return evaluate(tiny_model, spec, load_dataset(tiny_data).split("val"))


def test_a_detector_made_for_its_scenes_finds_everything(evaluation: Evaluation) -> None:
    assert evaluation.score.map50 > 0.99
    assert 0.3 < evaluation.score.map50_95 < 0.95
    assert set(evaluation.score.per_class) == {"red", "green"}
    assert evaluation.score.images == 8


def test_images_and_detections_are_in_the_splits_order(evaluation: Evaluation, tiny_data: Path) -> None:
    samples = load_dataset(tiny_data).split("val").samples
    assert evaluation.images == tuple(sample.image for sample in samples)
    for found, sample in zip(evaluation.detections, samples, strict=True):
        best = found.only(found.scores >= 0.5)
        assert sorted(best.classes.tolist()) == sorted(sample.truth.classes.tolist())


def test_unreadable_images_are_left_out_of_all(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny.write_data(tmp_path, train=1, val=24)
    (data / "images" / "val" / "002.png").write_bytes(b"not a picture")
    spec = describe(load_graph(tiny_model), tiny_model)
    split = load_dataset(data).split("val")
    found = evaluate(tiny_model, spec, split)
    assert [path.name for path, _ in found.skipped] == ["002.png"]
    assert found.score.images == len(found.images) == len(found.detections) == 23


def test_a_graph_that_does_not_fit_the_description_is_an_error_of_one_line(tiny_model: Path, tiny_data: Path) -> None:
    spec = replace(describe(load_graph(tiny_model), tiny_model), preprocess=Preprocess(96, 96))
    with pytest.raises(DeviceError) as caught:
        evaluate(tiny_model, spec, load_dataset(tiny_data).split("val"))
    assert "\n" not in str(caught.value)


def test_detections_come_back_bit_for_bit(tmp_path: Path) -> None:
    written = [detections(3), detections(0), detections(300), detections(0)]
    save_detections(tmp_path / "found.npz", written)
    found = load_detections(tmp_path / "found.npz")
    assert len(found) == len(written)
    for one, two in zip(found, written, strict=True):
        for name in ("boxes", "scores", "classes"):
            assert getattr(one, name).dtype == getattr(two, name).dtype
            assert np.array_equal(getattr(one, name), getattr(two, name))


def test_the_datas_classes_must_be_the_detectors(tiny_data: Path) -> None:
    dataset = load_dataset(tiny_data)
    require_classes(spec_of("red", "green"), dataset)
    require_classes(spec_of("class0", "class1"), dataset)  # a graph without names
    with pytest.raises(DataError, match="found 2"):
        require_classes(spec_of("red", "green", "blue"), dataset)
    with pytest.raises(DataError, match=r"another order.*class 0"):
        require_classes(spec_of("green", "red"), dataset)
