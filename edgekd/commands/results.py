"""Results that several commands share: frozen dataclasses, with all that is known in `document`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.stage_store import readable_json
from edgekd.core.atomic_files import copy_file, write_file
from edgekd.core.documents import Result


@dataclass(frozen=True)
class UntypedResult:
    """document: the JSON that the command of that name prints with `--json`; docs/json.md explains every key."""

    document: Any

    @property
    def exit_code(self) -> int:
        """The exit code of the command line: 1 where the answer is no."""
        return 0


def write_result(folder: Path, name: str, result: Result, files: Mapping[str, Path]) -> None:
    """Copy files into a result folder under new names, and write the result last. Raises SpecError."""
    for file, source in files.items():
        copy_file(source, folder / file)
    write_file(folder / name, readable_json(result.document))
