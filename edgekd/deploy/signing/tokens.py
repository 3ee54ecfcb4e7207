"""Keys in a token or hardware security module, by PKCS#11: the private key never leaves it.

An address is a URI of RFC 7512: `pkcs11:token=LABEL;object=NAME?module-path=/usr/lib/softhsm/libsofthsm2.so`, with
`id=%01` instead of, or besides, `object`, and optionally `pin-source=/run/pin`, a file with the PIN.
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
from edgekd.deploy.signing.secrets import Secrets, without_secrets

_EXAMPLE = "pkcs11:token=LABEL;object=NAME?module-path=/usr/lib/softhsm/libsofthsm2.so"


@dataclass(frozen=True)
class TokenAddress:
    """Address of a key: library, token, and label or id; pin_source: a file with the PIN."""

    module: str
    token: str
    object: str | None
    id: bytes | None
    pin_source: Path | None


def parse_address(text: str) -> TokenAddress:
    """Parse a `pkcs11:` URI. Raises SpecError."""
    path, _, query = text.partition(":")[2].partition("?")
    parts = dict(part.partition("=")[::2] for part in (*path.split(";"), *query.split("&")) if part)
    known = {"token", "object", "id", "module-path", "pin-source", "type"}
    if "pin-value" in parts:
        fix = "leave pin-value out: enter the PIN at the prompt, or name a file with pin-source or --secret-file"
        raise SpecError("--key: invalid address of a key: a PIN in it is visible to every user", fix=fix)
    if not set(parts) <= known or not {"token", "module-path"} <= set(parts) or not {"object", "id"} & set(parts):
        raise SpecError("--key: invalid address of a key", expected=_EXAMPLE, found=without_secrets(text))
    source = unquote(parts["pin-source"]).removeprefix("file:") if "pin-source" in parts else None
    return TokenAddress(
        module=unquote(parts["module-path"]),
        token=unquote(parts["token"]),
        object=unquote(parts["object"]) if "object" in parts else None,
        id=unquote_to_bytes(parts["id"]) if "id" in parts else None,
        pin_source=Path(source) if source else None,
    )


class TokenSigner:
    """A private key in a token."""

    def __init__(self, address: str, secrets: Secrets) -> None:
        self._address = parse_address(address)
        self.name = f"token {self._address.token}"
        self._pin = Secrets(self._address.pin_source or secrets.file, secrets.ask).get(f"PIN of {self.name}")
        with self._session() as session:
            import pkcs11

            point = bytes(self._key(session, pkcs11.ObjectClass.PUBLIC_KEY)[pkcs11.Attribute.EC_POINT])
        # Some tokens return the 32 bytes, some a DER octet string of them.
        self.public = point[-KEY_BYTES:]
        if point not in (self.public, bytes((4, KEY_BYTES)) + self.public) or not sound_key(self.public):
            found = f"a point of {len(point)} bytes"
            raise SpecError(f"{self.name}: another kind of key", expected="Ed25519", found=found)

    def __repr__(self) -> str:
        return f"TokenSigner({self.name})"

    def sign(self, message: bytes) -> bytes:
        """Sign a message."""
        import pkcs11

        with self._session() as session:
            key = self._key(session, pkcs11.ObjectClass.PRIVATE_KEY)
            return bytes(key.sign(message, mechanism=pkcs11.Mechanism.EDDSA))

    def _key(self, session: Any, kind: Any) -> Any:
        return session.get_key(object_class=kind, label=self._address.object, id=self._address.id)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """Yield a session with the token, logged in. Raises SpecError without the library, SignatureError."""
        try:
            import pkcs11
        except ImportError as error:
            raise SpecError("no library for tokens", fix="pip install 'edgekd[hsm]'") from error
        try:
            token = pkcs11.lib(self._address.module).get_token(token_label=self._address.token)
            with token.open(user_pin=self._pin) as session:
                yield session
        except pkcs11.exceptions.PKCS11Error as error:
            found = f"{type(error).__name__} {error}".strip()
            fix = "check token, object, PIN and library"
            raise SignatureError(f"{self.name}: cannot sign", found=found, fix=fix) from error
