"""Files beside a converted network: edgekd's contract, and Ultralytics' metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.core.canonical import short_int
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.core.input_files import read_input, shown_path
from edgekd.core.version import __version__

NAME = "edgekd.json"
"""The file that marks a folder as a conversion by edgekd."""
MAX_BYTES = 1 << 22
"""Maximum bytes of that file: four times as many as 10,000 class names need."""
METADATA = "metadata.yaml"
"""The file from which Ultralytics' `YOLO(FOLDER)` reads classes, stride and size."""


@dataclass(frozen=True)
class Contract:
    """Contract of a converted network. entry: name of its file; runtime: name of the host's runtime for it, or None."""

    format: str
    entry: str
    runtime: str | None
    spec: DetectorSpec


def write_contract(folder: Path, contract: Contract, details: Mapping[str, Any]) -> None:
    """Write both files. details: further keys on the conversion."""
    document = {
        "edgekd": __version__,
        "format": contract.format,
        "entry": contract.entry,
        "engine": contract.runtime,
        "detector": to_plain(contract.spec),
        **details,
    }
    (folder / NAME).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    if contract.spec.head.kind != "yolox" and not contract.spec.head.masks:  # Ultralytics does not decode them
        (folder / METADATA).write_text(_metadata(contract.spec), "utf-8")


def read_contract(folder: Path) -> Contract:
    """Read the contract in the folder of a conversion. Raises SpecError."""
    path = folder / NAME
    try:
        document = json.loads(read_input(path, MAX_BYTES, SpecError), parse_int=short_int)
        spec = checked_spec(spec_from_json(document["detector"]), f"{path}: detector")
        engine = document["engine"]
        if not isinstance(engine, (str, type(None))):
            raise TypeError(f"an engine of type {type(engine).__name__}")
        return Contract(str(document["format"]), Path(document["entry"]).name, engine, spec)
    except SpecError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise SpecError(
            f"{shown_path(folder)}: is not a converted detector",
            expected=f"a folder that `edgekd convert` wrote, with {NAME}",
            found=error.__cause__.strerror,
            fix="check the path",
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(f"{path}: is damaged", found=repr(error)[:200], fix="convert the detector again") from error


def _metadata(spec: DetectorSpec) -> str:
    """Return the metadata that Ultralytics writes beside its own exports."""
    import yaml

    size, keypoints = [spec.preprocess.height, spec.preprocess.width], spec.head.keypoints
    return str(
        yaml.safe_dump(
            {
                "description": f"converted by edgekd {__version__}",
                "task": spec.head.task,
                "batch": 1,
                "channels": 3,
                "end2end": spec.head.kind == "end2end",
                "imgsz": size,
                "names": dict(enumerate(spec.classes)),
                "stride": max(spec.head.strides),
                **({"kpt_shape": [len(keypoints.sigmas), keypoints.dimensions]} if keypoints else {}),
            },
            sort_keys=False,
            allow_unicode=True,
        )
    )
