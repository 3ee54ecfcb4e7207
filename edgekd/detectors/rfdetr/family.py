"""The family of rfdetr's detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

_HERE = "edgekd.detectors.rfdetr.detector"
_NEEDS = ("reading a .pth file, a checkpoint of RF-DETR, needs PyTorch and rfdetr", "rfdetr")
"""Message for a missing library, and the extra that installs it."""

FAMILY = Family(
    name="rfdetr",
    title="rfdetr",
    suffix=".pth",
    libraries=("rfdetr",),
    load=Imported(f"{_HERE}:RfdetrDetector", *_NEEDS),
    teacher=Imported(f"{_HERE}:load_teacher", *_NEEDS),
)
