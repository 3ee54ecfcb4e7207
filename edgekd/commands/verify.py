"""`edgekd verify`: check every byte of a bundle or trust file, and its signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import required_signatures
from edgekd.commands.options import PublicKeys, TrustFile
from edgekd.commands.parameter import Argument
from edgekd.deploy.signing import signed

SignedFile = Annotated[str | Path, Argument("A .edgekd bundle, or a trust file.")]


def verify(
    file: SignedFile,
    *,
    trust: TrustFile = None,
    keys: PublicKeys = (),
) -> signed.Verified:
    """Check every byte of a bundle or trust file, and its signatures.

    All of `keys` must have signed it. Without `trust` and `keys` the result only says that the file is undamaged, and
    which keys its signatures name.

    Raises HashError for a damaged file, SignatureError if required signatures are missing or invalid, BundleError,
    SpecError. The command: `edgekd verify`. The format, and Ed25519 by RFC 8032: docs/reference/formats/bundle.md.
    """
    required = required_signatures(trust, keys)
    return signed.verify(Path(file), required.trust, required.keys)
