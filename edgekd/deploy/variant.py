"""A variant of a bundle for other conditions: the result of `edgekd adapt`, as docs/reference/json.md describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.core.documents import INLINE, Result


@dataclass(frozen=True)
class Look:
    """The effect of the new conditions on pictures.

    Args:
        blur: Standard deviation of the blurring kernel, in pixels of the network's input; 0 for none.
        gains: Factor of each band of detail, the finest first.
        noise: Standard deviation of the noise added to each band, in grey levels.
        brightness: Mean grey level of pictures of known conditions, and of frames of the new ones.
    """

    blur: float
    gains: tuple[float, ...]
    noise: tuple[float, ...]
    brightness: tuple[float, float]


@dataclass(frozen=True)
class AdaptError:
    """Error of the confidences under the new conditions, as noise-to-signal ratio, on pictures not used for fitting.

    Args:
        before: Error of the bundle.
        after: Error of the variant.
    """

    before: float
    after: float


@dataclass(frozen=True)
class AdaptedScores:
    """Scores on labelled images.

    Args:
        split: Name of the split.
        images: Number of scored images.
        before: mAP50-95 of the bundle.
        after: mAP50-95 of the variant.
        kept: `after` / `before`; null where `before` is 0.
    """

    split: str
    images: int
    before: float
    after: float
    kept: float | None


@dataclass(frozen=True)
class Adaptation:
    """The adaptation to frames of the new conditions.

    Args:
        pictures: Number of pictures of known conditions that were used.
        frames: Number of frames of the new conditions that were used.
        drift_frames: Number of frames of the variant's drift reference; null where there were too few for one.
        clean: Scores of both on the original labelled images; null where nothing was scored.
        shown: Scores of both on the same images under the new conditions; null where nothing was scored.
    """

    pictures: int
    frames: int
    drift_frames: int | None
    look: Look
    error: AdaptError
    clean: AdaptedScores | None
    shown: AdaptedScores | None


@dataclass(frozen=True)
class Variant(Result):
    """A variant of a bundle for other conditions.

    Args:
        bundle: Path of the variant, for cameras that have no bundle of this model yet.
        delta: Path of the delta to the variant, for cameras with the bundle that was adapted.
        variant: Name of the variant.
        identity: Identity of the variant.
        base: Identity of the bundle that was adapted.
        bytes: Size of the variant.
        delta_bytes: Size of the delta.
        twins: Folder with the data under the new conditions; null without `--twins`.
        seconds: Wall time.
    """

    bundle: Path
    delta: Path
    variant: str
    identity: str
    base: str
    bytes: int
    delta_bytes: int
    adaptation: Adaptation = field(metadata=INLINE)
    twins: Path | None
    seconds: float

    @property
    def error(self) -> AdaptError:
        """Error of the confidences under the new conditions."""
        return self.adaptation.error
