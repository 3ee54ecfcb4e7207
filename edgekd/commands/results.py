"""Results that several commands share: frozen dataclasses, with all that is known in `document`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.stage_store import readable_json
from edgekd.core.atomic_files import copy_file, write_file


@dataclass(frozen=True)
class UntypedResult:
    """document: the JSON that the command of that name prints with `--json`; docs/json.md explains every key."""

    document: Any

    @property
    def exit_code(self) -> int:
        """The exit code of the command line: 1 where the answer is no."""
        return 0

    def _both(self, key: str) -> tuple[Any, Any]:
        return self.document["before"][key], self.document["after"][key]


@dataclass(frozen=True)
class DerivedDetector(UntypedResult):
    """A detector derived from another one. Pairs are of the original (or the teacher), and of the derived one."""

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
        """Numbers of parameters."""
        return self._both("parameters")


@dataclass(frozen=True)
class Distilled(DerivedDetector):
    """The result of `distill`: the student."""

    @property
    def kept(self) -> float | None:
        """The student's mAP50-95 by the teacher's; None where one of them is not known or 0."""
        kept: float | None = self.document["kept"]
        return kept


@dataclass(frozen=True)
class Lightened(DerivedDetector):
    """The result of `prune` and `factorize`: the lighter detector, which should be trained next."""

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Multiply-adds of one frame."""
        return self._both("multiply_adds")

    @property
    def latency_ms(self) -> tuple[float, float]:
        """Median milliseconds from a frame to its detections, both measured here, interleaved."""
        return self._both("latency_ms")


@dataclass(frozen=True)
class Verified(UntypedResult):
    """The result of `verify`, `sign`, `trust` and `pack`: a bundle or trust file that is whole."""

    document: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The SHA-256 that signatures are of, 64 hexadecimal digits."""
        return str(self.document["identity"])

    @property
    def trusted(self) -> bool | None:
        """True where the trust file or keys that were passed say so; None where none was passed. Never False."""
        trusted: bool | None = self.document["trusted"]
        return trusted


def write_result(folder: Path, name: str, document: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Copy files into a result folder under new names, and write its document last. Raises SpecError."""
    for file, source in files.items():
        copy_file(source, folder / file)
    write_file(folder / name, readable_json(document))
