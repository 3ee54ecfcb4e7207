"""Results, as frozen dataclasses: what most programs want by name, and all of it in `document`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.evaluation.coco import Score
    from edgekd.hardware.compatibility import Finding


@dataclass(frozen=True)
class Result:
    """document: what the command of that name prints with `--json`; docs/json.md explains every key."""

    document: Mapping[str, Any]

    def _both(self, key: str) -> tuple[Any, Any]:
        return self.document["before"][key], self.document["after"][key]


@dataclass(frozen=True)
class Made(Result):
    """A detector that was made of another one. Pairs are of what there was (the teacher), and of what was made."""

    @property
    def checkpoint(self) -> Path:
        """The file that was written: `.pt`, or `.tv.pt` for torchvision's."""
        return Path(self.document["checkpoint"])

    @property
    def map50_95(self) -> tuple[float | None, float | None]:
        """COCO's mAP at IoU 0.50 to 0.95 of the float detectors, 0 to 1; None where there is no split to score."""
        return self._both("map50_95")

    @property
    def parameters(self) -> tuple[int, int]:
        """How many numbers the detectors consist of."""
        return self._both("parameters")


@dataclass(frozen=True)
class Distilled(Made):
    """What `distill` returns: the student."""

    @property
    def kept(self) -> float | None:
        """The student's mAP50-95 by the teacher's; None where one of them is not known or 0."""
        kept: float | None = self.document["kept"]
        return kept


@dataclass(frozen=True)
class Lightened(Made):
    """What `prune` and `factorize` return: the lighter detector, which wants to be trained."""

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of one frame."""
        return self._both("multiply_adds")

    @property
    def latency_ms(self) -> tuple[float, float]:
        """Milliseconds from a frame to its detections, median, both measured here in turns."""
        return self._both("latency_ms")


@dataclass(frozen=True)
class Converted(Result):
    """What `convert` returns."""

    @property
    def path(self) -> Path:
        """The file or folder that was written."""
        return Path(self.document["out"])

    @property
    def entry(self) -> Path:
        """What a runtime opens of it."""
        return Path(self.document["entry"])

    @property
    def map50_95(self) -> tuple[float, float] | None:
        """Of the source and of what was made of it, 0 to 1; None where no data was given, or nothing here runs it."""
        scores = self.document["scores"]
        return scores and (scores["source"]["map50_95"], scores["converted"]["map50_95"])


@dataclass(frozen=True)
class Variant(Result):
    """What `adapt` returns."""

    @property
    def bundle(self) -> Path:
        """The variant, for cameras that have no bundle of this model yet."""
        return Path(self.document["bundle"])

    @property
    def delta(self) -> Path:
        """What cameras with the bundle that was adapted need of it."""
        return Path(self.document["delta"])

    @property
    def error(self) -> tuple[float, float]:
        """How far scores under the new conditions are from those as the model knows pictures: noise by signal.

        Of the bundle that was adapted, and of the variant.
        """
        return self.document["error"]["before"], self.document["error"]["after"]


@dataclass(frozen=True)
class Scored(Result):
    """What `score_model` returns. skipped: files that could not be read, and why."""

    score: Score
    skipped: tuple[tuple[Path, str], ...]

    @property
    def map50_95(self) -> float:
        """COCO's mean average precision at IoU 0.50 to 0.95, 0 to 1."""
        return self.score.map50_95

    @property
    def map50(self) -> float:
        """COCO's mean average precision at IoU 0.50, 0 to 1."""
        return self.score.map50


@dataclass(frozen=True)
class Checked(Result):
    """What `check_model` returns. findings: worst first."""

    findings: tuple[Finding, ...]

    @property
    def possible(self) -> bool:
        """Whether nothing is known that stands in the way of an engine."""
        return not any(finding.level == "impossible" for finding in self.findings)


@dataclass(frozen=True)
class Compared(Result):
    """What `compare` returns: `a` and `b`, and whether models, data and machines were the same."""

    @property
    def a(self) -> Mapping[str, Any]:
        """The first build."""
        side: Mapping[str, Any] = self.document["a"]
        return side

    @property
    def b(self) -> Mapping[str, Any]:
        """The second build."""
        side: Mapping[str, Any] = self.document["b"]
        return side


@dataclass(frozen=True)
class Analysed(Result):
    """What `analyse` returns. Counts are None where the scored data was not at hand; `missing` says what else is."""

    @property
    def report(self) -> Path:
        """The page."""
        return Path(self.document["report"])

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be said, and why."""
        return tuple(self.document["missing"])

    @property
    def lost(self) -> int | None:
        """Objects that were found before, and are not found by what ships."""
        return self._counted("lost")

    @property
    def gained(self) -> int | None:
        """Objects that only what ships finds."""
        return self._counted("gained")

    def _counted(self, name: str) -> int | None:
        found = self.document["detections"]
        return None if found is None else int(found["total"][name])


@dataclass(frozen=True)
class Verified(Result):
    """What `verify` returns, of a bundle or trust file that is whole."""

    @property
    def identity(self) -> str:
        """The SHA-256 that signatures are of, 64 hexadecimal digits."""
        return str(self.document["identity"])

    @property
    def trusted(self) -> bool | None:
        """True where the trust file or keys that were passed say so; None where none was passed. Never False."""
        trusted: bool | None = self.document["trusted"]
        return trusted
