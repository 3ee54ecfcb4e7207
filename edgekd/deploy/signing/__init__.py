"""Signing on the host: keys in files and in tokens, bundles and trust files. What checks signatures is in `bundle/`.

A private key is read when it is asked for, signs, and is forgotten. None is ever in a job, a stage, a log or a result.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from edgekd.deploy.signing.secrets import Secrets


class Signer(Protocol):
    """Something that signs with one private key, wherever that is."""

    name: str
    """For people: where the key is."""
    public: bytes
    """The public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature of a message, 64 bytes. Raises SignatureError."""
        ...


def load_signers(keys: Iterable[str], secret_file: Path | None = None) -> tuple[Signer, ...]:
    """The signers that `--sign` and `--key` name: files of private keys, or `pkcs11:` addresses.

    secret_file: holds the passphrase or PIN, for all of them. Raises SpecError or SignatureError.
    """
    secrets = Secrets(secret_file)
    return tuple(_signer(key, secrets) for key in keys)


def _signer(key: str, secrets: Secrets) -> Signer:
    if key.startswith("pkcs11:"):
        from edgekd.deploy.signing.tokens import TokenSigner

        return TokenSigner(key, secrets)
    from edgekd.deploy.signing.key_files import FileSigner

    return FileSigner(Path(key), secrets)
