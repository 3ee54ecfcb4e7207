"""`edgekd keygen`: a key pair for signing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none
from edgekd.commands.options import SecretFile
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import Result
from edgekd.deploy.signing.key_files import make_key
from edgekd.deploy.signing.secrets import Secrets


def keygen(
    name: Annotated[str, Argument("What the key is called: NAME.key, NAME.pub.")],
    *,
    out: Annotated[str | Path, Option("Folder for the two files.")] = Path(),
    encrypt: Annotated[bool, Option("Ask for a passphrase; implied by --secret-file.")] = False,
    secret_file: SecretFile = None,
) -> Result:
    """Make a key pair, whose private key only its owner can read. Raises SpecError. The command: `edgekd keygen`."""
    secrets = Secrets(path_or_none(secret_file))
    passphrase = secrets.choose(f"Passphrase for {name}.key") if encrypt or secrets.given else None
    made = make_key(Path(out), name, passphrase)
    return Result(
        {"key": made.id, "private": str(made.private), "public": str(made.public), "encrypted": made.encrypted}
    )
