"""A link leads to the old goal or to the new one, and to nothing in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.atomic_files import switch_link, unnamed_file
from edgekd.core.errors import SpecError


def test_a_link_is_made_and_switched(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        switch_link(tmp_path / "active", name)
        assert (tmp_path / "active").readlink() == Path(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "active", "b"]


def test_a_link_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "active").mkdir()
    with pytest.raises(SpecError, match="active: cannot write"):
        switch_link(tmp_path / "active", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["active"]


def test_a_file_without_a_name_is_nowhere(tmp_path: Path) -> None:
    with unnamed_file(tmp_path) as stream:
        stream.write(b"content")
        assert list(tmp_path.iterdir()) == []
        stream.seek(0)
        assert stream.read() == b"content"
    with pytest.raises(SpecError, match="cannot write"):
        unnamed_file(tmp_path / "missing")
