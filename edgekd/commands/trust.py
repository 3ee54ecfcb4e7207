"""`edgekd trust`: a trust file, which lists the keys whose bundles a camera accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none, signers_of
from edgekd.commands.options import Keys, SecretFile
from edgekd.commands.parameter import Argument, Option
from edgekd.deploy.signing.signed import Verified, make_trust


def trust(
    table: Annotated[str | Path, Argument("TOML table of keys and thresholds.")],
    *,
    out: Annotated[str | Path, Option("The trust file to write.")] = Path("trust.json"),
    previous: Annotated[str | Path | None, Option("The one that it is to follow.")] = None,
    key: Keys = (),
    secret_file: SecretFile = None,
) -> Verified:
    """Make a trust file from a table, and sign it. Raises SpecError, SignatureError. The command: `edgekd trust`."""
    return make_trust(Path(table), Path(out), signers_of(key, secret_file), path_or_none(previous))
