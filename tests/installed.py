"""Packages beside edgekd, as if they had been installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: Mapping[str, str], entry_points: Mapping[str, str]
) -> None:
    """Install a package with these files, and with an entry point in each of these groups, until the test ends."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
        monkeypatch.delitem(sys.modules, path.removesuffix(".py").replace("/", "."), raising=False)
    groups = "".join(f"[{group}]\n{name} = {reference}\n" for group, reference in entry_points.items())
    (info / "entry_points.txt").write_text(groups, "utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    monkeypatch.syspath_prepend(str(folder))
