"""The family of LibreYOLO's detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

FAMILY = Family(
    name="libreyolo",
    title="LibreYOLO",
    suffix=".libreyolo.pt",
    load=Imported(
        "edgekd.detectors.libreyolo.detector:LibreyoloDetector", "reading it needs PyTorch and libreyolo", "libreyolo"
    ),
)
