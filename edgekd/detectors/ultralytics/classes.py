"""Other classes for an Ultralytics network: weights of classes with the same name are kept, others are initialized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgekd.detectors.ultralytics.detector import class_names, is_transformer

UNKNOWN_CLASS_LOGIT = -4.6
"""Initial bias of a class that a student's checkpoint does not have: a probability of 1 %."""


def with_classes(network: Any, classes: tuple[str, ...]) -> Any:
    """Change the classes of a network in place, and return it."""
    known = class_names(network)
    if known == classes:
        return network
    head = network.model[-1]
    if is_transformer(network):
        _renew_queries(head, known, classes)
    else:
        _renew_anchors(head, known, classes)
    head.nc = len(classes)
    network.names, network.nc = dict(enumerate(classes)), len(classes)
    network.yaml = {**network.yaml, "nc": len(classes)}
    return network


def _renew_anchors(head: Any, known: Sequence[str], classes: Sequence[str]) -> None:
    for branch in filter(None, (head.cv3, getattr(head, "one2one_cv3", None))):
        for level in branch:
            level[-1] = _renewed(level[-1], nn.Conv2d(level[-1].in_channels, len(classes), 1), known, classes)
    head.no = len(classes) + 4 * head.reg_max


def _renew_queries(head: Any, known: Sequence[str], classes: Sequence[str]) -> None:
    def scores(old: Any) -> Any:
        return _renewed(old, nn.Linear(old.in_features, len(classes)), known, classes)

    head.enc_score_head = scores(head.enc_score_head)
    for index, old in enumerate(head.dec_score_head):
        head.dec_score_head[index] = scores(old)
    noisy = head.denoising_class_embed
    head.denoising_class_embed = _renewed(noisy, nn.Embedding(len(classes), noisy.embedding_dim), known, classes)


def _renewed(old: Any, new: Any, known: Sequence[str], classes: Sequence[str]) -> Any:
    """Copy the weights of the classes that both layers have from the old to the new layer, and return it."""
    with torch.no_grad():
        if hasattr(new, "bias"):
            new.bias.fill_(UNKNOWN_CLASS_LOGIT)
        for index, name in enumerate(classes):
            if name in known:
                for layer, values in old.named_parameters():
                    new.get_parameter(layer)[index] = values[known.index(name)]
    return new
