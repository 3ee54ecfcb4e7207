"""The family of torchvision's detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

BUILDERS = (
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssdlite320_mobilenet_v3_large",
)
"""Functions of torchvision that build its one-stage detectors."""

_HERE = "edgekd.detectors.torchvision"
_EXTRA = "torchvision"
_TRAINS = "training needs PyTorch and torchvision"
_PRUNES = "pruning needs PyTorch and torch-pruning"

FAMILY = Family(
    name="torchvision",
    title="torchvision",
    suffix=".tv.pt",
    models=("torchvision/*", *BUILDERS),
    load=Imported(f"{_HERE}.detector:TorchvisionDetector"),
    teacher=Imported(f"{_HERE}.detector:load_teacher"),
    distill=Imported(f"{_HERE}.distill:distill_student", _TRAINS, _EXTRA),
    prune=Imported(f"{_HERE}.prune:prune_detector", _PRUNES, _EXTRA),
    scan=Imported(f"{_HERE}.prune:scan_detector", _PRUNES, _EXTRA),
    recover=Imported(f"{_HERE}.recover:recover_detector", _TRAINS, _EXTRA),
    quant_aware_distill=Imported(f"{_HERE}.quant_aware:distill_quantized", _TRAINS, _EXTRA),
)
