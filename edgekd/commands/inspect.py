"""`edgekd inspect`: a bundle, verified, and its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.commands.options import Bundle
from edgekd.core.bundle.archive import read_head, verify
from edgekd.core.bundle.manifest import Manifest, to_json


@dataclass(frozen=True)
class Inspected:
    """A whole bundle. signatures: their number."""

    bundle: Path
    manifest: Manifest
    signatures: int

    @property
    def document(self) -> bytes:
        """The canonical JSON of the manifest."""
        return to_json(self.manifest)


def inspect(bundle: Bundle) -> Inspected:
    """Verify a bundle and read its manifest. Raises BundleError, HashError. The command: `edgekd inspect`."""
    bundle = Path(bundle)
    manifest = verify(bundle)
    return Inspected(bundle, manifest, len(read_head(bundle).envelope.signatures))
