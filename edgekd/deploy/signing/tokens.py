"""Keys in a token or hardware security module, by PKCS#11: the private key never leaves it.

An address is a URI of RFC 7512: `pkcs11:token=LABEL;object=NAME?module-path=/usr/lib/softhsm/libsofthsm2.so`, with
`id=%01` in place of, or besides, `object`, and with `pin-source=/run/pin` where the PIN has a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from edgekd.core.bundle.ed25519 import KEY_BYTES, sound_key
from edgekd.core.errors import SignatureError, SpecError
from edgekd.deploy.signing.secrets import Secrets

_EXAMPLE = "pkcs11:token=LABEL;object=NAME?module-path=/usr/lib/softhsm/libsofthsm2.so"


@dataclass(frozen=True)
class Address:
    """Which key of which token, through which library; pin_source: a file with the PIN."""

    module: str
    token: str
    object: str | None
    id: bytes | None
    pin_source: Path | None


def parse_address(text: str) -> Address:
    """The parts of a `pkcs11:` URI. Raises SpecError for one that is not as above."""
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    parts = dict(part.partition("=")[::2] for part in (*path.split(";"), *query.split("&")) if part)
    known = {"token", "object", "id", "module-path", "pin-source", "type"}
    if not set(parts) <= known or not {"token", "module-path"} <= set(parts) or not {"object", "id"} & set(parts):
        raise SpecError("--key: no address of a key", expected=_EXAMPLE, found=text)
    source = unquote(parts["pin-source"]).removeprefix("file:") if "pin-source" in parts else None
    return Address(
        module=unquote(parts["module-path"]),
        token=unquote(parts["token"]),
        object=unquote(parts["object"]) if "object" in parts else None,
        id=unquote_to_bytes(parts["id"]) if "id" in parts else None,
        pin_source=Path(source) if source else None,
    )


class TokenSigner:
    """Signs with a private key that stays in its token."""

    def __init__(self, address: str, secrets: Secrets) -> None:
        self._at = parse_address(address)
        self.name = f"token {self._at.token}"
        self._pin = Secrets(self._at.pin_source or secrets.file, secrets.ask).get(f"PIN of {self.name}")
        with self._session() as session:
            import pkcs11

            point = bytes(self._key(session, pkcs11.ObjectClass.PUBLIC_KEY)[pkcs11.Attribute.EC_POINT])
        # Some tokens tell the 32 bytes alone, some as an octet string of DER.
        self.public = point[-KEY_BYTES:]
        if point not in (self.public, bytes((4, KEY_BYTES)) + self.public) or not sound_key(self.public):
            found = f"a point of {len(point)} bytes"
            raise SpecError(f"{self.name}: another kind of key", expected="Ed25519", found=found)

    def __repr__(self) -> str:
        return f"TokenSigner({self.name})"

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""
        import pkcs11

        with self._session() as session:
            key = self._key(session, pkcs11.ObjectClass.PRIVATE_KEY)
            return bytes(key.sign(message, mechanism=pkcs11.Mechanism.EDDSA))

    def _key(self, session: Any, kind: Any) -> Any:
        return session.get_key(object_class=kind, label=self._at.object, id=self._at.id)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """A session with the token, logged in. Raises SignatureError."""
        try:
            import pkcs11
        except ImportError as error:
            raise SpecError("no library for tokens", fix="pip install 'edgekd[hsm]'") from error
        try:
            token = pkcs11.lib(self._at.module).get_token(token_label=self._at.token)
            with token.open(user_pin=self._pin) as session:
                yield session
        except pkcs11.exceptions.PKCS11Error as error:
            said = f"{type(error).__name__} {error}".strip()
            fix = "check token, object, PIN and library"
            raise SignatureError(f"{self.name}: cannot sign", found=said, fix=fix) from error
