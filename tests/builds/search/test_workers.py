"""Workers of a search end with it, whatever they are doing."""

from __future__ import annotations

import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from edgekd.builds.search import workers
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT


def fail_or_wait(task: str, folder: Path) -> str:
    """A trial that waits, or one that fails once the other has begun."""
    if task == "waits":
        (folder / "begun").touch()
        time.sleep(30)
        return task
    while not (folder / "begun").exists():
        time.sleep(0.05)
    raise SpecError("a trial failed")


def test_an_error_does_not_wait_for_other_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does not: a trial may train for hours, and the next search goes on with it."""
    monkeypatch.setattr(workers, "run_trial", fail_or_wait)
    trials = workers.local_trials(lambda wanted: wanted, tmp_path, 2, SILENT)  # type: ignore[arg-type, return-value]
    with pytest.raises(SpecError, match="a trial failed"), trials as run_trials:
        run_trials(["fails", "waits"])  # type: ignore[list-item]
    assert not active_children(), "what still runs would hold up the end of the process"
