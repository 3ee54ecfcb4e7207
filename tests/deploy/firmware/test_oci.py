"""The OCI layout: whole, the same each time, and as the specification says."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from firmware import COMPATIBLE
from running import EdgeKD

from edgekd.core.bundle.archive import read_head


def test_every_blob_is_where_its_hash_says(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.oci.tar"
    assert edgekd("pack", bundle, "--out", out).code == 0
    with tarfile.open(out) as archive:
        names = archive.getnames()
        content = {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(content["index.json"])["manifests"]
    manifest = json.loads(content[blob(entry["digest"])])
    assert manifest["annotations"]["edgekd.identity"] == read_head(bundle).identity
    assert manifest["annotations"]["edgekd.compatible"] == COMPATIBLE
    (layer,) = manifest["layers"]
    assert content[blob(layer["digest"])] == bundle.read_bytes()
    for told in (entry, manifest["config"], layer):
        found = content[blob(told["digest"])]
        assert (f"sha256:{hashlib.sha256(found).hexdigest()}", len(found)) == (told["digest"], told["size"])
    assert len(names) == 5


def blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def test_the_same_bytes_each_time(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{at}.oci.tar" for at in range(2)]
    for out in outs:
        assert edgekd("pack", bundle, "--out", out, "--format", "oci").code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
