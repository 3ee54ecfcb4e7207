"""Tables, numbers and JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def has_styles() -> bool:
    """Return whether stdout is a terminal for colour and boxes: neither NO_COLOR nor a dumb one."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(document: Any) -> None:
    """Print one JSON document, and nothing else. Bytes, which are JSON in a canonical form, are printed as they are."""
    if isinstance(document, bytes):
        sys.stdout.write(document.decode("utf-8"))
    else:
        print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print columns under a header, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Where nobody's terminal sets the width, nothing is cut off or folded.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def score_text(value: float | None) -> str:
    """Format a score from 0 to 1, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def rate_text(fps: float | None) -> str:
    """Format frames per second, or a dash where a run was too short or too noisy for them."""
    return "- FPS" if fps is None else f"{fps:.1f} FPS"


def megabytes(count: int) -> str:
    """Format bytes in MB."""
    return f"{count / 1e6:.2f} MB"


def print_refused(refused: Sequence[str]) -> None:
    """Print the rates that a run was too short or too noisy for, and what to do."""
    for reason in refused:
        print(f"not reported: {reason}")
