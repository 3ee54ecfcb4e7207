"""Passphrases and PINs: from a file, or from a person at a terminal; never from arguments, which everybody can read."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import SpecError

VARIABLE = "EDGEKD_SECRET_FILE"
"""The environment variable that names a file with the passphrase or PIN."""


@dataclass(frozen=True)
class Secrets:
    """Source of secrets: a file, else the file that the environment names, else the terminal."""

    file: Path | None = None
    ask: Callable[[str], str] | None = None

    @property
    def given(self) -> Path | None:
        """The file, if there is one."""
        told = os.environ.get(VARIABLE)
        return self.file or (Path(told) if told else None)

    def get(self, what: str) -> str:
        """The secret. `what` says of what it is. Raises SpecError where there is nobody to ask."""
        if self.given:
            return _first_line(self.given)
        if self.ask is None and not sys.stdin.isatty():
            fix = f"--secret-file FILE, or {VARIABLE} in the environment"
            raise SpecError(f"{what}: nobody to ask", expected="a terminal", fix=fix)
        return (self.ask or getpass.getpass)(f"{what}: ")

    def choose(self, what: str) -> str:
        """A new secret; a person is asked twice. Raises SpecError where it is empty, or not the same twice."""
        chosen = self.get(what)
        if not chosen:
            raise SpecError(f"{what}: empty", expected="at least one character")
        if not self.given and self.get(f"{what}, again") != chosen:
            raise SpecError(f"{what}: not the same twice", fix="try again")
        return chosen


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot read", found=str(error), fix="check the path") from error
    if not lines or not lines[0]:
        raise SpecError(f"{path}: empty", expected="a passphrase or PIN on its first line")
    return lines[0]
