"""Sign and verify bundles and trust files: the commands `sign`, `verify` and `trust`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekd.core.bundle import ed25519
from edgekd.core.bundle.archive import opened, opened_bundle
from edgekd.core.bundle.network import verify_bundle
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
        name: Name of the key in the trust file, or of its .pub file; null if unknown.
    """

    key: str
    name: str | None


@dataclass(frozen=True)
class Verified(Result):
    """A valid bundle or trust file, and its signatures.

    Args:
        file: Path of the file.
        kind: Kind of the file; a delta only within a firmware system's file.
        identity: SHA-256 of the manifest of the bundle (for a delta: of the new bundle), or of the content of the trust
            file; signatures sign it.
        version: Counter of the bundle, or version of the trust file.
        expires: Expiry of the trust file, UTC; null for bundles and if it never expires.
        bytes: Size of the file.
        signatures: Signatures of the file.
        trusted: True if a trust file or keys were given and the signatures suffice; null if none were given.
        trust_version: Version of the given trust file.
        firmware: File of a firmware system that `pack` wrote around it; null without one.
    """

    file: Path
    kind: Literal["bundle", "delta", "trust"]
    identity: str
    version: int
    expires: str | None
    bytes: int
    signatures: tuple[NamedSignature, ...]
    trusted: bool | None
    trust_version: int | None
    firmware: FirmwareFile | None = None


@dataclass(frozen=True)
class RequiredSignatures:
    """Signatures that a bundle must have.

    Args:
        trust: Trust file that decides; None without one.
        keys: Public keys by name; all of them must have signed.
    """

    trust: Path | None = None
    keys: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Return whether any signature is required."""
        return self.trust is not None or bool(self.keys)

    def judge(self) -> Judge:
        """Return the check of a bundle's signatures. Raises SpecError, SignatureError for a bad trust file."""
        held = read_trust_file(self.trust) if self.trust else None
        if held:
            require_complete(held)
        return _signature_check(held, self.keys, datetime.now(timezone.utc))


def signatures_of(kind: str, sha256: str, signers: Iterable[Signer]) -> tuple[Signature, ...]:
    """Sign with each of the signers, and verify each signature. Raises SignatureError."""
    message = statement(kind, sha256)
    signatures = []
    for signer in signers:
        value = signer.sign(message)
        if not ed25519.verify(signer.public, message, value):
            raise SignatureError(f"{signer.name}: gave a wrong signature", fix="check that its keys are a pair")
        signatures.append(Signature(key_id(signer.public), value.hex()))
    return merged(signatures)


def sign_bundle(path: Path, signers: Sequence[Signer], out: Path, kept: Iterable[Signature] | None = None) -> None:
    """Verify a bundle, and write it with added signatures, the last of each key. `out` may be `path`.

    kept: existing signatures to keep, in place of those of the bundle.
    """
    with opened_bundle(path) as bundle:
        head = bundle.head
        before = head.envelope.signatures if kept is None else kept
        bundle.write_signed(merged(before, signatures_of("bundle", head.identity, signers)), out)


def sign(path: Path, signers: Sequence[Signer], out: Path | None = None) -> Verified:
    """Add signatures to a bundle or a trust file, in place or into another file, and verify the result."""
    if _is_trust(path):
        write_trust_file(out or path, _with_signatures(read_trust_file(path), signers))
    else:
        sign_bundle(path, signers, out or path)
    return verify(out or path)


def make_trust(table: Path, out: Path, signers: Sequence[Signer], previous: Path | None) -> Verified:
    """Write a signed trust file from a table.

    previous: the trust file that it must follow in version, revocations and counter reset; signatures of the previous
    keys can be added later. Raises SpecError, SignatureError.
    """
    signed = _with_signatures(trust_from_toml(table), signers)
    if previous:
        _require_follows(read_trust_file(previous), signed)
    write_trust_file(out, signed)
    return verify(out)


def verify(path: Path, trust: Path | None = None, keys: Mapping[str, bytes] | None = None) -> Verified:
    """Verify a whole bundle or trust file, and its signatures.

    trust: the trust file that decides on signatures; keys: public keys by name, all of which must have signed.
    Raises BundleError, HashError, SignatureError, SpecError.
    """
    keys, now = keys or {}, datetime.now(timezone.utc)
    held = read_trust_file(trust) if trust else None
    if held:
        require_complete(held)
    kind: Literal["bundle", "trust"]
    if _is_trust(path):
        signed = read_trust_file(path)
        if held and held.trust != signed.trust:
            require_next(held, signed, now)
        _require_keys(keys, statement("trust", signed.trust.sha256), signed.signatures, path)
        kind, identity, signatures = "trust", signed.trust.sha256, signed.signatures
        version, expires, size = signed.trust.version, signed.trust.expires, path.stat().st_size
        names = {**_names(held), **_names(signed)}
    else:
        with opened_bundle(path, _signature_check(held, keys, now)) as bundle:
            verify_bundle(bundle)
            head, size = bundle.head, bundle.size
        kind, identity, signatures = "bundle", head.identity, head.envelope.signatures
        version, expires = head.manifest.counter, None
        names = {**_names(held), **{key_id(public): name for name, public in keys.items()}}
    return Verified(
        file=path,
        kind=kind,
        identity=identity,
        version=version,
        expires=expires,
        bytes=size,
        signatures=tuple(NamedSignature(each.key, names.get(each.key)) for each in signatures),
        trusted=True if held or keys else None,
        trust_version=held.trust.version if held else None,
    )


def _signature_check(held: SignedTrust | None, keys: Mapping[str, bytes], now: datetime) -> Judge:
    def check(envelope: SignatureEnvelope) -> None:
        _require_keys(keys, statement("bundle", envelope.sha256), envelope.signatures, "signatures")
        if held:
            require_signed(held.trust, envelope.sha256, envelope.signatures, now)

    return check


def _require_keys(keys: Mapping[str, bytes], message: bytes, signatures: Sequence[Signature], what: object) -> None:
    """Raise SignatureError unless all these keys have signed a message."""
    by_key = {signature.key: signature for signature in signatures}
    for name, public in keys.items():
        signature = by_key.get(key_id(public))
        if signature is None:
            raise SignatureError(f"{what}: not signed by {name}", expected=f"a signature of key {key_id(public)}")
        if not holds(signature, public, message):
            raise SignatureError(f"{what}: the signature of {name} is wrong", fix="get the file again")


def _with_signatures(signed: SignedTrust, signers: Sequence[Signer]) -> SignedTrust:
    return signed.with_signatures(signatures_of("trust", signed.trust.sha256, signers))


def _require_follows(previous: SignedTrust, new: SignedTrust) -> None:
    old, trust = previous.trust, new.trust
    if trust.version <= old.version:
        raise SpecError("version: not newer", expected=f"a version above {old.version}", found=str(trust.version))
    missing = trust.forgets(old)
    if missing:
        raise SpecError("revoked: an earlier revocation is missing", expected=min(missing), fix="list it again")
    if not trust.continues_reset(old):
        raise SpecError(
            "counter_reset: an earlier one is changed",
            expected=f"that of version {old.version}, or one of version {trust.version}",
            found=repr(trust.counter_reset),
        )


def _names(signed: SignedTrust | None) -> dict[str, str]:
    return {key.id: key.name for key in signed.trust.keys} if signed else {}


def _is_trust(path: Path) -> bool:
    """Return whether a file is a trust file, which begins with a brace, rather than a bundle. Raises BundleError."""
    with opened(path) as stream:
        return stream.read(1) == b"{"
