"""OCI: the bundle as an artifact that container registries keep, an image layout in one tar file; no program is needed.

It holds no program to run: whoever pulls it gets the bundle, and hands it to the agent.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import BUNDLE, STATE, Cargo, Packaging

ARTIFACT = "application/vnd.edgekd.bundle.v1"
LAYER = "application/vnd.edgekd.bundle.v1+tar"
_EMPTY = "application/vnd.oci.empty.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


class Oci:
    """Makes `*.oci.tar`: the same bundle gives the same bytes. Registries sign what they hold by tools of their own."""

    suffix = ".oci.tar"
    programs: Mapping[str, str] = {}

    def check(self, packaging: Packaging) -> None:
        """Raises SpecError for keys and devices, of which an artifact knows nothing."""
        if packaging.key or packaging.certificate:
            raise SpecError("oci: not signed here", fix="sign it in the registry")
        if packaging.compatible:
            raise SpecError("oci: knows no kinds of devices", fix="leave --compatible away")
        if packaging.state != STATE:
            raise SpecError("oci: puts nothing on a camera", fix="leave --state away")

    def make(self, cargo: Cargo, folder: Path) -> Path:
        """Make the layout in an empty folder."""
        told = cargo.manifest
        layer = _descriptor(LAYER, file_sha256(cargo.bundle), cargo.bundle.stat().st_size)
        layer["annotations"] = {"org.opencontainers.image.title": BUNDLE}
        empty = b"{}"
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "artifactType": ARTIFACT,
                "config": _descriptor(_EMPTY, hashlib.sha256(empty).hexdigest(), len(empty)),
                "layers": [layer],
                "annotations": {
                    "org.opencontainers.image.title": told.name,
                    "org.opencontainers.image.version": cargo.version,
                    "edgekd.identity": cargo.identity,
                    "edgekd.compatible": told.target.compatible,
                },
            }
        )
        entry = _descriptor(_MANIFEST, hashlib.sha256(manifest).hexdigest(), len(manifest))
        tagged = {
            **entry,
            "artifactType": ARTIFACT,
            "annotations": {"org.opencontainers.image.ref.name": cargo.version},
        }
        index = canonical_json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [tagged]})
        out = folder / f"made{self.suffix}"
        with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as archive:
            _add(archive, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
            _add(archive, "index.json", index)
            for blob in (empty, manifest):
                _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
            member = tarfile.TarInfo(f"blobs/{layer['digest'].replace(':', '/')}")
            member.size = layer["size"]
            with cargo.bundle.open("rb") as stream:
                archive.addfile(member, stream)
        return out


def _descriptor(kind: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
