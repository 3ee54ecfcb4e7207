"""Simulates a training whose process is killed."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.compress.distillation.recovery import Recovery


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_third_epoch(patch: pytest.MonkeyPatch) -> list[int]:
    """Make the start of the third epoch raise KilledError. Return a list that records each epoch at its start."""
    epochs: list[int] = []
    train_epoch = Recovery._train_epoch

    def killed_in_third(training: Any, *known: Any) -> None:
        epochs.append(len(training.losses))
        if len(epochs) == 3:
            raise KilledError
        train_epoch(training, *known)

    patch.setattr(Recovery, "_train_epoch", killed_in_third)
    return epochs
