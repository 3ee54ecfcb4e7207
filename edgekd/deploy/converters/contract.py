"""Files beside a converted network: edgekd's contract, and those that users of a format expect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.core.canonical import short_int
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.errors import SpecError
from edgekd.core.input_files import read_input, shown_path
from edgekd.core.version import __version__

NAME = "edgekd.json"
"""The file by which a folder is known as a conversion of edgekd's."""
MAX_BYTES = 1 << 22
"""Bytes of that file: 10,000 class names, four times over."""
METADATA = "metadata.yaml"
"""The file that Ultralytics' `YOLO(FOLDER)` reads classes, stride and size from."""


@dataclass(frozen=True)
class Contract:
    """How a converted network is opened and fed. entry: its file's name; engine: what runs it, None: nothing here."""

    format: str
    entry: str
    engine: str | None
    spec: DetectorSpec


def write_contract(folder: Path, contract: Contract, about: Mapping[str, Any]) -> None:
    """Write both files; `about` says more of the conversion."""
    document = {
        "edgekd": __version__,
        "format": contract.format,
        "entry": contract.entry,
        "engine": contract.engine,
        "detector": asdict(contract.spec),
        **about,
    }
    (folder / NAME).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    if contract.spec.head.kind != "yolox":  # which Ultralytics does not decode
        (folder / METADATA).write_text(_metadata(contract.spec), "utf-8")


def read_contract(folder: Path) -> Contract:
    """The contract in a folder that a conversion wrote. Raises SpecError."""
    path = folder / NAME
    try:
        found = json.loads(read_input(path, MAX_BYTES, SpecError), parse_int=short_int)
        spec = checked_spec(spec_from_json(found["detector"]), f"{path}: detector")
        contract = Contract(str(found["format"]), Path(found["entry"]).name, found["engine"], spec)
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
    return contract


def _metadata(spec: DetectorSpec) -> str:
    """The contract as Ultralytics writes it beside its own exports."""
    import yaml

    size = [spec.preprocess.height, spec.preprocess.width]
    return str(
        yaml.safe_dump(
            {
                "description": f"converted by edgekd {__version__}",
                "task": "detect",
                "batch": 1,
                "channels": 3,
                "end2end": spec.head.kind == "end2end",
                "imgsz": size,
                "names": dict(enumerate(spec.classes)),
                "stride": max(spec.head.strides),
            },
            sort_keys=False,
            allow_unicode=True,
        )
    )
