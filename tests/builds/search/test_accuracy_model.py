"""What choices are thought to cost in accuracy."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from edgekd.builds.search.accuracy_model import AccuracyModel
from edgekd.builds.search.space import Candidate, DetectorFacts, space_for
from edgekd.hardware.target import load_target

SPACE = space_for(DetectorFacts(640, trains=True, resizes=True, quant_aware=True), load_target("xavier"), 30)
KEPT = {"image_size": 0.95, "ratio": 0.97, "bits": 0.99}


def truth(candidate: Candidate) -> float:
    """A world in which the model is right: with training, pruning costs what KEPT says, without it all."""
    kept = prod(KEPT[name] ** SPACE.level(candidate, name) for name in KEPT)
    return kept if candidate.recovery or not candidate.ratio else 0.3 * kept


def test_nothing_is_thought_to_gain_and_every_step_further_costs() -> None:
    losses = AccuracyModel(SPACE)
    whole = SPACE.gentlest
    assert losses.kept(whole) == 1.0
    for name in KEPT:
        kept = [losses.kept(SPACE.sensible(replace(whole, **{name: value}))) for value in getattr(SPACE, name)]
        assert kept == sorted(kept, reverse=True)
        assert kept[-1] < 1


def test_a_few_trials_tell_of_all_others() -> None:
    losses = AccuracyModel(SPACE)
    every = SPACE.candidates()
    rng = np.random.default_rng(0)
    seen = [every[at] for at in rng.permutation(len(every))[:40]]
    losses.fit([(each, truth(each)) for each in seen])
    trained = [each for each in every if each.recovery]
    errors = [abs(losses.kept(each) - truth(each)) for each in trained]
    assert np.median(errors) < 0.02
    order = [losses.kept(each) for each in trained]
    assert np.corrcoef(order, [truth(each) for each in trained])[0, 1] > 0.95


def test_parts_multiply_to_the_whole() -> None:
    losses = AccuracyModel(SPACE)
    losses.fit([(each, truth(each)) for each in SPACE.candidates()[::5]])
    candidate = Candidate(None, 480, 0.35, 5.5, 30)
    assert prod(losses.parts(candidate).values()) == pytest.approx(losses.kept(candidate))
    assert losses.parts(SPACE.gentlest) == dict.fromkeys(losses.parts(SPACE.gentlest), 1.0)


def test_no_accuracy_at_all_is_learnt_from_too() -> None:
    losses = AccuracyModel(SPACE)
    losses.fit([(Candidate(None, 640, 0.65, bits=8.0), 0.0)])
    assert losses.kept(Candidate(None, 640, 0.65, bits=8.0)) < 0.05
