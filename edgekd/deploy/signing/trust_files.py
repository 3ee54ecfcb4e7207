"""Trust files on the host: made from a table that people edit and keep, read, and written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file
from edgekd.core.bundle.signatures import key_id
from edgekd.core.bundle.trust import TIME, Key, Role, SignedTrust, Trust, from_json, to_json
from edgekd.core.errors import SpecError, naming
from edgekd.core.toml import parse_table, read_toml
from edgekd.deploy.signing.key_files import read_public


@dataclass(frozen=True)
class KeySpec:
    """A public key's file, relative to the table, and when it stops counting."""

    file: str
    expires: str | None = None


@dataclass(frozen=True)
class RoleSpec:
    """By name, which keys count, and how many of them it takes."""

    keys: tuple[str, ...]
    threshold: int = 1


@dataclass(frozen=True)
class RevokedSpec:
    """Ids of keys, and identities of bundles, that must never count again."""

    keys: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrustSpec:
    """A trust file as people write it: TOML. Times are UTC, as `2027-01-31` or `2027-01-31T12:00:00Z`."""

    version: int
    issued: str
    keys: dict[str, KeySpec]
    bundle: RoleSpec
    trust: RoleSpec
    expires: str | None = None
    revoked: RevokedSpec = RevokedSpec()


def trust_from_toml(path: Path) -> SignedTrust:
    """The trust file that a table describes, without signatures. Raises SpecError, SignatureError."""
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
            revoked_bundles=tuple(sorted(spec.revoked.bundles)),
        )
    )
    to_json(signed)  # every rule of the format, before anybody signs
    return signed


def read_trust_file(path: Path) -> SignedTrust:
    """The trust file at a path; whether its signatures suffice is not looked at. Raises SignatureError, SpecError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot read", found=error.strerror, fix="check the path") from error
    with naming(path):
        return from_json(content)


def write_trust_file(path: Path, signed: SignedTrust) -> None:
    """Replace the trust file at a path. Raises SpecError where the place cannot be written."""
    write_file(path, to_json(signed))


def _role(spec: RoleSpec, ids: dict[str, str], where: str) -> Role:
    unknown = [name for name in spec.keys if name not in ids]
    if unknown:
        raise SpecError(f"{where}.keys", expected=f"names of {', '.join(ids)}", found=unknown[0])
    return Role(tuple(sorted(ids[name] for name in spec.keys)), spec.threshold)


def _with_text(table: Any) -> Any:
    """A TOML document with its dates and times as text: TOML's own and quoted ones mean the same."""
    if isinstance(table, dict):
        return {name: _with_text(value) for name, value in table.items()}
    if hasattr(table, "isoformat"):
        return table.isoformat()
    return table


def _time(told: str | None, where: str) -> str | None:
    if told is None:
        return None
    try:
        found = datetime.fromisoformat(told.replace("Z", "+00:00"))
    except ValueError as error:
        raise SpecError(where, expected="a time such as 2027-01-31 or 2027-01-31T12:00:00Z", found=told) from error
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc).strftime(TIME)
