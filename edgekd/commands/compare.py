"""`edgekd compare`: accuracy, sizes and times of two builds, from their ledgers and the bundles beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgekd.builds.ledger import LEDGER, Ledger, LedgerStage, read_ledger
from edgekd.commands.parameter import Argument
from edgekd.core.benchmark import Basis
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.documents import Result
from edgekd.core.errors import SpecError
from edgekd.hardware.budget import verdict

_HOST = ("cpu", "cores", "threads", "engine", "libraries")
"""Facts of a machine that times depend on, except its clock, which varies."""
_CAUTIONS = {
    "same_model": "They were made of different detectors.",
    "same_data": "They were scored on different images or labels: their scores do not compare.",
    "same_host": "They were timed on machines, or with libraries, that differ: their times do not compare.",
}
"""Cautions by the field of the comparison that is false."""


@dataclass(frozen=True)
class Finished:
    """A finished build, with the manifest of its bundle."""

    folder: Path
    ledger: Ledger
    manifest: Manifest


@dataclass(frozen=True)
class ComparedBuild:
    """One of the builds.

    Args:
        run: Its result folder.
        model: File name of the detector.
        target: Name of the target.
        recipe: Name of the recipe.
        map50_95, map50: COCO's mAP of the graph that ships.
        kept: mAP50-95 after / before; null where it was 0 before.
        graph_bytes: Size of the packed graph.
        bundle_bytes: Size of the bundle.
        p50_ms: Median milliseconds from frame to detections; null in a ledger of an older edgekd.
        fps: Frames per second, one after the other; null where the run was too short or too noisy.
        basis: Basis of `p50_ms` and `fps`.
        predicted_ms: Predicted milliseconds of the engine on the target; null where it cannot be predicted.
        seconds: Total wall time of all stages, each when it ran.
        met: Verdict on its budget, as in `build`.
    """

    run: Path
    model: str
    target: str
    recipe: str
    map50_95: float
    map50: float
    kept: float | None
    graph_bytes: int
    bundle_bytes: int
    p50_ms: float | None
    fps: float | None
    basis: Basis | None
    predicted_ms: float | None
    seconds: float
    met: bool | None


@dataclass(frozen=True)
class ComparedClass:
    """A class of objects.

    Args:
        name: Name of the class.
        a, b: Its mAP50-95; null without objects of it.
    """

    name: str
    a: float | None
    b: float | None

    @property
    def gain(self) -> float | None:
        """mAP50-95 of b minus that of a; None if either is."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class ComparedStage:
    """A stage of both builds; null where one of them does not have it.

    Args:
        name: Name of the stage.
        a_seconds, b_seconds: Wall time when it ran.
        a_bytes, b_bytes: Total size of its files.
        a_map50_95, b_map50_95: mAP50-95 that it measured; null where the stage scores nothing.
        same: True if inputs and version of the stage are the same in both.
    """

    name: str
    a_seconds: float | None
    b_seconds: float | None
    a_bytes: int | None
    b_bytes: int | None
    a_map50_95: float | None
    b_map50_95: float | None
    same: bool


@dataclass(frozen=True)
class Compared(Result):
    """Two builds side by side.

    Args:
        a: The first build.
        b: The second build.
        same_model: True if both were made from the same file.
        same_data: True if both were scored on the same images and labels; else scores do not compare.
        same_host: True if both were timed on the same kind of machine with the same libraries.
        classes: Every class of either build, the largest loss from a to b first.
        stages: The stages of both.
    """

    a: ComparedBuild
    b: ComparedBuild
    same_model: bool
    same_data: bool
    same_host: bool
    classes: tuple[ComparedClass, ...]
    stages: tuple[ComparedStage, ...]

    @property
    def cautions(self) -> list[str]:
        """Sentences about numbers of the two builds that do not compare."""
        return [sentence for key, sentence in _CAUTIONS.items() if not getattr(self, key)]


def compare(
    first: Annotated[str | Path, Argument("Result folder of a build.", metavar="RUN_A")],
    second: Annotated[str | Path, Argument("Result folder of another build.", metavar="RUN_B")],
) -> Compared:
    """Compare two builds by their result folders: accuracy by class, sizes, times, and the time of each stage.

    Sizes are bytes, times milliseconds and seconds, scores 0 to 1. Raises SpecError if a folder has no finished build,
    BundleError if its bundle is damaged. The command: `edgekd compare`.
    """
    return compare_finished(opened(Path(first)), opened(Path(second)))


def compare_finished(a: Finished, b: Finished) -> Compared:
    """Compare two finished builds."""
    lineages = (a.manifest.lineage, b.manifest.lineage)
    hosts = (a.ledger.host, b.ledger.host)
    return Compared(
        a=_compared(a),
        b=_compared(b),
        same_model=lineages[0].model_sha256 == lineages[1].model_sha256,
        same_data=lineages[0].data_sha256 == lineages[1].data_sha256,
        same_host=all(getattr(hosts[0], name) == getattr(hosts[1], name) for name in _HOST),
        classes=_classes(a.manifest, b.manifest),
        stages=_stages(a.ledger.stages, b.ledger.stages),
    )


def opened(folder: Path) -> Finished:
    """Read the build in a result folder. Raises SpecError if none has finished there, BundleError if it is damaged."""
    ledger = read_ledger(folder)
    return finished(folder, ledger, read_manifest(folder / ledger.bundle))


def finished(folder: Path, ledger: Ledger, manifest: Manifest) -> Finished:
    """Return a finished build. Raises SpecError if an interrupted build has replaced the bundle, but not the ledger."""
    origin = ledger.lineage
    if origin is not None and any(value != getattr(manifest.lineage, name) for name, value in vars(origin).items()):
        raise SpecError(
            f"{folder}: {ledger.bundle} is not the bundle of its {LEDGER}",
            expected="a finished build",
            found="one that was stopped while it replaced the results of an earlier one",
            fix="run the same `edgekd build` again",
        )
    return Finished(folder, ledger, manifest)


def _compared(found: Finished) -> ComparedBuild:
    ledger, evidence = found.ledger, found.manifest.evidence
    timing = ledger.timing.after if ledger.timing else None
    return ComparedBuild(
        run=found.folder,
        model=ledger.model,
        target=ledger.target,
        recipe=found.manifest.lineage.recipe,
        map50_95=evidence.after.map50_95,
        map50=evidence.after.map50,
        kept=evidence.retention,
        graph_bytes=evidence.after.bytes,
        bundle_bytes=(found.folder / ledger.bundle).stat().st_size,
        p50_ms=timing.p50_ms if timing else None,
        fps=timing.fps if timing else None,
        basis=timing.basis if timing else None,
        predicted_ms=ledger.predicted.ms if ledger.predicted else None,
        seconds=round(sum(stage.seconds for stage in ledger.stages), 3),
        met=verdict(ledger.budget),
    )


def _classes(a: Manifest, b: Manifest) -> tuple[ComparedClass, ...]:
    """Return the mAP50-95 of every class of either build, the largest loss from a to b first."""
    scores = [dict(zip(each.detector["classes"], each.evidence.after.classes, strict=True)) for each in (a, b)]
    rows = [ComparedClass(name, scores[0].get(name), scores[1].get(name)) for name in {**scores[0], **scores[1]}]
    return tuple(sorted(rows, key=lambda row: (row.gain is None, row.gain or 0.0, row.name)))


def _stages(a: Sequence[LedgerStage], b: Sequence[LedgerStage]) -> tuple[ComparedStage, ...]:
    """Return the stages of both side by side; the second `quantize` is compared with the second of the other."""
    rows = (numbered(a), numbered(b))
    return tuple(_stage(key[0], rows[0].get(key), rows[1].get(key)) for key in {**rows[0], **rows[1]})


def numbered(stages: Sequence[LedgerStage]) -> dict[tuple[str, int], LedgerStage]:
    """Return the stages by name and index among stages of that name, from 0."""
    found: dict[tuple[str, int], LedgerStage] = {}
    for stage in stages:
        found[stage.name, sum(name == stage.name for name, _ in found)] = stage
    return found


def _stage(name: str, a: LedgerStage | None, b: LedgerStage | None) -> ComparedStage:
    return ComparedStage(
        name=name,
        a_seconds=a.seconds if a else None,
        b_seconds=b.seconds if b else None,
        a_bytes=a.bytes if a else None,
        b_bytes=b.bytes if b else None,
        a_map50_95=a.map50_95 if a else None,
        b_map50_95=b.map50_95 if b else None,
        same=a is not None and b is not None and a.key == b.key,
    )
