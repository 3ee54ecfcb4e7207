"""Tables and boxes: styled on a terminal, plain elsewhere."""

from __future__ import annotations

import pytest

from edgekd.commands.cli import tables

LINES = ("latency: measured on a workstation", "engine: deferred to install [/not markup]")


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, styled: bool) -> str:
    """A box as it is printed."""
    monkeypatch.setattr(tables, "has_styles", lambda: styled)
    tables.print_box("detector.edgekd", ["", "before"], [["mAP50-95", "0.5"], ["[red]", "1"]], LINES)
    return capsys.readouterr().out


def test_a_box_is_plain_text_without_styles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.rstrip() for line in shown(monkeypatch, capsys, styled=False).splitlines()]
    assert lines == ["          before", "mAP50-95  0.5", "[red]     1", *LINES]


def test_a_box_has_a_title_and_the_same_texts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *inner, last = shown(monkeypatch, capsys, styled=True).splitlines()
    assert first.startswith("╭─ detector.edgekd ─")
    assert last.startswith("╰──")
    texts = [line.strip("│ ") for line in inner]
    assert texts == ["before", "mAP50-95  0.5", "[red]     1", "", *LINES]
