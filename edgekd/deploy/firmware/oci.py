"""OCI: the bundle as an artifact for container registries, an image layout in one tar file; needs no program.

It contains no install script: the program that pulls it must pass the bundle to the agent.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import NAMES, STATE, Packager, Packaging, Payload

ARTIFACT = "application/vnd.edgekd.bundle.v1"
LAYER = "application/vnd.edgekd.bundle.v1+tar"
_EMPTY = "application/vnd.oci.empty.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


def check(packaging: Packaging) -> None:
    """Raise SpecError for keys and devices, which an OCI artifact does not have."""
    if packaging.key or packaging.certificate or packaging.unsigned:
        raise SpecError("oci: not signed here", fix="sign it in the registry")
    if packaging.compatible:
        raise SpecError("oci: has no kinds of devices", fix="leave --compatible out")
    if packaging.state != STATE or packaging.model is not None:
        raise SpecError("oci: installs nothing on a camera", fix="leave --state and --model out")


def make(payload: Payload, folder: Path, out: Path) -> None:
    """Write the image layout, deterministically. Registries sign with their own tools."""

    layer = _descriptor(LAYER, file_sha256(payload.file), payload.file.stat().st_size)
    layer["annotations"] = {"org.opencontainers.image.title": NAMES["bundle"]}
    empty = b"{}"
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": ARTIFACT,
            "config": _descriptor(_EMPTY, hashlib.sha256(empty).hexdigest(), len(empty)),
            "layers": [layer],
            "annotations": {
                "org.opencontainers.image.title": payload.name,
                "org.opencontainers.image.version": payload.version,
                "edgekd.identity": payload.identity,
                "edgekd.compatible": payload.compatible[0],
            },
        }
    )
    entry = _descriptor(_MANIFEST, hashlib.sha256(manifest).hexdigest(), len(manifest))
    tagged = {
        **entry,
        "artifactType": ARTIFACT,
        "annotations": {"org.opencontainers.image.ref.name": payload.version},
    }
    index = canonical_json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [tagged]})
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", index)
        for blob in (empty, manifest):
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        member = tarfile.TarInfo(f"blobs/{layer['digest'].replace(':', '/')}")
        member.size = layer["size"]
        with payload.file.open("rb") as stream:
            archive.addfile(member, stream)


OCI = Packager(".oci.tar", {}, check, make)


def _descriptor(kind: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
