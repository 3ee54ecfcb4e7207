"""Result folders like those of builds and searches, with few files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from running import Built

from edgekd.builds.stage_store import readable_json
from edgekd.core.documents import to_plain
from edgekd.evaluation.search_result import FrontCandidate, Rung, SearchResult, TriedCandidate
from edgekd.hardware.budget import Budget

FILES = ("ledger.json", "progress.json", "report.html", "tiny-xavier.edgekd")
"""Files of a result folder that pages show."""


def copy_build(build: Built, folder: Path) -> Path:
    """Copy a finished build, with the records of its stages, to another folder. Return the folder."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(build.out / name, folder / name)
    for record in build.out.glob("stages/*/stage.json"):
        (folder / "stages" / record.parent.name).mkdir(parents=True)
        shutil.copy(record, folder / "stages" / record.parent.name / record.name)
    return folder


def change(file: Path, **values: Any) -> None:
    """Replace values in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **values}), "utf-8")


def search_result(**values: Any) -> SearchResult:
    """Return the result of a search with two fully trained candidates. values: fields to replace."""
    choice = {"student": None, "image_size": 640, "ratio": 0.0, "recovery": 0, "quant_aware": 0}
    cost = {"latency_ms": 1.5, "energy_mj": None, "noise": 0.1, "seconds": 20.0, "error": None}
    small = {**choice, **cost, "bits": 4.5, "rung": 1, "kept": 0.97, "bytes": 1_500_000, "text": "640 pixels, 4.5 bits"}
    large = {**small, "bits": 8.0, "kept": 0.99, "bytes": 2_900_000, "text": "640 pixels, INT8"}
    known: dict[str, Any] = {
        "identity": "0" * 64,
        "model": "tiny.onnx",
        "target": "xavier",
        "budget": Budget(max_bytes=3_000_000, min_retention=0.95),
        "basis": "predicted",
        "held_out": 6,
        "rungs": (Rung(6, trained=False), Rung(6, trained=True)),
        "reason": None,
        "seconds": 40.0,
        "candidates": 12,
        "refused": 3,
        "tried": 2,
        "thorough": 2,
        "trainings": 0,
        "trainings_saved": 1,
        "rank_correlation": None,
        "winner": TriedCandidate(**small),
        "lacking": {},
        "why": ("It keeps every limit.",),
        "parts": (),
        "next": (),
        "points": (FrontCandidate(**small, front=True), FrontCandidate(**large, front=False)),
    }
    return SearchResult(**{**known, **values})


def write_search(folder: Path, **values: Any) -> Path:
    """Write the folder of a stopped search, and return it. values: fields to replace."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.json").write_bytes(readable_json(to_plain(search_result(**values))))
    return folder
