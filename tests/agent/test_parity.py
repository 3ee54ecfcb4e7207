"""How far an output is from the golden one: none, a little, and too much, for each kind of head."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.agent.engines.parity import output_error
from edgekd.agent.runtimes.null import golden_output
from edgekd.core.detection.decode import candidate_confidence, candidate_rows
from edgekd.core.detection.types import Head
from edgekd.core.formats.golden_set import GoldenSet

HEADS = {"yolo": (1, 7, 20), "yolox": (1, 20, 8), "end2end": (1, 20, 6)}


def output_of(kind: str) -> np.ndarray:
    """An output float32 of a head, with boxes of some size and scores that fall from row to row."""
    rng = np.random.RandomState(0)
    rows = rng.uniform(0, 1, (20, HEADS[kind][1 if kind == "yolo" else 2])).astype(np.float32)
    rows[:, :2] = 100 * np.stack([np.arange(20) % 5, np.arange(20) // 5], axis=1)
    rows[:, 2:4] = rng.uniform(60, 90, (20, 2))
    if kind == "end2end":
        rows[:, 2:4] += rows[:, :2]
        rows[:, 4], rows[:, 5] = np.linspace(0.9, 0.1, 20), np.arange(20) % 3
    return rows.T[None].copy() if kind == "yolo" else rows[None]


def golden_of(kind: str, output: np.ndarray) -> GoldenSet:
    """What `output` has at a few places, as the values of a single frame."""
    places = np.array([[0, 3, 7, 19]], np.uint32)
    values = candidate_rows(output, Head(kind))[places[0]].astype(np.float16)[None]
    return GoldenSet("float", (0.01, 0.03), output.shape, 4, np.zeros((1, 2, 2, 3), np.uint8), places, values)


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_output_does_not_output_error(kind: str) -> None:
    output = output_of(kind)
    found = output_error(output, golden_of(kind, output), 0, Head(kind))
    assert found.boxes < 1e-3, "float16 is what is left"
    assert found.scores < 1e-3


@pytest.mark.parametrize("kind", HEADS)
def test_boxes_and_scores_drift_apart(kind: str) -> None:
    output, head = output_of(kind), Head(kind)
    golden = golden_of(kind, output)
    moved, dimmed = output.copy(), output.copy()
    candidate_rows(moved, head)[:, :4] *= 1.1
    candidate_rows(dimmed, head)[:, 4 : 5 if kind == "end2end" else None] *= 0.8
    boxes, scores = output_error(moved, golden, 0, head), output_error(dimmed, golden, 0, head)
    assert (boxes.boxes, scores.scores) == (pytest.approx(0.1, abs=1e-3), pytest.approx(0.2, abs=1e-3))
    assert (boxes.scores, scores.boxes) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_an_output_without_sense_is_far_off(kind: str, wrong: float) -> None:
    output = output_of(kind)
    found = output_error(np.full_like(output, wrong), golden_of(kind, output), 0, Head(kind))
    assert found.boxes >= 1
    assert found.scores >= 1


def test_rows_of_an_end_to_end_head_may_trade_places() -> None:
    output, head = output_of("end2end"), Head("end2end")
    golden = golden_of("end2end", output)
    found = output_error(output[:, ::-1].copy(), golden, 0, head)
    assert found.boxes < 1e-3
    assert found.scores < 1e-3
    output[0, :, 5] += 1
    assert output_error(output, golden, 0, head).scores > 0.5, "another class is another object"


def test_confidence_of_each_head() -> None:
    rows = np.array([[0, 0, 1, 1, 0.5, 0.2, 0.4]])
    assert candidate_confidence(rows, Head("yolo")) == pytest.approx([0.5])
    assert candidate_confidence(rows, Head("yolox")) == pytest.approx([0.2])
    assert candidate_confidence(rows, Head("end2end")) == pytest.approx([0.5])


@pytest.mark.parametrize("kind", HEADS)
def test_a_filled_output_has_the_golden_values(kind: str) -> None:
    golden = golden_of(kind, output_of(kind))
    head = Head(kind)
    assert output_error(golden_output(golden, 0, head), golden, 0, head).boxes == 0
    assert not golden_output(golden, None, head).any()


def test_what_does_not_fit_is_refused() -> None:
    output, head = output_of("yolo"), Head("yolo")
    golden = golden_of("yolo", output)
    with pytest.raises(ValueError, match=r"expected an output of shape \[1, 7, 20\]"):
        output_error(output[:, :, :10], golden, 0, head)
    with pytest.raises(ValueError, match="a golden set of this network"):
        output_error(output, golden, 0, Head("end2end"))
