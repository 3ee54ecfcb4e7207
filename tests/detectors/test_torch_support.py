"""Tests of what every training loop shares."""

from __future__ import annotations

import pytest

from edgekd.core.errors import CompressError
from edgekd.detectors.torch_support import require_finite_weights, warmup_factor

torch = pytest.importorskip("torch")


def test_the_learning_rate_rises_in_so_many_updates() -> None:
    rising = [warmup_factor(update, 4, update / 1000) for update in range(1, 7)]
    assert rising == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_the_warm_up_is_at_most_a_tenth_of_the_training() -> None:
    rising = [warmup_factor(update, 1000, update / 50) for update in range(1, 8)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_without_warm_up_the_rate_is_full_at_once() -> None:
    assert warmup_factor(1, 0, 0.0) == 1


def test_weights_that_are_not_finite_end_a_training() -> None:
    network = torch.nn.Linear(2, 1)
    require_finite_weights(0, network, "lower learning_rate")
    network.weight.data[0, 1] = float("nan")
    with pytest.raises(CompressError, match=r"epoch 3.*finite weights.*found weight.*lower learning_rate"):
        require_finite_weights(2, network, "lower learning_rate")
