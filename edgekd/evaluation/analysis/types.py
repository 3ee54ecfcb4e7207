"""What the analysis of a build hands to the report and to `edgekd report --json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekd.evaluation.analysis.counts import Confusion, Shift, Tally
from edgekd.evaluation.analysis.times import Times

ChangeKind = Literal["lost", "gained", "alarm", "settled"]
"""An object found before and not after, and the other way round; a false alarm that is new, and one that is gone."""


@dataclass(frozen=True)
class Crop:
    """One change, with what is around it as a JPEG of `width` x `height` pixels.

    kind: as ChangeKind; class_name, size: of the object or false alarm; frame: name of the image's file. truth, before,
    after: boxes x1, y1, x2, y2 in pixels of the JPEG, None where there is none. scores: of both networks, None where
    one sees nothing; threshold: the least that counts; reason: why it does not count any more, or did not before.
    """

    kind: ChangeKind
    class_name: str
    size: str
    frame: str
    jpeg: bytes
    width: int
    height: int
    truth: tuple[float, ...] | None
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None
    scores: tuple[float | None, float | None]
    threshold: float
    reason: str


@dataclass(frozen=True, eq=False)
class Analysis:
    """Detections of the scored images before and after, as a camera would count them.

    thresholds: the least score of each class, the same before and after; images: how many were looked at; reasons: why
    objects were lost. tables: confusion as `matching.Findings` has it. changes: how many changes of each kind there
    are, of which `crops` shows some.
    """

    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    images: int
    total: Tally
    classes: tuple[Tally, ...]
    sizes: tuple[Tally, ...]
    reasons: Mapping[str, int]
    confusions: tuple[Confusion, ...]
    tables: tuple[np.ndarray, np.ndarray]
    shift: Shift | None
    changes: Mapping[ChangeKind, int]
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Compared:
    """Two graphs, by what people call them, and the CKA of each layer by the tensor that it writes."""

    reference: str
    other: str
    values: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """Both, as a heading."""
        return f"{self.reference} → {self.other}"


@dataclass(frozen=True, eq=False)
class Shown:
    """Where two networks look in a frame at one layer: pictures uint8 [h, w, 3] BGR; after Noneif not there."""

    layer: str
    before: np.ndarray
    after: np.ndarray | None
    agreement: float | None


@dataclass(frozen=True, eq=False)
class Attention:
    """A frame as the networks see it, uint8 [h, w, 3] BGR, and where they look in it."""

    frame: str
    image: np.ndarray
    layers: tuple[Shown, ...]


@dataclass(frozen=True, eq=False)
class Inside:
    """What was seen inside the networks, on `frames` scored images: similarity, times before and after, attention."""

    frames: int
    compared: tuple[Compared, ...]
    times: tuple[Times, Times]
    attention: tuple[Attention, ...]
