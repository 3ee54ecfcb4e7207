"""Generated files: written by default, compared by `--check`."""

from __future__ import annotations

import sys
from pathlib import Path


def write(texts: dict[Path, str]) -> None:
    """Write files as UTF-8; with `--check` write none, and exit with the names of those that differ."""
    if "--check" not in sys.argv:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    elif stale := [path.name for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]:
        raise SystemExit(f"{', '.join(stale)}: not what {Path(sys.argv[0]).name} writes")


def between(text: str, name: str, block: str) -> str:
    """Replace the text between `<!-- NAME -->` and `<!-- /NAME -->`. Raises ValueError if either is missing."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"no {start.strip()} ... {end}")
    return f"{before}{start}{block}{end}{after}"
