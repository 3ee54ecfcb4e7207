"""The packages and diffs of docs/guides/extend.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgekd.core.toml import read_toml

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "guides" / "extend.md").read_text("utf-8")
SECTIONS: Mapping[str, str] = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def blocks(section: str, language: str) -> list[str]:
    """Return the code blocks of a section in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)


def file_of(section: str, name: str) -> str:
    """Return the text of a file that a section shows."""
    shown = re.search(
        rf"^In `{re.escape(name)}`[^\n]*:\n\n```\w+\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE
    )
    assert shown, f"{section}: no {name}"
    return shown[1]


def diff_of(section: str) -> dict[str, list[tuple[str, str]]]:
    """Return the diff of a section: for each file the text of each hunk before and after."""
    files = {}
    (diff,) = blocks(section, "diff")
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        path, *hunks = part.split("\n@@\n")
        files[path] = [(_without("+", hunk), _without("-", hunk)) for hunk in hunks]
    return files


def _without(mark: str, hunk: str) -> str:
    return "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] != mark)


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: Mapping[str, str], entry_points: Mapping[str, str]
) -> None:
    """Install a package with these files, and with an entry point in each of these groups, until the test ends."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for path, text in files.items():
        (folder / path).write_text(text, "utf-8")
        monkeypatch.delitem(sys.modules, path.removesuffix(".py"), raising=False)
    groups = "".join(f"[{group}]\n{name} = {reference}\n" for group, reference in entry_points.items())
    (info / "entry_points.txt").write_text(groups, "utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    monkeypatch.syspath_prepend(str(folder))


def install_from_page(section: str, module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the package of a section, of one module, until the test ends."""
    project = folder / f"{module}.toml"
    project.write_text(file_of(section, "pyproject.toml"), "utf-8")
    ((group, named),) = read_toml(project)["project"]["entry-points"].items()
    ((name, reference),) = named.items()
    install(folder / module, monkeypatch, name, {f"{module}.py": file_of(section, f"{module}.py")}, {group: reference})
