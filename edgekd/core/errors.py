"""The error tree. Every error a user can cause is one of these; the CLI prints it as one line.

EdgeKDError
├ SpecError          bad TOML or arguments; nothing ran
│ └ DiskFullError    no space left where something is to be written
├ DataError          unreadable image, bad label, overlapping splits: names the file and line
├ CompressError      names step and layer
│ └ ParityError      the ONNX graph drifted from its source: says where, how much
├ DeviceError        unreachable, build failed, timed out
│ ├ EngineMismatchError
│ └ EngineRefusedError
├ BudgetError        ran, but missed; carries the report
└ BundleError
  ├ SignatureError · HashError · RollbackError

This module is shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

Cause = Literal[
    "unsigned",
    "unknown-key",
    "too-few",
    "expired-key",
    "revoked-key",
    "wrong-signature",
    "revoked-bundle",
    "expired-trust-file",
]
CAUSES: Mapping[Cause, str] = {
    "unsigned": "There is no signature.",
    "unknown-key": "No signature is by a key that the trust file lists for this kind of file.",
    "too-few": "Some signatures are valid, but fewer than the trust file requires.",
    "expired-key": "The valid signatures are too few, and there is another one by a key that has expired.",
    "revoked-key": "The valid signatures are too few, and there is another one by a key that is revoked.",
    "wrong-signature": "A signature by a known key is not of this file.",
    "revoked-bundle": "The trust file revokes the bundle.",
    "expired-trust-file": "The trust file has expired: nothing is accepted by it.",
}
"""Meaning of each cause of a SignatureError."""


class EdgeKDError(Exception):
    """Error of edgekd, on one line: the problem, what was expected, what was found, and the fix.

    Third-party errors are wrapped once, at the seam, with `raise ... from error`.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.fix = fix
        parts = [what]
        if expected:
            parts.append(f"expected {expected}")
        if found:
            parts.append(f"found {found}")
        if fix:
            parts.append(f"fix: {fix}")
        super().__init__(printable("; ".join(" ".join(part.split()) for part in parts)))


def printable(text: str) -> str:
    """Return a text with escapes for control and format characters, which could change what a terminal shows."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """Return the fix for a misspelt word: the nearest choice; None where none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"did you mean '{near[0]}'?" if near else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; without a message its type's name."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


class SpecError(EdgeKDError):
    """Bad TOML or arguments; nothing ran."""


class DiskFullError(SpecError):
    """No space is left where something is to be written."""


class DataError(EdgeKDError):
    """An unreadable image, a bad label, an empty split, overlapping splits."""


class CompressError(EdgeKDError):
    """A compression step failed; the message names the step and the layer."""


class ParityError(CompressError):
    """An exported or rewritten graph no longer computes what its source computes."""


class DeviceError(EdgeKDError):
    """A device is unreachable, cannot build or run the graph, or timed out."""


class EngineMismatchError(DeviceError):
    """An engine was made for another device, runtime version or driver."""


class EngineRefusedError(DeviceError):
    """A device answered, but cannot build the graph, or lacks a file or feature for it."""


class BudgetError(EdgeKDError):
    """The build ran and its results are on disk, but the budget was missed."""

    exit_code = 3

    def __init__(self, what: str, *, report: Any = None, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.report = report


class BundleError(EdgeKDError):
    """A bundle is malformed."""


class SignatureError(BundleError):
    """A bundle or trust file is not signed as it has to be, is revoked, or cannot be read.

    cause: why a trust file does not accept it; None for other problems.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
        cause: Cause | None = None,
    ) -> None:
        super().__init__(what, expected=expected, found=found, fix=fix)
        self.cause = cause


class HashError(BundleError):
    """A file in a bundle does not have the length or SHA-256 that the manifest states."""


class RollbackError(BundleError):
    """A bundle is older than the one installed."""


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Prefix the message of a BundleError in the block with `what`, such as a file or a slot; its class stays."""
    try:
        yield
    except BundleError as error:
        cause = {"cause": error.cause} if isinstance(error, SignatureError) else {}
        message = f"{what}: {error.what}"
        raise type(error)(message, expected=error.expected, found=error.found, fix=error.fix, **cause) from error
