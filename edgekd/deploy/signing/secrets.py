"""Passphrases and PINs: from a file or the terminal; never from arguments, which other users can read."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import SpecError

VARIABLE = "EDGEKD_SECRET_FILE"
"""Environment variable with the path of a file that contains the passphrase or PIN."""


@dataclass(frozen=True)
class Secrets:
    """Source of secrets: a file, else the file of VARIABLE, else the terminal (by `ask`, default getpass)."""

    file: Path | None = None
    ask: Callable[[str], str] | None = None

    @property
    def given(self) -> Path | None:
        """The file, if there is one."""
        path = os.environ.get(VARIABLE)
        return self.file or (Path(path) if path else None)

    def get(self, what: str) -> str:
        """Return the secret; what: names it in the prompt. Raises SpecError without a file and a terminal."""
        if self.given:
            return _first_line(self.given)
        if self.ask is None and not sys.stdin.isatty():
            fix = f"--secret-file FILE, or {VARIABLE} in the environment"
            raise SpecError(f"{what}: no terminal to enter it", expected="a terminal", fix=fix)
        return (self.ask or getpass.getpass)(f"{what}: ")

    def choose(self, what: str) -> str:
        """Return a new secret, entered twice at a terminal. Raises SpecError if it is empty, or the entries differ."""
        chosen = self.get(what)
        if not chosen:
            raise SpecError(f"{what}: empty", expected="at least one character")
        if not self.given and self.get(f"{what}, again") != chosen:
            raise SpecError(f"{what}: the two entries differ", fix="try again")
        return chosen


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot read", found=str(error), fix="check the path") from error
    if not lines or not lines[0]:
        raise SpecError(f"{path}: empty", expected="a passphrase or PIN on its first line")
    return lines[0]
