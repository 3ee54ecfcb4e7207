"""`edgekd keygen`: a key pair for signing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none
from edgekd.commands.options import SecretFile
from edgekd.commands.parameter import Argument, Option
from edgekd.core.documents import Result
from edgekd.deploy.signing.key_files import make_key
from edgekd.deploy.signing.secrets import Secrets


@dataclass(frozen=True)
class NewKey(Result):
    """A key pair that was written.

    Args:
        key: Id of the key: SHA-256 of the public key's 32 bytes, 64 hexadecimal digits.
        private: Path of the private key.
        public: Path of the public key.
        encrypted: True if the private key has a passphrase.
    """

    key: str
    private: Path
    public: Path
    encrypted: bool


def keygen(
    name: Annotated[str, Argument("Name of the key: files NAME.key and NAME.pub.")],
    *,
    out: Annotated[str | Path, Option("Folder for the two files.", group="Output")] = Path(),
    encrypt: Annotated[bool, Option("Ask for a passphrase; implied by --secret-file.")] = False,
    secret_file: SecretFile = None,
) -> NewKey:
    """Write a key pair; only its owner can read the private key. Raises SpecError. The command: `edgekd keygen`."""
    secrets = Secrets(path_or_none(secret_file))
    passphrase = secrets.choose(f"Passphrase for {name}.key") if encrypt or secrets.given else None
    made = make_key(Path(out), name, passphrase)
    return NewKey(made.id, made.private, made.public, made.encrypted)
