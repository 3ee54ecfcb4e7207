"""The family of Ultralytics detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

_HERE = "edgekd.detectors.ultralytics"
_TRAINS = "training needs Ultralytics and PyTorch"

FAMILY = Family(
    name="ultralytics",
    title="Ultralytics",
    suffix=".pt",
    models=("*.yaml", "*.yml"),
    load=Imported(f"{_HERE}.detector:UltralyticsDetector"),
    teacher=Imported(f"{_HERE}.features:UltralyticsTeacher", _TRAINS),
    distill=Imported(f"{_HERE}.distill:distill_student", _TRAINS),
    initialize_student=Imported(f"{_HERE}.distill:initialize_student", _TRAINS),
    prune=Imported(f"{_HERE}.prune:prune_detector", _TRAINS),
    prune_quantized=Imported(f"{_HERE}.prune:prune_detector", _TRAINS),
    scan=Imported(f"{_HERE}.prune:scan_detector", _TRAINS),
    factorize=Imported(f"{_HERE}.factorize:factorize_detector", _TRAINS),
    recover=Imported(f"{_HERE}.recover:recover_detector", _TRAINS),
    resize=Imported(f"{_HERE}.detector:resize_detector"),
    quant_aware_distill=Imported(f"{_HERE}.quant_aware:distill_quantized", _TRAINS),
)
