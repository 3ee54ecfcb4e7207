"""Bundles and trust files signed and checked: what `edgekd sign`, `verify` and `trust` do, and tell of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekd.core.bundle import ed25519
from edgekd.core.bundle.archive import opened_bundle
from edgekd.core.bundle.signatures import Signature, SignatureEnvelope, holds, key_id, merged, statement
from edgekd.core.bundle.trust import SignedTrust, require_complete, require_next, require_signed
from edgekd.core.documents import Result
from edgekd.core.errors import SignatureError, SpecError
from edgekd.deploy.firmware.types import FirmwareFile
from edgekd.deploy.signing import Signer
from edgekd.deploy.signing.trust_files import read_trust_file, trust_from_toml, write_trust_file

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge


@dataclass(frozen=True)
class NamedSignature:
    """A signature; it is verified if its key was given, or is in the given trust file.

    Args:
        key: Id of the key: SHA-256 of the public key.
        name: Name of the key in the trust file, or of the .pub file; null where it has none.
    """

    key: str
    name: str | None


@dataclass(frozen=True)
class Verified(Result):
    """A bundle or trust file that is whole, and its signatures.

    Args:
        file: Path of the file.
        kind: What it is.
        identity: SHA-256 of the bundle's manifest, or of the content of the trust file: what signatures are of.
        version: Counter of the bundle, or version of the trust file.
        expires: Time at which the trust file expires, in UTC; null for bundles, and for never.
        bytes: Size of the file.
        signatures: Its signatures.
        trusted: True where a trust file or keys were given, and the signatures suffice; null where none were given.
        trust_version: Version of the trust file that decided.
        firmware: The firmware system's file around the bundle, of `pack`; null for a bundle or a trust file.
    """

    file: Path
    kind: Literal["bundle", "trust"]
    identity: str
    version: int
    expires: str | None
    bytes: int
    signatures: tuple[NamedSignature, ...]
    trusted: bool | None
    trust_version: int | None
    firmware: FirmwareFile | None = None


def signatures_of(kind: str, sha256: str, signers: Iterable[Signer]) -> tuple[Signature, ...]:
    """A signature by each of the signers, checked before anybody relies on it. Raises SignatureError."""
    message = statement(kind, sha256)
    found = []
    for signer in signers:
        value = signer.sign(message)
        if not ed25519.verify(signer.public, message, value):
            raise SignatureError(f"{signer.name}: gave a wrong signature", fix="check that its keys are a pair")
        found.append(Signature(key_id(signer.public), value.hex()))
    return merged(found)


def sign_bundle(path: Path, signers: Sequence[Signer], out: Path, kept: Iterable[Signature] | None = None) -> None:
    """Write a bundle, verified, with more signatures, of each key the last. `out` may be `path`.

    kept: the signatures to begin with, in place of those that it has.
    """
    with opened_bundle(path) as bundle:
        head = bundle.head
        before = head.envelope.signatures if kept is None else kept
        bundle.write_signed(merged(before, signatures_of("bundle", head.identity, signers)), out)


def sign(path: Path, signers: Sequence[Signer], out: Path | None = None) -> Verified:
    """Sign a bundle or a trust file, in place or into another file, and tell of what came out."""
    if _is_trust(path):
        signed = read_trust_file(path)
        write_trust_file(out or path, signed.with_signatures(_of_trust(signed, signers)))
    else:
        sign_bundle(path, signers, out or path)
    return verify(out or path)


def make_trust(table: Path, out: Path, signers: Sequence[Signer], previous: Path | None) -> Verified:
    """Make a trust file from a table, sign it, and tell of it.

    With `previous` it must be fit to follow that one, but for signatures that are still to come. Raises SpecError,
    SignatureError.
    """
    signed = trust_from_toml(table)
    signed = signed.with_signatures(_of_trust(signed, signers))
    if previous:
        _require_follows(read_trust_file(previous), signed)
    write_trust_file(out, signed)
    return verify(out)


def verify(path: Path, trust: Path | None = None, keys: Mapping[str, bytes] | None = None) -> Verified:
    """Check a bundle from its first byte to its last, or a trust file, and tell who signed it.

    trust: the trust file that decides whom to believe; keys: public keys by name, all of which must have signed it.
    Raises BundleError, HashError, SignatureError, SpecError.
    """
    now = datetime.now(timezone.utc)
    held = read_trust_file(trust) if trust else None
    if held:
        require_complete(held)
    if _is_trust(path):
        return _verify_trust(path, held, keys or {}, now)
    with opened_bundle(path, _judge(held, keys or {}, now)) as bundle:
        bundle.verify()
        head, size = bundle.head, bundle.size
    known = {**_names(held), **{key_id(public): name for name, public in (keys or {}).items()}}
    return Verified(
        file=path,
        kind="bundle",
        identity=head.identity,
        version=head.manifest.counter,
        expires=None,
        bytes=size,
        signatures=_signers(head.envelope.signatures, known),
        trusted=True if held or keys else None,
        trust_version=held.trust.version if held else None,
    )


def _verify_trust(path: Path, held: SignedTrust | None, keys: Mapping[str, bytes], now: datetime) -> Verified:
    signed = read_trust_file(path)
    message = statement("trust", signed.trust.sha256)
    if held and held.trust != signed.trust:
        require_next(held, signed, now)
    _require_keys(keys, message, signed.signatures, path)
    return Verified(
        file=path,
        kind="trust",
        identity=signed.trust.sha256,
        version=signed.trust.version,
        expires=signed.trust.expires,
        bytes=path.stat().st_size,
        signatures=_signers(signed.signatures, {**_names(held), **_names(signed)}),
        trusted=True if held or keys else None,
        trust_version=held.trust.version if held else None,
    )


def _judge(held: SignedTrust | None, keys: Mapping[str, bytes], now: datetime) -> Judge:
    def require(envelope: SignatureEnvelope) -> None:
        _require_keys(keys, statement("bundle", envelope.sha256), envelope.signatures, "signatures")
        if held:
            require_signed(held.trust, envelope.sha256, envelope.signatures, now)

    return require


def _require_keys(keys: Mapping[str, bytes], message: bytes, signatures: Sequence[Signature], what: object) -> None:
    """Raise SignatureError unless all these keys have signed a message."""
    by = {signature.key: signature for signature in signatures}
    for name, public in keys.items():
        found = by.get(key_id(public))
        if found is None:
            raise SignatureError(f"{what}: not signed by {name}", expected=f"a signature of key {key_id(public)}")
        if not holds(found, public, message):
            raise SignatureError(f"{what}: the signature of {name} is wrong", fix="get the file again")


def _of_trust(signed: SignedTrust, signers: Sequence[Signer]) -> tuple[Signature, ...]:
    return signatures_of("trust", signed.trust.sha256, signers)


def _require_follows(previous: SignedTrust, new: SignedTrust) -> None:
    old, trust = previous.trust, new.trust
    if trust.version <= old.version:
        raise SpecError("version: not newer", expected=f"a version above {old.version}", found=str(trust.version))
    forgotten = trust.forgets(old)
    if forgotten:
        raise SpecError("revoked: forgets what was revoked before", expected=min(forgotten), fix="list it again")


def _names(signed: SignedTrust | None) -> dict[str, str]:
    return {key.id: key.name for key in signed.trust.keys} if signed else {}


def _signers(signatures: Sequence[Signature], names: Mapping[str, str]) -> tuple[NamedSignature, ...]:
    return tuple(NamedSignature(signature.key, names.get(signature.key)) for signature in signatures)


def _is_trust(path: Path) -> bool:
    """Return whether a file is a trust file rather than a bundle: bundles begin with the name of their manifest."""
    try:
        with path.open("rb") as stream:
            return stream.read(1) == b"{"
    except OSError as error:
        raise SpecError(f"{path}: cannot read", found=error.strerror, fix="check the path") from error
