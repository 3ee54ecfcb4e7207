"""Reading TOML, with the file named when it is not TOML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgekd.errors import SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; SpecError where the file is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as TOML", found=str(error)) from error
