"""The result of `edgekd convert`, as docs/reference/json.md describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekd.core.documents import INLINE, Result
from edgekd.deploy.converters.parity import Distance
from edgekd.deploy.converters.types import CacheCounts, FormatName, Precision


@dataclass(frozen=True)
class Int8Layers:
    """Layers that compute in INT8: convolutions and products with constant matrices.

    Args:
        source: Their number in the artifact; 0 after `--precision fp32`.
        carried: Their number in the result, with the same codes and scales.
    """

    source: int
    carried: int


@dataclass(frozen=True)
class Parity:
    """Errors of the result against its source, on a few frames.

    Args:
        engine: Runtime of the result; the source was run by `onnxruntime-cpu`.
        frames: Number of frames, from the data if it is given.
        allowed_boxes: Limit of `boxes`.
        allowed_scores: Limit of `scores`.
    """

    engine: str
    frames: int
    allowed_boxes: float
    allowed_scores: float
    distance: Distance = field(metadata=INLINE)


@dataclass(frozen=True)
class MapScores:
    """COCO's scores of a graph.

    Args:
        map50_95, map50: COCO's mAP.
    """

    map50_95: float
    map50: float


@dataclass(frozen=True)
class ConvertedScores:
    """Scores on labelled data.

    Args:
        split: Name of the split.
        images: Number of scored images.
        source: Scores of the source, run by ONNX Runtime.
        converted: Scores of the result, run by its engine.
        difference: mAP50-95 of the result minus that of the source.
        allowed: Largest allowed loss of mAP50-95.
    """

    split: str
    images: int
    source: MapScores
    converted: MapScores
    difference: float
    allowed: float


@dataclass(frozen=True)
class ConvertedFile:
    """A file of the result.

    Args:
        path: Path of the file.
        bytes: Its size.
        sha256: SHA-256 of its content.
    """

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Converted(Result):
    """A detector in another format, compared with its source.

    Args:
        artifact: Path of the artifact.
        format: Name of the format, as for `--to`.
        out: Path of the result, a file or a folder.
        entry: Path of the file that a runtime opens.
        precision: Precision as requested.
        opset: Opset of an ONNX file; null for other formats.
        calibration_cache: TensorRT's calibration cache in the result; null where there is none.
        libraries: Version of each package that converted; null for one that is not installed as a package.
        seconds: Wall time of the conversion alone.
        notes: Notes on this result, for users.
        parity: Null where nothing on this machine runs the result.
        scores: Null without `--data`, or where nothing on this machine runs the result.
        files: Every file of the result.
        bytes: Size of all files together.
    """

    artifact: Path
    format: FormatName
    out: Path
    entry: Path
    precision: Precision
    opset: int | None
    int8: Int8Layers
    calibration_cache: CacheCounts | None
    libraries: Mapping[str, str | None]
    seconds: float
    notes: tuple[str, ...]
    parity: Parity | None
    scores: ConvertedScores | None
    files: tuple[ConvertedFile, ...] = ()
    bytes: int = 0

    @property
    def path(self) -> Path:
        """The file or folder that was written."""
        return self.out

    @property
    def map50_95(self) -> tuple[float, float] | None:
        """mAP50-95 of source and result, 0 to 1; None where no data was given, or nothing here runs the result."""
        return (self.scores.source.map50_95, self.scores.converted.map50_95) if self.scores else None
