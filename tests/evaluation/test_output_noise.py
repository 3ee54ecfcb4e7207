"""Output noise of versions of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graph import SIDE, small_model

from edgekd.evaluation.output_noise import ReferenceOutputs

FRAMES = [np.random.default_rng(seed).random((1, 3, SIDE, SIDE), np.float32) for seed in range(2)]


def saved(model: Any, path: Path) -> Path:
    onnx.save(model, path)
    return path


def scaled(name: str, factor: float) -> Any:
    """Return the small network with one weight multiplied by a factor."""
    model = small_model()
    (constant,) = (each for each in model.graph.initializer if each.name == name)
    constant.CopyFrom(numpy_helper.from_array(factor * numpy_helper.to_array(constant), name))
    return model


@pytest.fixture
def reference(tmp_path: Path) -> ReferenceOutputs:
    return ReferenceOutputs(saved(small_model(), tmp_path / "float.onnx"), FRAMES)


def test_noise_is_by_the_variance_of_each_last_product_and_their_mean(
    reference: ReferenceOutputs, tmp_path: Path
) -> None:
    assert reference.noise(tmp_path / "float.onnx") == 0.0
    # All of one of two products is lost: its energy by its variance, and nothing of the other.
    lost = reference.noise(saved(scaled("scores.weight", 0.0), tmp_path / "lost.onnx"))
    tenth = reference.noise(saved(scaled("scores.weight", 0.9), tmp_path / "tenth.onnx"))
    assert lost is not None
    assert lost >= 0.5
    assert tenth == pytest.approx(0.01 * lost, rel=1e-3)


def test_a_graph_with_other_names_has_no_noise(reference: ReferenceOutputs, tmp_path: Path) -> None:
    model = small_model()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "scores":
                    names[index] = "renamed"
    assert reference.noise(saved(model, tmp_path / "renamed.onnx")) is None
