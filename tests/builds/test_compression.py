"""Checkpoints that steps of a recipe write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.builds import speedup
from edgekd.builds.compression import exported
from edgekd.builds.stages import export
from edgekd.hardware.target import load_target


@pytest.mark.parametrize("trust", [True, False])
def test_what_is_made_of_a_trusted_checkpoint_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: bool
) -> None:
    """It has the layers of the given one, which the same flag let in."""
    (tmp_path / "pruned.pt").touch()
    opened: list[Any] = []
    monkeypatch.setattr(export, "run", lambda context, detector, *others: opened.append(detector))
    request, nothing = (
        SimpleNamespace(trust_checkpoint=trust, target=load_target("xavier")),
        SimpleNamespace(classes=()),
    )
    record: Any = SimpleNamespace(request=request)
    exported(tmp_path / "pruned.pt", record, nothing, None)  # type: ignore[arg-type]
    other: Any = None
    speedup.Start(other, nothing, other, None, other, other, trust).export(tmp_path / "pruned.pt")  # type: ignore[arg-type]
    assert [vars(detector)["_trust"] for detector in opened] == [trust, trust]
