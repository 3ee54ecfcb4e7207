"""`edgekd verify`: a bundle or trust file checked from its first byte to its last."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none, paths_of
from edgekd.commands.options import Paths
from edgekd.commands.parameter import Argument, Option
from edgekd.deploy.signing import signed
from edgekd.deploy.signing.key_files import read_public

SignedFile = Annotated[str | Path, Argument("A .edgekd bundle, or a trust file.")]


def verify(
    file: SignedFile,
    *,
    trust: Annotated[str | Path | None, Option("Trust file that decides.")] = None,
    keys: Annotated[Paths, Option("A .pub that must have signed it.", flag="--key")] = (),
) -> signed.Verified:
    """Check a bundle or trust file from its first byte to its last, and who signed it.

    All of `keys` must have signed it. Without `trust` and `keys` the result only says that the file is whole, and by
    which keys it is signed.

    Raises HashError for a damaged file, SignatureError for one that is not signed as it has to be, BundleError,
    SpecError. The command: `edgekd verify`. The format, and Ed25519 by RFC 8032: docs/formats/bundle.md.
    """
    publics = {path.name: read_public(path) for path in paths_of(keys)}
    return signed.verify(Path(file), path_or_none(trust), publics)
