"""Frames that nobody labelled get a teacher's labels: of the tiny detector, and of a trained one on real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.core.errors import DataError
from edgekd.data.dataset import load_dataset, unlabelled
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import LABELLING, label, teacher_thresholds
from edgekd.data.types import Split
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import finder
from edgekd.graph.view import load_graph


def counts(ours: Split, theirs: Split) -> tuple[int, int, int]:
    """Objects that we kept, those of them that are among theirs, and theirs."""
    pairs = list(zip(ours.samples, theirs.samples, strict=True))
    kept = sum(int((~one.truth.crowd).sum()) for one, _ in pairs)
    return (
        kept,
        sum(found_again(one.truth, other.truth) for one, other in pairs),
        sum(len(each.truth) for _, each in pairs),
    )


def found_again(ours: Truth, theirs: Truth) -> int:
    """How many of our objects overlap one of theirs, of the same class, by an IoU of 0.5."""
    single = ~ours.crowd
    a, b = ours.boxes[single][:, None], theirs.boxes[None]
    common = np.prod(np.maximum(np.minimum(a, b)[..., 2:] - np.maximum(a, b)[..., :2], 0), axis=2)
    areas = [np.prod(each[..., 2:] - each[..., :2], axis=2) for each in (a, b)]
    same = ours.classes[single][:, None] == theirs.classes[None]
    return int((same & (common >= 0.5 * (areas[0] + areas[1] - common))).any(axis=1).sum())


def test_frames_are_labelled_as_they_would_have_been(tiny_model: Path, tiny_data: Path) -> None:
    dataset = load_dataset(tiny_data)
    spec = describe(load_graph(tiny_model), tiny_model)
    frames = unlabelled(tiny_data / "images" / "val")
    assert all(len(sample.truth) == 0 for sample in frames.samples)
    with finder(tiny_model, spec, LABELLING) as find:
        thresholds = teacher_thresholds(find, dataset.split("train"), dataset.classes)
        labelled = label(find, frames, thresholds)
    assert max(thresholds.keep) < 1
    assert [sample.image for sample in labelled.samples] == [sample.image for sample in dataset.split("val").samples]
    kept, right, true = counts(labelled, dataset.split("val"))
    assert kept == right > 0.9 * true


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in"):
        unlabelled(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # PyTorch's own
def test_a_trained_teacher_labels_real_frames(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    from edgekd.detectors.ultralytics.detector import UltralyticsDetector

    graph = tmp_path / "teacher.onnx"
    spec = UltralyticsDetector(shared / "models" / "yolo11n-ppe.pt").export(graph, 17)
    dataset = load_dataset(shared / "data" / "ppe")
    known, new = (Split("part", dataset.split(name).samples[:12]) for name in ("train", "val"))
    with finder(graph, spec, LABELLING) as find:
        thresholds = teacher_thresholds(find, known, dataset.classes)
        labelled = label(find, new, thresholds)
    person = dataset.classes.index("person")
    assert LABELLING.confidence <= thresholds.ignore[person] < thresholds.keep[person] < 0.9
    kept, right, true = counts(labelled, new)
    assert kept > 0.6 * true
    assert right > 0.8 * kept
