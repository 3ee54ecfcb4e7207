"""Input of `edgekd demo`: a small detector, and rendered street scenes with labels in YOLO layout.

`examples/demo_detector/` of the repository renders the scenes and trains the detector.
"""

from __future__ import annotations

from pathlib import Path

DETECTOR = Path(__file__).with_name("detector.onnx")
SCENES = Path(__file__).with_name("scenes")
