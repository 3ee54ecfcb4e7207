"""The family of LibreYOLO's detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

_HERE = "edgekd.detectors.libreyolo.detector"
_NEEDS = ("reading it needs PyTorch and libreyolo", "libreyolo")
"""Message for a missing library, and the extra that installs it."""

FAMILY = Family(
    name="libreyolo",
    title="LibreYOLO",
    suffix=".libreyolo.pt",
    libraries=("libreyolo",),
    load=Imported(f"{_HERE}:LibreyoloDetector", *_NEEDS),
    teacher=Imported(f"{_HERE}:load_teacher", *_NEEDS),
)
