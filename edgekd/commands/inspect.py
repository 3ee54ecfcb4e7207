"""`edgekd inspect`: a bundle, verified, and its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.commands.options import Bundle
from edgekd.commands.results import UntypedResult
from edgekd.core.bundle.archive import read_head, verify
from edgekd.core.bundle.manifest import Manifest, to_json


@dataclass(frozen=True)
class Inspected(UntypedResult):
    """A whole bundle. document: its manifest; signatures: how many there are."""

    bundle: Path
    manifest: Manifest
    signatures: int


def inspect(bundle: Bundle) -> Inspected:
    """Verify a bundle and read its manifest. Raises BundleError, HashError. The command: `edgekd inspect`."""
    bundle = Path(bundle)
    manifest = verify(bundle)
    return Inspected(to_json(manifest), bundle, manifest, len(read_head(bundle).envelope.signatures))
