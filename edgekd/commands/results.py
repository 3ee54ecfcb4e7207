"""Result folders of commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd.builds.stage_store import readable_json
from edgekd.core.atomic_files import copy_file, write_file
from edgekd.core.documents import Result


def write_result(folder: Path, name: str, result: Result, files: Mapping[str, Path]) -> None:
    """Copy files into a result folder under new names, and write the result last. Raises SpecError."""
    for file, source in files.items():
        copy_file(source, folder / file)
    write_file(folder / name, readable_json(result.document))
