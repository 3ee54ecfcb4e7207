"""Rare classes are weighed and repeated by the published rules, in a way that can be repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.errors import SpecError
from edgekd.data.labels import Truth
from edgekd.data.long_tail import class_weights, epoch_order, instances, rare_classes, repeat_factors, tail_classes
from edgekd.data.types import Sample, Split


def truth(*classes: int, crowd: tuple[int, ...] = ()) -> Truth:
    """Objects of these classes, and boxes around crowds of those."""
    every = (*classes, *crowd)
    boxes = np.tile(np.array([0, 0, 0.5, 0.5], np.float32), (len(every), 1))
    return Truth(boxes, np.array(every, np.int64), np.arange(len(every)) >= len(classes))


def test_rare_classes_have_names() -> None:
    split = Split("train", tuple(Sample(Path(str(i)), truth(*[0] * 20, *([1] if i == 0 else []))) for i in range(3)))
    assert rare_classes(split, ("often", "seldom", "never")) == ("seldom", "never")


counted = st.lists(st.integers(0, 10_000), min_size=1, max_size=8).map(np.array).filter(np.any)


def test_objects_are_counted_and_crowds_are_not() -> None:
    assert instances([truth(0, 0, 2), truth(), truth(2, crowd=(1, 1))], 4).tolist() == [2, 0, 2, 0]


def test_the_tail_is_what_has_less_than_its_share_of_the_objects() -> None:
    assert tail_classes(np.array([90, 5, 4, 1, 0]), 0.05) == (2, 3, 4)
    assert tail_classes(np.array([1, 1]), 0.05) == ()


@given(counted, st.floats(0, 1))
def test_rarer_classes_never_weigh_less_and_the_mean_object_weighs_one(counts: np.ndarray, power: float) -> None:
    weights = class_weights(counts, power)
    assert np.isfinite(weights).all()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert (np.diff(weights[np.argsort(counts, kind="stable")]) <= 1e-12).all()


@given(counted)
def test_powers_say_what_is_alike(counts: np.ndarray) -> None:
    assert class_weights(counts, 0) == pytest.approx(1)
    alike = (class_weights(counts, 1) * counts)[counts > 0]
    assert alike == pytest.approx(alike[0])


def test_a_class_four_times_as_rare_weighs_twice_as_much() -> None:
    weights = class_weights(np.array([400, 100, 0]))
    assert weights[1] == pytest.approx(2 * weights[0])
    assert weights[2] == weights[1]


def test_no_object_has_no_weights() -> None:
    with pytest.raises(SpecError, match="no object"):
        class_weights(np.zeros(3, np.int64))


def test_an_image_is_repeated_for_its_rarest_class() -> None:
    truths = [truth(0), truth(0), truth(0), truth(0, 1), truth(), truth(0, crowd=(1,)), truth(0), truth(0)]
    factors = repeat_factors(truths, 2, threshold=0.5)
    assert factors == pytest.approx([1, 1, 1, 2, 1, 1, 1, 1])  # class 1 is in an eighth: sqrt(0.5 / 0.125)


def test_repeats_need_no_image() -> None:
    assert repeat_factors([], 2, 0.5).tolist() == []


@given(st.lists(st.floats(1, 5), max_size=30), st.integers(0, 2**32), st.integers(0, 500))
def test_an_epoch_has_every_image_about_as_often_as_its_factor(factors: list[float], seed: int, epoch: int) -> None:
    order = epoch_order(np.array(factors), seed, epoch)
    times = np.bincount(order, minlength=len(factors))
    assert (times >= np.floor(factors)).all()
    assert (times <= np.floor(factors) + 1).all()
    assert np.array_equal(order, epoch_order(np.array(factors), seed, epoch))


def test_over_many_epochs_the_factor_is_met() -> None:
    factors = np.array([1.0, 1.25, 2.6])
    times = sum(np.bincount(epoch_order(factors, 7, epoch), minlength=3) for epoch in range(2000)) / 2000
    assert times == pytest.approx(factors, abs=0.04)


def test_epochs_and_seeds_give_other_orders() -> None:
    factors = np.ones(50)
    orders = {tuple(epoch_order(factors, seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}
    assert len(orders) == 4
