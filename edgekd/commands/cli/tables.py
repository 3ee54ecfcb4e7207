"""Tables, numbers and JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_STYLES = {"ok": "green", "missing": "yellow", "broken": "red", "FAILED": "red"}
"""Colours of cells with a state."""


def has_styles() -> bool:
    """Return whether stdout is a terminal that shows colours and boxes, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(document: Any) -> None:
    """Print one JSON document, and nothing else. Bytes are canonical JSON, and are printed unchanged."""
    if isinstance(document, bytes):
        sys.stdout.write(document.decode("utf-8"))
    else:
        print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print columns under a header, at most as wide as the terminal."""
    _print(_table(header, rows))


def print_box(title: str, header: list[str], rows: list[list[str]], lines: Sequence[str]) -> None:
    """Print a table and the lines that belong to it, in a box with a title if stdout shows styles."""
    table = _table(header, rows)
    if not has_styles():
        _print(table)
        print(*lines, sep="\n")
        return
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    _print(Panel(Group(table, "", *map(Text, lines)), title=Text(title, "bold"), title_align="left", expand=False))


def _table(header: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    return table


def _print(shown: RenderableType) -> None:
    from rich.console import Console

    # Without a terminal, lines of up to 240 characters are not folded.
    Console(width=None if sys.stdout.isatty() else 240).print(shown)


def score_text(value: float | None) -> str:
    """Return a score from 0 to 1 as text; a dash for None."""
    return "-" if value is None else f"{value:.4f}"


def rate_text(fps: float | None) -> str:
    """Return frames per second as text; a dash if a run was too short or too noisy for them."""
    return "- FPS" if fps is None else f"{fps:.1f} FPS"


def megabytes(count: int) -> str:
    """Return bytes as text in MB."""
    return f"{count / 1e6:.2f} MB"


def print_refused(refused: Sequence[str]) -> None:
    """Print the numbers that are not reported, with the reasons."""
    for reason in refused:
        print(f"not reported: {reason}")
