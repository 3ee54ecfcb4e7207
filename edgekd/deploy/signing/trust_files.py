"""Trust files on the host: built from a TOML table, read, and written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file
from edgekd.core.bundle.archive import read_head
from edgekd.core.bundle.signatures import key_id
from edgekd.core.bundle.trust import MAX_BYTES, TIME, CounterReset, Key, Role, SignedTrust, Trust, from_json, to_json
from edgekd.core.canonical import is_sha256
from edgekd.core.errors import SpecError, naming
from edgekd.core.input_files import read_input
from edgekd.core.toml import parse_table, read_toml
from edgekd.deploy.signing.key_files import read_public


@dataclass(frozen=True)
class KeySpec:
    """File of a public key, relative to the table, and its expiry."""

    file: str
    expires: str | None = None


@dataclass(frozen=True)
class RoleSpec:
    """Names of the keys of a role, and how many of them must sign."""

    keys: tuple[str, ...]
    threshold: int = 1


@dataclass(frozen=True)
class RevokedSpec:
    """Ids of revoked keys, and identities of revoked bundles, or paths of these bundles relative to the table."""

    keys: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrustSpec:
    """Content of the TOML table. Times are UTC, as `2027-01-31` or `2027-01-31T12:00:00Z`."""

    version: int
    issued: str
    keys: dict[str, KeySpec]
    bundle: RoleSpec
    trust: RoleSpec
    expires: str | None = None
    revoked: RevokedSpec = RevokedSpec()
    counter_reset: CounterReset | None = None


def trust_from_toml(path: Path) -> SignedTrust:
    """Build an unsigned trust file from a table. Raises SpecError, SignatureError, BundleError, HashError."""
    spec = parse_table(TrustSpec, _with_text(read_toml(path)), str(path))
    public = {name: read_public(path.parent / key.file) for name, key in spec.keys.items()}
    ids = {name: key_id(value) for name, value in public.items()}
    keys = [
        Key(public[name].hex(), name, _time(key.expires, f"{path}: keys.{name}.expires"))
        for name, key in spec.keys.items()
    ]
    issued = _time(spec.issued, f"{path}: issued")
    signed = SignedTrust(
        Trust(
            version=spec.version,
            issued=issued or "",
            expires=_time(spec.expires, f"{path}: expires"),
            keys=tuple(sorted(keys, key=lambda key: key.id)),
            bundle=_role(spec.bundle, ids, f"{path}: bundle"),
            trust=_role(spec.trust, ids, f"{path}: trust"),
            revoked_keys=tuple(sorted(spec.revoked.keys)),
            revoked_bundles=tuple(sorted({_identity(bundle, path) for bundle in spec.revoked.bundles})),
            counter_reset=spec.counter_reset,
        )
    )
    to_json(signed)  # checks all rules of the format before it is signed
    return signed


def read_trust_file(path: Path) -> SignedTrust:
    """Read a trust file without checking its signatures. Raises SignatureError, SpecError."""
    content = read_input(path, MAX_BYTES, SpecError)
    with naming(path):
        return from_json(content)


def write_trust_file(path: Path, signed: SignedTrust) -> None:
    """Write or replace a trust file. Raises SpecError if it cannot be written."""
    write_file(path, to_json(signed))


def _identity(bundle: str, table: Path) -> str:
    """Return the identity of a bundle, given as such or as a path. Raises SpecError, BundleError, HashError."""
    if is_sha256(bundle):
        return bundle
    path = table.parent / bundle
    if not path.is_file():
        expected = "identities, which `edgekd verify` prints, or paths of bundles, relative to the table"
        raise SpecError(f"{table}: revoked.bundles", expected=expected, found=bundle)
    return read_head(path).identity


def _role(spec: RoleSpec, ids: dict[str, str], where: str) -> Role:
    unknown = [name for name in spec.keys if name not in ids]
    if unknown:
        raise SpecError(f"{where}.keys", expected=f"names of {', '.join(ids)}", found=unknown[0])
    return Role(tuple(sorted(ids[name] for name in spec.keys)), spec.threshold)


def _with_text(table: Any) -> Any:
    """Return a TOML document with dates and times as text, so that both TOML's own and quoted ones are allowed."""
    if isinstance(table, dict):
        return {name: _with_text(value) for name, value in table.items()}
    if hasattr(table, "isoformat"):
        return table.isoformat()
    return table


def _time(text: str | None, where: str) -> str | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise SpecError(where, expected="a time such as 2027-01-31 or 2027-01-31T12:00:00Z", found=text) from error
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).astimezone(timezone.utc).strftime(TIME)
