"""Key files in PEM: private keys as PKCS#8, public keys as SubjectPublicKeyInfo."""

from __future__ import annotations

import os
import secrets as randomness
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.core.atomic_files import write_file, writing
from edgekd.core.bundle.ed25519 import sound_key
from edgekd.core.bundle.signatures import key_id
from edgekd.core.errors import SpecError
from edgekd.deploy.signing.secrets import Secrets, read_secret, readable_by_others

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE, PUBLIC = ".key", ".pub"


@dataclass(frozen=True)
class KeyPair:
    """Files of a new key pair, and the id of the key."""

    private: Path
    public: Path
    id: str
    encrypted: bool


class FileSigner:
    """A private key in a file."""

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self.name = str(path)
        self._key = read_private(path, secrets)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Sign a message."""
        return self._key.sign(message)


def make_key(folder: Path, name: str, passphrase: str | None) -> KeyPair:
    """Make a key pair, `NAME.key` and `NAME.pub`. Raises SpecError if one of them exists."""
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not name or "/" in name or name.startswith("."):
        raise SpecError(f"{name!r}: invalid name of a key", expected="a file name without a folder")
    private, public = folder / f"{name}{PRIVATE}", folder / f"{name}{PUBLIC}"
    for path in (private, public):
        if path.exists():
            raise SpecError(f"{path}: exists already", fix="choose another name: an overwritten key is lost")
    key = Ed25519PrivateKey.generate()
    encryption: pem.KeySerializationEncryption = (
        pem.BestAvailableEncryption(passphrase.encode("utf-8")) if passphrase else pem.NoEncryption()
    )
    _write_private(private, key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption))
    write_public(public, key.public_key().public_bytes_raw())
    return KeyPair(private, public, key_id(key.public_key().public_bytes_raw()), bool(passphrase))


def read_private(path: Path, secrets: Secrets) -> Ed25519PrivateKey:
    """Read a private key. Raises SpecError: no key, another kind, readable by others, or a wrong passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, shared = read_secret(path)
    encrypted = b"ENCRYPTED" in content.partition(b"\n")[0]
    if shared and not encrypted:
        raise readable_by_others(path, "private key")
    passphrase = secrets.get(f"Passphrase of {path}").encode("utf-8") if encrypted else None
    try:
        key = load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        expected = "the right passphrase" if encrypted else "a private key in PEM"
        # The message of the library is left out: it does not help, and may reveal parts of the key.
        raise SpecError(f"{path}: cannot be read as a private key", expected=expected) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SpecError(f"{path}: another kind of key", expected="Ed25519", fix="edgekd keygen NAME")
    return key


def read_public(path: Path) -> bytes:
    """Read a public key, 32 bytes. Raises SpecError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_secret(path)[0])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SpecError(f"{path}: no public key", expected="a public key in PEM, NAME.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SpecError(f"{path}: another kind of key", expected="Ed25519", fix="edgekd keygen NAME")
    public = key.public_bytes_raw()
    if not sound_key(public):
        raise SpecError(f"{path}: a public key of another than the prime order", expected="one of edgekd keygen")
    return public


def write_public(path: Path, public: bytes) -> None:
    """Write a public key as PEM. Raises SpecError if it cannot be written."""
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(public)
    write_file(path, key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))


def _write_private(path: Path, content: bytes) -> None:
    """Write a new file atomically with mode 0600; an existing file is never replaced."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{randomness.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
