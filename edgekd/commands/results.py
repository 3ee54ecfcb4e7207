"""Result folders of commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd.builds.stage_store import put_result, readable_json
from edgekd.core.atomic_files import write_file
from edgekd.core.documents import Result


def write_result(folder: Path, name: str, result: Result, files: Mapping[str, Path | None]) -> None:
    """Copy files into a result folder under new names, and write the result last. Raises SpecError.

    None: the file of an earlier run under that name is removed.
    """
    for file, source in files.items():
        put_result(source, folder / file)
    write_file(folder / name, readable_json(result.document))
