"""Result folders of commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd.builds.stage_store import put_result, readable_json
from edgekd.core.atomic_files import write_file
from edgekd.core.documents import Result


def write_result(folder: Path, name: str, result: Result, files: Mapping[str, Path | None]) -> None:
    """Copy files into a result folder, and write the result last as JSON. Raises SpecError.

    files: source by new name; None removes the file of an earlier run.
    """
    for file, source in files.items():
        put_result(source, folder / file)
    write_file(folder / name, readable_json(result.document))
