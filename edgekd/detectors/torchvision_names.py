"""Names of torchvision detectors: the suffix of their files, and the functions that build them."""

from __future__ import annotations

SUFFIX = ".tv.pt"
BUILDERS = (
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssdlite320_mobilenet_v3_large",
)
"""Detectors of one stage, whose boxes all leave the network at once."""


def is_torchvision(name: str) -> bool:
    """Whether this is the name of a file of this family, or of a builder, with `torchvision/` before it or not."""
    return name.endswith(SUFFIX) or name.startswith("torchvision/") or name in BUILDERS
