"""`edgekd sign`: signatures added to a bundle or a trust file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none, signers_of
from edgekd.commands.options import Paths, SecretFile
from edgekd.commands.parameter import Option
from edgekd.commands.verify import SignedFile
from edgekd.deploy.signing import signed


def sign(
    file: SignedFile,
    key: Annotated[Paths, Option("A private key's file, or pkcs11: address.", parse=str)],
    *,
    out: Annotated[str | Path | None, Option("File to write. Default: in place.", group="Output")] = None,
    secret_file: SecretFile = None,
) -> signed.Verified:
    """Add signatures to a bundle or a trust file.

    Raises SpecError, BundleError, HashError, SignatureError. The command: `edgekd sign`.
    """
    return signed.sign(Path(file), signers_of(key, secret_file), path_or_none(out))
