"""Losses are reconciled where they meet: none loses, heads learn from the plain sum, agreement changes nothing."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.errors import SpecError

torch = pytest.importorskip("torch")
pytest.importorskip("torchjd")
conflict = pytest.importorskip("edgekd.compress.distillation.gradient_conflict")

Loss = Callable[[Any, Any], Any]


class Network(torch.nn.Module):
    """A trunk that gives two features, the second made from the first as in a neck, and a head over both."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = torch.nn.Linear(4, 6)
        self.down = torch.nn.Linear(6, 3)
        self.head = torch.nn.Linear(9, 2)

    def forward(self, x: Any) -> tuple[list[Any], Any]:
        first = self.trunk(x).tanh()
        second = self.down(first).tanh()
        return [first, second], self.head(torch.cat([first, second], dim=1))


def grads(network: Network) -> dict[str, Any]:
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def plain(network: Network, x: Any, *losses: Loss) -> dict[str, Any]:
    """The gradients of the plain sum."""
    network.zero_grad()
    _, out = network(x)
    sum(loss(out, x) for loss in losses).backward()
    return grads(network)


def reconciled(network: Network, x: Any, **losses: Loss) -> tuple[Any, dict[str, Any]]:
    network.zero_grad()
    features, out = network(x)
    found = conflict.backward({name: loss(out, x) for name, loss in losses.items()}, features)
    return found, grads(network)


def towards(goal: float, scale: float = 1.0) -> Loss:
    return lambda out, _: scale * (out - goal).square().mean()


def same(ours: dict[str, Any], theirs: dict[str, Any], names: tuple[str, ...] = ("trunk", "down", "head")) -> bool:
    of = [name for name in ours if name.split(".")[0] in names]
    assert of
    return all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in of)


X = torch.linspace(-1, 1, 20).reshape(5, 4)


def test_one_loss_is_a_plain_backward_pass() -> None:
    network = Network()
    found, ours = reconciled(network, X, detection=towards(1))
    assert same(ours, plain(network, X, towards(1)))
    assert found.cosines == {}
    assert found.weights == {"detection": pytest.approx(1)}


def test_losses_that_agree_are_a_plain_backward_pass() -> None:
    network = Network()
    found, ours = reconciled(network, X, a=towards(5), b=towards(7, scale=0.01))
    assert found.cosines["a", "b"] > 0.9
    assert same(ours, plain(network, X, towards(5), towards(7, scale=0.01)))


def test_heads_learn_from_the_plain_sum_and_the_trunk_does_not() -> None:
    network = Network()
    found, ours = reconciled(network, X, a=towards(1), b=towards(-1.2, scale=2))
    theirs = plain(network, X, towards(1), towards(-1.2, scale=2))
    assert found.cosines["a", "b"] < -0.5
    assert same(ours, theirs, ("head",))
    assert not same(ours, theirs, ("trunk",))


def test_layers_between_shared_tensors_get_what_the_weights_say() -> None:
    """The second feature is computed from the first: the reconciled gradient must not count that path twice."""
    network = Network()
    found, ours = reconciled(network, X, a=towards(1), b=towards(-1.2, scale=2))
    a, b = (plain(network, X, loss) for loss in (towards(1), towards(-1.2, scale=2)))
    wanted = {name: found.weights["a"] * a[name] + found.weights["b"] * b[name] for name in a}
    assert same(ours, wanted, ("trunk", "down"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 100)), min_size=2, max_size=4))
def test_a_step_of_the_shared_tensors_makes_no_loss_worse(seed: int, goals: list[tuple[float, float]]) -> None:
    features, out = Network(seed)(X)
    losses = {str(index): towards(*goal)(out, X) for index, goal in enumerate(goals)}
    rows = [torch.autograd.grad(loss, features, retain_graph=True) for loss in losses.values()]
    found = conflict.backward(losses, features)
    weights = list(found.weights.values())
    assert min(weights) > 1 - 1e-6
    step = [sum(w * part for w, part in zip(weights, parts, strict=True)) for parts in zip(*rows, strict=True)]
    size = sum(float(part.norm()) for part in step)
    for row in rows:
        gain = sum(float((a * b).sum()) for a, b in zip(row, step, strict=True))
        assert gain >= -1e-3 * size * sum(float(part.norm()) for part in row)


def test_two_opposed_losses_both_fall_where_the_plain_sum_raises_one() -> None:
    """By a small step of the shared tensors; the loss that pulls less is the one that a plain sum sacrifices."""
    head = Network().head
    pulls = (towards(1), lambda out, _: 8 * (out[:, 0] + 3).square().mean())

    def change(reconcile: bool) -> list[float]:
        features = [feature.detach().requires_grad_() for feature in Network()(X)[0]]
        before = [pull(head(torch.cat(features, dim=1)), X) for pull in pulls]
        if reconcile:
            conflict.backward(dict(zip("ab", before, strict=True)), features)
        else:
            sum(before).backward()
        moved = torch.cat([feature - 1e-3 * feature.grad for feature in features], dim=1)
        return [(pull(head(moved), X) - was).item() for pull, was in zip(pulls, before, strict=True)]

    assert max(change(reconcile=False)) > 0
    assert max(change(reconcile=True)) <= 0


def test_a_loss_that_reads_no_shared_tensor_opposes_nothing() -> None:
    network = Network()
    found, _ = reconciled(network, X, a=towards(1), b=lambda out, x: network.head.weight.square().sum())
    assert found.cosines["a", "b"] == 0
    assert found.weights["a"] == pytest.approx(1)


def test_small_gradients_are_reconciled_like_large_ones() -> None:
    """Features have a million values and gradients of a millionth."""
    large, _ = reconciled(Network(), X, a=towards(1), b=towards(-1.2, scale=2))
    small, _ = reconciled(Network(), X, a=towards(1, scale=1e-6), b=towards(-1.2, scale=2e-6))
    assert small.weights == pytest.approx(large.weights, rel=1e-4)
    assert large.weights["a"] > 1.1


def test_gradients_that_overflow_reach_the_scaler() -> None:
    network = Network()
    found, ours = reconciled(network, X, a=lambda out, _: out.sum() * float("inf"), b=towards(1))
    assert found.weights == {"a": 1, "b": 1}
    assert not ours["trunk.weight"].isfinite().all()


def test_the_next_backward_pass_is_a_plain_one() -> None:
    shared = torch.ones(3, requires_grad=True)
    conflict.backward({"a": shared.sum()}, [shared])
    shared.grad = None
    (2 * shared).sum().backward()
    assert shared.grad.tolist() == [2, 2, 2]


def test_without_torchjd_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("torchjd"):
            raise ImportError("no torchjd")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SpecError, match=r"edgekd\[conflict\]"):
        reconciled(Network(), X, a=towards(1))
