"""A training that ends in the middle, as if its process were killed."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.compress.distillation.recovery import Recovery


class KilledError(Exception):
    """In place of the end of a process."""


def kill_third_epoch(patch: pytest.MonkeyPatch) -> list[int]:
    """Let the third epoch that begins raise KilledError; return the list in which each that begins is noted."""
    epochs: list[int] = []
    train_epoch = Recovery._train_epoch

    def killed_in_third(training: Any, *known: Any) -> None:
        epochs.append(len(training.losses))
        if len(epochs) == 3:
            raise KilledError
        train_epoch(training, *known)

    patch.setattr(Recovery, "_train_epoch", killed_in_third)
    return epochs
