"""The stage that changes the size of a detector's input; the weights stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.builds.recipe import Resize
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import Stages
from edgekd.detectors.family import require_family


def resized_file(checkpoint: Path) -> str:
    """Return the name of the file of a resized detector."""
    return f"resized{require_family(checkpoint).suffix}"


def resize(stages: Stages, step: Resize, checkpoint: Path, trust: bool = False) -> Stage:
    """Resize; write `resized_file(checkpoint)`. Results: `bytes`, `size`: height and width before and after."""

    family = require_family(checkpoint)

    def work(folder: Path) -> Mapping[str, Any]:
        resize_detector = family.capability("resize")
        out = folder / resized_file(checkpoint)
        before, after = resize_detector(checkpoint, step.image_size, out, trust)
        return {"bytes": out.stat().st_size, "size": [list(before), list(after)]}

    inputs = {"model": stages.sha256(checkpoint), "image_size": step.image_size}
    return stages.run("resize", inputs, work, family.libraries)
