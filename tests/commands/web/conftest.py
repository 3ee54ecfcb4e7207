"""Result folders for the pages of `edgekd ui`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from result_folders import change, copy_build, write_search
from running import Built

from edgekd.builds.run_progress import recorded
from edgekd.core.errors import DeviceError
from edgekd.core.progress import SILENT, Progress


def fail(progress: Progress) -> None:
    """Raise a typical error of a camera."""
    progress.note("export: 1.0 s")
    raise DeviceError("no room on <the> camera")


@pytest.fixture
def runs(tiny_build: Built, tmp_path: Path) -> Path:
    """A folder with two builds, one of them faster and larger, a search, and a build that failed."""
    root = tmp_path / "runs"
    copy_build(tiny_build, root / "first")
    ledger = copy_build(tiny_build, root / "nightly" / "second") / "ledger.json"
    timing = json.loads(ledger.read_bytes())["timing"]
    timing["after"]["p50_ms"] /= 2
    change(ledger, timing=timing, budget=[])
    write_search(root / "tried")
    write_search(root / "tried" / "search")  # a search's trials, which are not result folders
    with recorded(root / "tried", "build", "tiny.onnx", "xavier", SILENT) as progress:
        progress.note("search: 2 tried")
    (root / "failed").mkdir()
    with pytest.raises(DeviceError), recorded(root / "failed", "build", "m.pt", "xavier", SILENT) as progress:
        fail(progress)
    return root
