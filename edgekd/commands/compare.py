"""`edgekd compare`: what two builds gave and took, side by side, from their ledgers and the bundles beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.budget import Line, verdict
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.errors import SpecError

LEDGER = "ledger.json"
_HOST = ("cpu", "cores", "threads", "engine", "libraries")
"""What of a machine times follow from; its clock at the moment differs each time."""
_NEEDED = ("bundle", "budget", "host", "stages")


@dataclass(frozen=True)
class Finished:
    """A build that is done. ledger: as it lies in the folder; manifest: of the bundle there."""

    folder: Path
    ledger: Mapping[str, Any]
    manifest: Manifest


def run(first: Path, second: Path) -> Mapping[str, Any]:
    """The documented result of `edgekd compare --json`. Raises SpecError or BundleError where a build is not whole."""
    a, b = opened(first), opened(second)
    lineages = (a.manifest.lineage, b.manifest.lineage)
    return {
        "a": side(a),
        "b": side(b),
        "same_model": lineages[0].model_sha256 == lineages[1].model_sha256,
        "same_data": lineages[0].data_sha256 == lineages[1].data_sha256,
        "same_host": all(a.ledger["host"].get(name) == b.ledger["host"].get(name) for name in _HOST),
        "classes": _classes(a.manifest, b.manifest),
        "stages": _stages(a.ledger["stages"], b.ledger["stages"]),
    }


def opened(folder: Path) -> Finished:
    """The build in a result folder. Raises SpecError where none was finished there, BundleError for a damaged one."""
    try:
        ledger = json.loads((folder / LEDGER).read_bytes())
        name, *_ = (ledger[key] for key in _NEEDED)
        bundle = folder / name
    except FileNotFoundError as error:
        fix = "pass the folders that `edgekd build --out` wrote"
        raise SpecError(f"{folder}: no finished build", expected=f"a {LEDGER} in it", fix=fix) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(f"{folder / LEDGER}: cannot be read", found=str(error) or type(error).__name__) from error
    return Finished(folder, ledger, read_manifest(bundle))


def side(found: Finished) -> dict[str, Any]:
    """One build as the comparison tells it. A ledger by an older edgekd has no `timing`: then those are None."""
    ledger, evidence = found.ledger, found.manifest.evidence
    timed, predicted = (ledger.get("timing") or {}).get("after") or {}, ledger.get("predicted") or {}
    return {
        "run": str(found.folder),
        "model": ledger["model"],
        "target": ledger["target"],
        "recipe": found.manifest.lineage.recipe,
        "map50_95": evidence.after.map50_95,
        "map50": evidence.after.map50,
        "kept": evidence.retention,
        "graph_bytes": evidence.after.bytes,
        "bundle_bytes": (found.folder / ledger["bundle"]).stat().st_size,
        "p50_ms": timed.get("p50_ms"),
        "fps": timed.get("fps"),
        "basis": timed.get("basis"),
        "predicted_ms": predicted.get("ms"),
        "seconds": round(sum(stage["seconds"] for stage in ledger["stages"]), 3),
        "met": verdict([Line(**line) for line in ledger["budget"]]),
    }


def _classes(a: Manifest, b: Manifest) -> list[dict[str, Any]]:
    """mAP50-95 of every class that either knows, the largest loss from a to b first."""
    scores = [dict(zip(each.detector["classes"], each.evidence.after.classes, strict=True)) for each in (a, b)]
    rows = [{"name": name, "a": scores[0].get(name), "b": scores[1].get(name)} for name in {**scores[0], **scores[1]}]
    return sorted(rows, key=lambda row: (None in row.values(), _gain(row), row["name"]))


def _gain(row: Mapping[str, Any]) -> float:
    return 0.0 if row["a"] is None or row["b"] is None else float(row["b"] - row["a"])


def _stages(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each stage took and gave in both; the second `quantize` of one is compared with the second of the other.

    `same`: what went in was the same.
    """
    rows = (_numbered(a), _numbered(b))
    ordered = list({**rows[0], **rows[1]})
    return [_stage(name, rows[0].get((name, turn)), rows[1].get((name, turn))) for name, turn in ordered]


def _numbered(stages: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The stages by name, and how many of that name were before."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for stage in stages:
        turn = sum(name == stage["name"] for name, _ in found)
        found[stage["name"], turn] = stage
    return found


def _stage(name: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> dict[str, Any]:
    told = {
        f"{which}_{key}": None if each is None else each[key]
        for key in ("seconds", "bytes", "map50_95")
        for which, each in (("a", a), ("b", b))
    }
    return {"name": name, **told, "same": a is not None and b is not None and a["key"] == b["key"]}
