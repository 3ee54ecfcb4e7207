"""The context in which the stages of a build run.

A stage's inputs are hashed into its key: names and values of everything that changes its output. Its `StageKind` holds
the version of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekd.builds.stage_store import AnyStage, FileHashes, Stage, StageKind, StageResult, Store, number_of
from edgekd.core.canonical import json_sha256
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import DataError
from edgekd.core.progress import Progress, tell_stage
from edgekd.data.images import fingerprint
from edgekd.data.types import Split
from edgekd.graph.runtimes.types import library_version

R = TypeVar("R", bound=StageResult)

GRAPH = "graph.onnx"


@dataclass(frozen=True)
class GraphResult(StageResult):
    """A graph, in the file GRAPH.

    Args:
        detector: Its inputs and outputs; None for a network that is no detector.
        opset: Its ONNX opset; None for a network that is no detector, whose own is kept.
        bytes: Length of the file.
    """

    detector: DetectorSpec | None
    opset: int | None
    bytes: int

    @property
    def spec(self) -> DetectorSpec:
        """Inputs and outputs of a detector."""
        assert self.detector is not None, "only detectors are scored"
        return self.detector


GraphStage = Stage[GraphResult]


class StageContext:
    """The store, hashes and progress of one build, with its stages in the order of first use."""

    def __init__(self, store: Store, hashes: FileHashes, progress: Progress) -> None:
        self.done: list[AnyStage] = []
        self.store = store
        self._hashes = hashes
        self.progress = progress

    @classmethod
    def within(cls, out: Path, fresh: bool, progress: Progress) -> StageContext:
        """Open the store in the result folder `out`. fresh: reuse no stage of earlier builds. Raises SpecError."""
        store = Store(out / "stages", fresh, progress)
        return cls(store, FileHashes(store.root / "hashes.json"), progress)

    def run(
        self,
        kind: StageKind[R],
        inputs: Mapping[str, Any],
        work: Callable[[Path], R],
        *,
        label: str = "",
        libraries: Sequence[str] = (),
        fits: Callable[[Path], bool] | None = None,
    ) -> Stage[R]:
        """Run a stage or find it in the store, and report it in one line. Raises as `Store.stage`.

        Its key includes the versions of the tools of its kind and of further `libraries`. fits: see `Store.stage`.
        """
        tools = tool_versions(*kind.tools, *libraries)
        stage = self.store.stage(kind, {**inputs, "tools": tools}, work, label=label, tools=tools, fits=fits)
        if stage.key not in {other.key for other in self.done}:
            self.done.append(stage)
            tell_stage(self.progress, stage.name, stage.results, stage.seconds)
        map50_95 = number_of(stage, "map50_95")
        score = "" if map50_95 is None else f", mAP50-95 {map50_95:.4f}"
        self.note(f"{stage.name}: {'found in the store' if stage.cached else f'{stage.seconds:.1f} s'}{score}")
        return stage

    def note(self, text: str) -> None:
        """Report a line of text."""
        self.progress.note(text)

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file, which is read again only if it changed. Raises DataError."""
        return self._hashes.sha256(file)

    def identity_of(self, model: str) -> str:
        """Return the SHA-256 of the file of that name, or the name itself if there is no such file."""
        return self.sha256(Path(model)) if Path(model).is_file() else model

    def fingerprint(self, split: Split) -> str:
        """Return the SHA-256 of a split's images and labels, independent of their paths."""
        found = fingerprint(split, self._hashes.sha256, self.progress)
        self._hashes.save()
        return found

    def refuse_shared(self, trained: Split, scored: Split) -> None:
        """Raise DataError if an image of the split `trained`, or a copy of it, is in the split `scored`."""
        scored_by_hash = {self.sha256(sample.image): sample.image for sample in scored.samples}
        for sample in trained.samples:
            if (same := scored_by_hash.get(self.sha256(sample.image))) is not None:
                raise DataError(
                    f"{sample.image} is trained on and, as {same}, scored in split {scored.name!r}",
                    expected="training and scoring to share no image",
                    fix="take the image out of one of the splits",
                )


def tool_versions(*names: str) -> dict[str, str]:
    """Return the versions of those of these libraries that are installed."""
    return {name: version for name in sorted(names) if (version := library_version(name))}


def shared_file(
    context: StageContext, kind: StageKind[Any], libraries: Sequence[str], inputs: Mapping[str, Any], name: str
) -> Path:
    """Return the path of a file that survives a killed stage and that stages may share; a fresh build removes it.

    Args:
        inputs: Everything that its content depends on, besides kind and libraries.
        name: Name of the file, with `*` for the hash of all these.
    """
    key = json_sha256([kind.name, kind.version, tool_versions(*kind.tools, *libraries), inputs])
    # Not in the folder of a stage, which is removed if the stage is killed.
    file = context.store.root / name.replace("*", key[:16])
    if context.store.fresh:
        file.unlink(missing_ok=True)
    return file


def tools_of(stages: Iterable[AnyStage]) -> dict[str, str]:
    """Return the versions of the libraries that these stages used."""
    versions = {name: version for stage in stages for name, version in stage.tools.items()}
    return dict(sorted(versions.items()))
