"""Each family by ONNX: decoded as by its own rules, and built, scored and run as a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_runs import require_bundle_runs
from family_marks import BUILT
from onnx_families import CLASSES, FAMILIES, OnnxFamily

from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import place
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.session import cpu_session

CONFIDENCE = 0.01
COMPARED = 200
"""Detections of each family, the best."""
TIE = 3e-6
"""Scores that differ by a smaller share may trade places."""


def families(*capabilities: str) -> pytest.MarkDecorator:
    """Return the parameters of a test that shows these capabilities of each family."""
    marked = []
    for each in FAMILIES:
        marks = [pytest.mark.family(each.names, *capabilities, form=each.form)]
        marks += [pytest.mark.slow] if each.needs_torch else []
        marked.append(pytest.param(each, marks=marks, id=each.names.split(",")[0]))
    return pytest.mark.parametrize("family", marked)


def outputs_of(model: Any, frame: np.ndarray, family: OnnxFamily) -> dict[str, np.ndarray]:
    """Run a graph as the family's own tools do."""
    names = [value.name for value in model.graph.output]
    return dict(zip(names, cpu_session(model).run(names, {"images": frame, **family.inputs}), strict=True))


@families("describe")
def test_candidates_are_those_of_the_familys_own_rules(family: OnnxFamily, tmp_path: Path) -> None:
    """Boxes, scores, classes and their order."""
    if family.needs_torch:
        pytest.importorskip("torchvision")
    path, graph = family.write(tmp_path / "model.onnx"), tmp_path / "exported.onnx"
    spec = export(load(path, family.head), graph, 17).spec
    assert spec.classes == CLASSES
    frame = np.random.default_rng(5).normal(0, 1, (1, 3, *family.size)).astype(np.float32)
    with ONNXRUNTIME_CPU.load(graph) as session:
        output = session.run(frame)
    spec = replace(spec, head=replace(spec.head, nms=False))
    size = family.size
    every = Thresholds(CONFIDENCE, max_detections=10**6, multi_label=not family.best_class)
    found = decode(output, spec, place(size[1], size[0], spec.preprocess), every)

    boxes, scores = family.rules(outputs_of(onnx.load(path), frame, family), size)
    if family.best_class:
        scores = np.where(scores == scores.max(axis=1, keepdims=True), scores, 0)
    index, classes = np.nonzero(scores > CONFIDENCE)
    order = np.argsort(-scores[index, classes], kind="stable")[: COMPARED + 1]
    index, classes = index[order], classes[order]
    wanted = scores[index, classes]
    count = min(COMPARED, len(wanted))
    assert count >= 20
    np.testing.assert_allclose(found.scores[:count], wanted[:count], atol=1e-4)
    gaps = np.append(np.diff(-wanted), 1) > TIE * wanted
    clear = (gaps & np.append(True, gaps[:-1]))[:count]
    assert clear.sum() >= 20
    np.testing.assert_array_equal(found.classes[:count][clear], classes[:count][clear])
    inside = np.clip(boxes[index], 0, [size[1], size[0]] * 2)[:count][clear]
    np.testing.assert_allclose(found.boxes[:count][clear], inside, atol=1e-4 * max(size))
    assert np.ptp(inside, axis=0).min() > 1


@pytest.mark.slow
@families(*BUILT)
def test_each_family_becomes_a_bundle_in_int8_that_the_agent_runs(
    family: OnnxFamily, tiny_data: Path, tmp_path: Path
) -> None:
    require_bundle_runs(family.write(tmp_path / "model.onnx"), tiny_data, tmp_path, family.head)
