"""Candidates proposed by Optuna, given the results of earlier ones. The only module that imports Optuna.

Each draw has its own seed and depends on the earlier results only, so equal results lead to equal proposals: a killed
search proposes the same candidates again and finds their results in the store. Optuna's trials are written to a journal
for Optuna's own tools.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.builds.search.space import CHOICES, Candidate, Space
from edgekd.core.errors import SpecError

STARTUP = 8
"""Number of finished trials before TPE replaces random sampling."""


def library() -> Any:
    """Import Optuna. Raises SpecError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        fix = 'pip install "edgekd[search]"'
        raise SpecError("a search needs Optuna", found=str(error), fix=fix) from error
    return optuna


class OptunaSampler:
    """Multi-objective TPE sampler of candidates: maximal accuracy, minimal bytes and milliseconds.

    journal: file for Optuna's journal, which is replaced; None for none.
    """

    def __init__(self, space: Space, seed: int = 0, journal: Path | None = None) -> None:
        """Raises SpecError without Optuna."""
        optuna = library()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._space, self._seed = space, seed
        self._choices = {name: len(getattr(space, name)) - 1 for name in CHOICES if len(getattr(space, name)) > 1}
        self._count = 0
        storage = None
        if journal is not None:
            for stale in journal.parent.glob(f"{journal.name}*"):
                stale.unlink()
            backend = optuna.storages.journal.JournalFileBackend(str(journal))
            storage = optuna.storages.JournalStorage(backend)
        directions = ["maximize", "minimize", "minimize"]
        self._study = optuna.create_study(storage=storage, study_name="edgekd", directions=directions)

    def draw(self) -> Candidate:
        """Return a candidate sampled by the results so far; Optuna records the draw as a failed trial."""
        trial, levels = self._asked()
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return self._space.at({name: levels.get(name, 0) for name in CHOICES})

    def learn(self, candidate: Candidate, values: Sequence[float], missed: Mapping[str, float]) -> None:
        """Record a trial. values: accuracy kept, bytes, milliseconds; missed: share by which each limit is missed."""
        self._study.enqueue_trial({name: self._space.level(candidate, name) for name in self._choices})
        trial, _ = self._asked()
        trial.set_user_attr("missed", [float(share) for share in missed.values()] or [0.0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(trial, [float(value) for value in values])

    def _asked(self) -> tuple[Any, dict[str, int]]:
        """Return Optuna's next trial, and the level of each choice in it."""
        self._study.sampler = self._sampler(self._count)
        self._count += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about experimental features of Optuna
            trial = self._study.ask()
            return trial, {name: trial.suggest_int(name, 0, most) for name, most in self._choices.items()}

    def _sampler(self, number: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._optuna.samplers.TPESampler(
                seed=(self._seed << 20) + number,
                n_startup_trials=STARTUP,
                multivariate=True,
                constraints_func=_constraints,
            )


def _constraints(trial: Any) -> Sequence[float]:
    """Return the sum of the shares by which limits are missed; for Optuna values above 0 are infeasible."""
    return [float(sum(trial.user_attrs.get("missed", (0.0,))))]
