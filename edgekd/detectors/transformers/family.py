"""The family of transformers' detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

CONFIG = "config.json"
"""File of a model's folder with its architecture and its classes."""
PREPROCESSOR = "preprocessor_config.json"
"""File of a model's folder with the size and the normalisation of its frames."""

FAMILY = Family(
    name="transformers",
    title="transformers",
    suffix=".safetensors",
    files=("model.safetensors", CONFIG, PREPROCESSOR),
    load=Imported(
        "edgekd.detectors.transformers.detector:TransformersDetector",
        "reading it needs PyTorch and transformers",
        "transformers",
    ),
)
