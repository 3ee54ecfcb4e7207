"""The family of transformers' detectors."""

from __future__ import annotations

from edgekd.detectors.family import Family, Imported

CONFIG = "config.json"
"""File in a model's folder with its architecture and classes."""
PREPROCESSOR = "preprocessor_config.json"
"""File in a model's folder with the size and normalisation of its frames."""

_HERE = "edgekd.detectors.transformers.detector"
_NEEDS = ("reading it needs PyTorch and transformers", "transformers")
"""Message for a missing library, and the extra that installs it."""

FAMILY = Family(
    name="transformers",
    title="transformers",
    suffix=".safetensors",
    files=("model.safetensors", CONFIG, PREPROCESSOR),
    libraries=("transformers",),
    load=Imported(f"{_HERE}:TransformersDetector", *_NEEDS),
    teacher=Imported(f"{_HERE}:load_teacher", *_NEEDS),
)
