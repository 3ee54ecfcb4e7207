"""Signing on the host: keys in files and in tokens, bundles and trust files. Verification is in `core/bundle/`.

Private keys are read on use and not kept. None is ever in a job, a stage, a log or a result.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from edgekd.deploy.signing.secrets import Secrets


class Signer(Protocol):
    """A private key. name: its location, for users; public: the public key, 32 bytes."""

    name: str
    public: bytes

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of a message, 64 bytes. Raises SignatureError."""
        ...


def load_signers(keys: Iterable[str], secret_file: Path | None = None) -> tuple[Signer, ...]:
    """Load the keys of `--sign` and `--key`: files of private keys, or `pkcs11:` addresses.

    secret_file: contains the passphrase or PIN of all of them. Raises SpecError or SignatureError.
    """
    secrets = Secrets(secret_file)
    return tuple(_signer(key, secrets) for key in keys)


def _signer(key: str, secrets: Secrets) -> Signer:
    if key.lower().startswith("pkcs11:"):  # the scheme of a URI is in either case
        from edgekd.deploy.signing.tokens import TokenSigner

        return TokenSigner(key, secrets)
    from edgekd.deploy.signing.key_files import FileSigner

    return FileSigner(Path(key), secrets)
