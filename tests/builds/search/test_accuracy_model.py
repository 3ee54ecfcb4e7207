"""Accuracy that candidates are expected to keep, by their noise."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest

from edgekd.builds.search.accuracy_model import AccuracyModel, rank_correlation
from edgekd.builds.search.space import Candidate, DetectorFacts, space_for
from edgekd.hardware.target import load_target

SPACE = space_for(DetectorFacts(640, trains=True, resizes=True, quant_aware=True), load_target("xavier"), 30)
UNTRAINED = space_for(DetectorFacts(640, trains=True, resizes=True), load_target("xavier"), 0)
BY_NOISE = {(0, 0): 0.8, (30, 0): 0.1, (0, 10): 0.6, (30, 10): 0.05}


def noise(candidate: Candidate) -> float:
    return 0.2 * SPACE.level(candidate, "ratio") + 0.02 * SPACE.level(candidate, "bits")


def truth(candidate: Candidate) -> float:
    """A world in which the model is right."""
    by_noise = BY_NOISE[candidate.recovery, candidate.quant_aware]
    return exp(-0.05 * SPACE.level(candidate, "image_size") - by_noise * noise(candidate))


@pytest.mark.parametrize("space", [SPACE, UNTRAINED])
def test_nothing_is_expected_to_gain_and_every_further_step_costs(space: object) -> None:
    model = AccuracyModel(space)
    whole = space.gentlest
    assert model.kept(whole) == 1.0
    for name in ("image_size", "ratio", "bits"):
        kept = [model.kept(space.sensible(replace(whole, **{name: value}))) for value in getattr(space, name)]
        assert kept == sorted(set(kept), reverse=True)


def test_noise_of_networks_tells_of_others_and_a_few_trainings_of_all() -> None:
    model = AccuracyModel(SPACE)
    every = SPACE.candidates()
    order = np.random.default_rng(0).permutation(len(every))
    measured, trained = ([every[at] for at in order[:count]] for count in (40, 20))
    model.fit({each.untrained: noise(each) for each in measured}, [(each, truth(each)) for each in trained])
    assert np.median([abs(model.noise(each) / noise(each) - 1) for each in every if noise(each)]) < 0.05
    assert np.median([abs(model.kept(each) - truth(each)) for each in every]) < 0.01
    kept = [model.kept(each) for each in every]
    assert rank_correlation(kept, [truth(each) for each in every]) > 0.97


def test_noise_that_was_measured_counts_as_it_is_for_every_training_of_its_network() -> None:
    model = AccuracyModel(SPACE)
    odd = Candidate(None, 640, 0.2, 8.0, recovery=30)
    before = model.kept(odd)
    model.fit({odd.untrained: 2.0}, [])
    assert model.noise(odd) == model.noise(replace(odd, quant_aware=10)) == 2.0
    assert model.kept(odd) < before


def test_no_accuracy_at_all_is_learnt_from_too() -> None:
    model, lost = AccuracyModel(UNTRAINED), Candidate(None, 640, 0.65, bits=8.0)
    model.fit({lost: 0.9}, [(lost, 0.0)])
    assert model.kept(lost) < 0.05


def test_a_rank_correlation_shares_ranks_of_equals_and_needs_four_that_differ() -> None:
    assert rank_correlation([1, 2, 3, 4], [0.1, 0.2, 0.4, 0.9]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [9, 8, 7, 6]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 2, 3, 4], [1, 1, 1, 1]) is None
