"""The check of a detector's description wherever one comes in: metadata of a graph, TOML, checkpoint, folder.

It is the manifest's rule, so what passes can be packed. Generated files (C++ headers, labels, configurations) hold
values of checked descriptions only.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.core.bundle.detector_rule import DETECTOR
from edgekd.core.bundle.manifest import MAX_BYTES
from edgekd.core.bundle.rules import list_of, text
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import to_plain
from edgekd.core.errors import BundleError, SpecError

MAX_CLASSES = 10_000
"""Classes of a detector; the rule for lists in a manifest has the same limit."""
MAX_INPUT_PIXELS = 1 << 26
"""Height times width of the input: 8192 x 8192 pixels, 0.8 GB as float32. Detectors have at most 1/16 of it."""
MAX_NAME_BYTES = MAX_BYTES // 4
"""UTF-8 bytes of all class names; the manifest, which has them with much else, has a limit of its own."""

_CLASSES = list_of(text, 1, MAX_CLASSES)


def checked_spec(spec: DetectorSpec, where: str) -> DetectorSpec:
    """Return the description as it is. Raises SpecError, which begins with `where`, for one that breaks a rule."""
    try:
        DETECTOR(to_plain(spec), where)
    except BundleError as error:
        raise SpecError(error.what, expected=error.expected, found=error.found) from error
    _require_short_names(spec.classes, where)
    height, width = spec.preprocess.height, spec.preprocess.width
    if height * width > MAX_INPUT_PIXELS:
        expected, found = f"at most {MAX_INPUT_PIXELS} pixels", f"{height} x {width}"
        raise SpecError(f"{where}: input too large", expected=expected, found=found)
    if not spec.head.strides:
        raise SpecError(f"{where}.head.strides: wrong", expected="at least one stride", found="none")
    if sum(map(bool, (spec.head.keypoints, spec.head.rotated, spec.head.masks))) > 1:
        raise SpecError(f"{where}.head: wrong", expected="keypoints, rotated boxes or masks", found="several of these")
    if spec.head.masks and spec.head.kind != "yolo":
        raise SpecError(f"{where}.head.kind: wrong", expected="yolo, for a detector with masks", found=spec.head.kind)
    if spec.head.rotated and spec.preprocess.stretch:
        expected = "frames whose aspect ratio is kept, for rotated boxes"
        raise SpecError(f"{where}.preprocess.stretch: wrong", expected=expected, found="true")
    return spec


def checked_classes(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Return the class names. Raises SpecError, which begins with `where`, for some that no manifest can hold."""
    try:
        classes: tuple[str, ...] = _CLASSES(names, where)
    except BundleError as error:
        raise SpecError(error.what, expected=error.expected, found=error.found) from error
    _require_short_names(classes, where)
    return classes


def _require_short_names(classes: Sequence[str], where: str) -> None:
    length = sum(len(name.encode("utf-8")) for name in classes)
    if length > MAX_NAME_BYTES:
        expected = f"at most {MAX_NAME_BYTES} bytes of class names"
        raise SpecError(f"{where}: class names too long", expected=expected, found=f"{length} bytes")
