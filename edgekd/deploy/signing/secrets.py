"""Passphrases and PINs: from a file or the terminal; never from arguments, which other users can read."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import SpecError

VARIABLE = "EDGEKD_SECRET_FILE"
"""Environment variable with the path of a file that contains the passphrase or PIN."""
MAX_SECRET_BYTES = 1 << 16
"""Maximum size of a file with a key, a passphrase or a PIN: a key takes some 200 bytes."""
_GROUP_AND_OTHERS = 0o077  # permission bits
_SECRETS = re.compile(r"(pin-value=)[^&;\s]*|(://[^\s/:@]*:)\S*(?=@)", re.IGNORECASE)


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
        return (self.ask or _hidden)(f"{what}: ")

    def choose(self, what: str) -> str:
        """Return a new secret, entered twice at a terminal. Raises SpecError if it is empty, or the entries differ."""
        chosen = self.get(what)
        if not chosen:
            raise SpecError(f"{what}: empty", expected="at least one character")
        if not self.given and self.get(f"{what}, again") != chosen:
            raise SpecError(f"{what}: the two entries differ", fix="try again")
        return chosen


def without_secrets(text: str) -> str:
    """Return a text, such as a command line, without the PINs and passwords of addresses in it."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}...", text)


def read_secret(path: Path) -> tuple[bytes, bool]:
    """Read a file with a key or secret; return its content, and whether others may read or write it.

    Raises SpecError.
    """
    try:
        with path.open("rb") as stream:
            content, mode = stream.read(MAX_SECRET_BYTES + 1), os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        found = getattr(error, "strerror", None)
        raise SpecError(f"{path}: cannot read", found=found, fix="check the path") from error
    if len(content) > MAX_SECRET_BYTES:
        raise SpecError(f"{path}: too long", expected=f"at most {MAX_SECRET_BYTES} bytes", fix="check the path")
    return content, bool(mode & _GROUP_AND_OTHERS)


def readable_by_others(path: Path, what: str) -> SpecError:
    """Return the error for a file with a secret that others may read."""
    fix = f"chmod 600 {shlex.quote(str(path))}"
    return SpecError(f"{path}: others can read this {what}", expected="mode 0600", fix=fix)


def _hidden(prompt: str) -> str:
    """Read a secret at the terminal. Raises SpecError where it would be shown there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except getpass.GetPassWarning as error:
            what = f"{prompt.removesuffix(': ')}: this terminal would show it"
            raise SpecError(what, fix=f"--secret-file FILE, or {VARIABLE} in the environment") from error


def _first_line(path: Path) -> str:
    content, shared = read_secret(path)
    if shared:
        raise readable_by_others(path, "passphrase or PIN")
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        # Without its cause, which contains a part of the secret.
        raise SpecError(f"{path}: cannot read", expected="UTF-8", fix="check the path") from None
    if not lines or not lines[0]:
        raise SpecError(f"{path}: empty", expected="a passphrase or PIN on its first line")
    return lines[0]
