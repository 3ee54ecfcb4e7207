"""Reconciliation of the gradients of conflicting losses at the outputs of the neck. Needs `edgekd[conflict]`.

Detection and distillation, or classes and boxes, are several objectives for one network. Their gradients are compared
at the few tensors that every loss reads. Earlier layers get a combination of them that, to first order, increases no
loss for a small step of these tensors. (A step of the weights moves these tensors in a similar direction, so there is
no guarantee for it.) Later layers, the heads, get the gradient of the plain sum.

With J the Jacobian of the losses at the shared tensors, one row g_k per loss, UPGrad (Quinton and Rey, arXiv
2406.16232) projects each row onto the dual cone {d: J d >= 0} and sums the results: a combination w J with w >= 1,
computed from the Gramian J J' alone, [losses, losses]. Without conflict (J J' >= 0) all w are 1, which is the plain
backward pass. Cost: one backward pass through the heads for each loss, and one through the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from torch.utils.hooks import RemovableHandle

from edgekd.core.errors import SpecError

_RIDGE = 1e-7
"""Share of the trace of the matrix of cosines that is added to its diagonal, which makes it invertible."""


@dataclass(frozen=True)
class Conflict:
    """The conflict between the losses of one batch.

    cosines: cosine of the gradients of each two losses at the shared tensors, -1 to 1, 0 if one is zero; weights:
    factor of each loss in the reconciled gradient, 1 without conflict.
    """

    cosines: Mapping[tuple[str, str], float]
    weights: Mapping[str, float]


def backward(losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]) -> Conflict:
    """Run the backward pass of the losses' sum with reconciled gradients; arguments and errors as for `reconcile`."""
    conflict, hooks = reconcile(losses, shared)
    try:
        sum(losses.values()).backward()  # type: ignore[union-attr]
    finally:
        for hook in hooks:
            hook.remove()
    return conflict


def reconcile(
    losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
) -> tuple[Conflict, tuple[RemovableHandle, ...]]:
    """Prepare the backward pass of the losses' plain sum: earlier layers will get the reconciled gradient.

    losses: scalars, each computed from `shared`, of which one may be computed from another. Paths that bypass the
    shared tensors get the gradient of the plain sum. Gradients that are not finite, as mixed precision has when its
    scale is too large, are passed on as their plain sum, so that the scaler detects them.
    Returns the conflict and the hooks, which replace the gradients of the shared tensors: do not scale the sum
    afterwards. Hooks disappear with tensors that are recomputed for each batch; remove those of other tensors. Raises
    SpecError without torchjd.
    """
    jacobian = torch.stack([_gradient(loss, shared) for loss in losses.values()])
    gramian = jacobian @ jacobian.T
    weights = _weights(gramian)
    parts = (weights @ jacobian).split([tensor.numel() for tensor in shared])
    hooks = tuple(tensor.register_hook(partial(_replaced, part)) for tensor, part in zip(shared, parts, strict=True))
    cosines = _normed(gramian)[0].tolist()
    pairs = combinations(enumerate(losses), 2)
    named = {(one, other): cosines[i][j] for (i, one), (j, other) in pairs}
    return Conflict(named, dict(zip(losses, weights.tolist(), strict=True))), hooks


def _replaced(instead: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return `instead` with the shape and type of the gradient that it replaces."""
    return instead.view_as(gradient).to(gradient.dtype)


def _gradient(loss: torch.Tensor, shared: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the gradient of one loss at all shared tensors, float64 [n]; zeros for tensors that it does not read."""
    gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(x) if part is None else part for part, x in zip(gradients, shared, strict=True)]
    # In double precision: inner products have millions of terms, and the solver must not get a negative eigenvalue.
    return torch.cat([part.flatten().double() for part in parts])


def projector() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return torchjd's solver: for each row of u [n, losses] and a Gramian G, the v >= u that minimizes v G v.

    Raises SpecError if it is not installed.
    """
    try:
        from torchjd.linalg import QuadprogProjector

        return QuadprogProjector(reg_eps=_RIDGE)  # type: ignore[no-any-return]
    except ImportError as error:
        raise SpecError(
            "reconciling losses needs torchjd and its solver",
            found=str(error),
            fix='pip install "edgekd[conflict]"',
        ) from error


def _weights(gramian: torch.Tensor) -> torch.Tensor:
    """Return UPGrad's weights, float64 [losses]; all 1 if a gradient is not finite.

    Solved for gradients of length 1, v = y / |g|, so that the solver's regularization is small for small losses, too.
    """
    project = projector()
    if not gramian.isfinite().all():
        return gramian.new_ones(len(gramian))
    cosines, norms = _normed(gramian)
    return project(norms.diag(), cosines).div(norms).sum(dim=0)


def _normed(gramian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines [losses, losses], 0 for zero gradients, and norms [losses], 1 for zero gradients."""
    norms = gramian.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    return gramian / (norms[:, None] * norms), norms
