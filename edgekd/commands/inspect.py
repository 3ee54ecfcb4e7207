"""`edgekd inspect`: verify a bundle, and read its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.commands.options import Bundle
from edgekd.core.bundle.archive import opened_bundle
from edgekd.core.bundle.manifest import Manifest, to_json
from edgekd.core.bundle.network import verify_bundle


@dataclass(frozen=True)
class Inspected:
    """A verified bundle. signatures: their number; they are not checked."""

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
    with opened_bundle(bundle) as reader:
        verify_bundle(reader)
        return Inspected(bundle, reader.manifest, len(reader.head.envelope.signatures))
