"""Pack the validation kit: a bundle, the agent, predictions and `run.sh` in one archive (`make kit`).

The same bundle and sources give the same bytes: members are sorted, without times, owners or machine names.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import __version__
from edgekd.commands.predict import predict_latency
from edgekd.core.atomic_files import write_file
from edgekd.core.bundle.archive import read_head, verify
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import SpecError
from edgekd.deploy.agent_zipapp import NAME, agent_archive
from edgekd.hardware.target import Target, load_target, target_names

FOLDER = "edgekd-validation-kit"
HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
PROGRAMS = ("run.sh",)
"""Members with execute permission."""


def main() -> None:
    """Write the archive, and print its SHA-256 as sha256sum does."""
    parser = argparse.ArgumentParser(description="Pack the validation kit.")
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/detector-xavier.edgekd"))
    parser.add_argument("--out", type=Path, default=Path("build/edgekd-validation-kit.tar.gz"))
    given = parser.parse_args()
    content = archive(members(given.bundle))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(given.out, content)
    print(f"{hashlib.sha256(content).hexdigest()}  {given.out}")


def members(bundle: Path) -> dict[str, bytes]:
    """Return the files of the kit by name. Raises BundleError, HashError."""
    verify(bundle)
    checked = {
        bundle.name: bundle.read_bytes(),
        NAME: agent_archive(),
        "kit.json": canonical_json(facts(bundle)) + b"\n",
    }
    sums = "".join(f"{hashlib.sha256(checked[name]).hexdigest()}  {name}\n" for name in sorted(checked))
    texts = {name: (HERE / name).read_bytes() for name in ("run.sh", "README.md")}
    return {**checked, **texts, SUMS: sums.encode("ascii"), "LICENSE": (HERE.parent / "LICENSE").read_bytes()}


def facts(bundle: Path) -> dict[str, Any]:
    """Return the content of kit.json, with a prediction for each Jetson with figures. Raises BundleError."""
    targets = [target for target in map(load_target, target_names()) if target.kind == "jetson"]
    predictions = [found for target in targets if (found := prediction(bundle, target)) is not None]
    return {"format": 1, "agent": __version__, "identity": read_head(bundle).identity, "predictions": predictions}


def prediction(bundle: Path, target: Target) -> dict[str, Any] | None:
    """Predict the latency on a target in its default power mode; None if there are no figures for it."""
    try:
        found = predict_latency(bundle, target=target).document
    except SpecError:
        return None
    names = ("target", "precision", "latency_ms", "low_ms", "high_ms", "doubts")
    return {
        **{name: found[name] for name in names},
        "compatible": target.compatible,
        "power_mode": power_mode(target),
    }


def power_mode(target: Target) -> dict[str, Any] | None:
    """Return name and id of the power mode of a target's figures; None if the target has none."""
    modes = target.power.modes if target.power else ()
    mode = next((mode for mode in modes if target.power and mode.name == target.power.default_mode), None)
    return {"name": mode.name, "id": mode.nvpmodel.value if mode.nvpmodel else None} if mode else None


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return a .tar.gz of files in one folder; the same files give the same bytes."""
    tarred, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode = len(content), 0o755 if name in PROGRAMS else 0o644
            tar.addfile(entry, io.BytesIO(content))
    with gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as stream:
        stream.write(tarred.getvalue())
    return packed.getvalue()


if __name__ == "__main__":
    main()
