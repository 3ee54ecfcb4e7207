"""`edgekd compare`: accuracy, sizes and times of two builds, from their ledgers and the bundles beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from edgekd.commands.parameter import Argument
from edgekd.commands.results import UntypedResult
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.errors import SpecError
from edgekd.hardware.budget import Line, verdict

LEDGER = "ledger.json"
_HOST = ("cpu", "cores", "threads", "engine", "libraries")
"""Facts of a machine that times depend on, except its clock, which changes all the time."""
_NEEDED = ("bundle", "budget", "host", "stages")


@dataclass(frozen=True)
class Finished:
    """A finished build. ledger: as it is in the folder; manifest: of the bundle there."""

    folder: Path
    ledger: Mapping[str, Any]
    manifest: Manifest


@dataclass(frozen=True)
class Compared(UntypedResult):
    """The result of `compare`: `a` and `b`, and whether models, data and machines were the same."""

    @property
    def a(self) -> Mapping[str, Any]:
        """The first build."""
        build: Mapping[str, Any] = self.document["a"]
        return build

    @property
    def b(self) -> Mapping[str, Any]:
        """The second build."""
        build: Mapping[str, Any] = self.document["b"]
        return build


def compare(
    first: Annotated[str | Path, Argument("Result folder of a build.", metavar="RUN_A")],
    second: Annotated[str | Path, Argument("That of another.", metavar="RUN_B")],
) -> Compared:
    """Compare two builds by their result folders: accuracy by class, sizes, times, and the time of each stage.

    Sizes are bytes, times milliseconds and seconds, scores 0 to 1. Raises SpecError where no build was finished in a
    folder, BundleError for a damaged one. The command: `edgekd compare`.
    """
    a, b = opened(Path(first)), opened(Path(second))
    lineages = (a.manifest.lineage, b.manifest.lineage)
    return Compared(
        {
            "a": side(a),
            "b": side(b),
            "same_model": lineages[0].model_sha256 == lineages[1].model_sha256,
            "same_data": lineages[0].data_sha256 == lineages[1].data_sha256,
            "same_host": all(a.ledger["host"].get(name) == b.ledger["host"].get(name) for name in _HOST),
            "classes": _classes(a.manifest, b.manifest),
            "stages": _stages(a.ledger["stages"], b.ledger["stages"]),
        }
    )


def opened(folder: Path) -> Finished:
    """Read the build in a result folder. Raises SpecError where none was finished there, BundleError if damaged."""
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
    """Return the numbers of one build. A ledger by an older edgekd has no `timing`: then those are None."""
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
    """Return mAP50-95 of every class that either knows, the largest loss from a to b first."""
    scores = [dict(zip(each.detector["classes"], each.evidence.after.classes, strict=True)) for each in (a, b)]
    rows = [{"name": name, "a": scores[0].get(name), "b": scores[1].get(name)} for name in {**scores[0], **scores[1]}]
    return sorted(rows, key=lambda row: (None in row.values(), _gain(row), row["name"]))


def _gain(row: Mapping[str, Any]) -> float:
    return 0.0 if row["a"] is None or row["b"] is None else float(row["b"] - row["a"])


def _stages(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return time and results of each stage in both; the second `quantize` is compared with the second of the other.

    `same`: the inputs were the same.
    """
    rows = (_numbered(a), _numbered(b))
    ordered = list({**rows[0], **rows[1]})
    return [_stage(name, rows[0].get((name, turn)), rows[1].get((name, turn))) for name, turn in ordered]


def _numbered(stages: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Return the stages by name and number among those of that name."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for stage in stages:
        turn = sum(name == stage["name"] for name, _ in found)
        found[stage["name"], turn] = stage
    return found


def _stage(name: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> dict[str, Any]:
    values = {
        f"{which}_{key}": None if each is None else each[key]
        for key in ("seconds", "bytes", "map50_95")
        for which, each in (("a", a), ("b", b))
    }
    return {"name": name, **values, "same": a is not None and b is not None and a["key"] == b["key"]}
