"""`edgekd trust`: a trust file, which lists the keys whose bundles a camera accepts."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none, signers_of
from edgekd.commands.options import Keys, SecretFile
from edgekd.commands.parameter import Argument, Option
from edgekd.core.progress import SILENT, Progress
from edgekd.deploy.signing.signed import Verified, make_trust
from edgekd.deploy.signing.trust_files import read_trust_file


def trust(
    table: Annotated[str | Path, Argument("TOML table of keys and thresholds.")],
    *,
    out: Annotated[str | Path, Option("Trust file to write.", group="Output")] = Path("trust.json"),
    previous: Annotated[str | Path | None, Option("Trust file that it follows.")] = None,
    key: Keys = (),
    secret_file: SecretFile = None,
    progress: Progress = SILENT,
) -> Verified:
    """Make a trust file from a table, and sign it; report what in it has already expired.

    Raises SpecError, SignatureError. The command: `edgekd trust`.
    """
    made = make_trust(Path(table), Path(out), signers_of(key, secret_file), path_or_none(previous))
    trust = read_trust_file(made.file).trust
    now = trust.now(datetime.now(timezone.utc))
    if trust.has_expired(now):
        progress.note(f"trust: {made.file} expired at {trust.expires}: nothing is accepted by it")
    for each in trust.bundle_keys:
        if each.has_expired(now):
            progress.note(f"trust: key {each.name} expired at {each.expires}: its signatures of bundles do not count")
    return made
