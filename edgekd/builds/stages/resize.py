"""The stage that gives a detector another size of its input: the same weights, which a checkpoint says are for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.builds.recipe import Resize
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import Stages

RESIZED = "resized.pt"


def resize(stages: Stages, step: Resize, checkpoint: Path, trust: bool = False) -> Stage:
    """The checkpoint, in the file RESIZED. Results: `bytes`, `size`: height and width before and after."""

    def work(folder: Path) -> Mapping[str, Any]:
        from edgekd.detectors.ultralytics import resized

        before, after = resized(checkpoint, step.image_size, folder / RESIZED, trust)
        return {"bytes": (folder / RESIZED).stat().st_size, "size": [list(before), list(after)]}

    return stages.run("resize", {"model": stages.sha256(checkpoint), "image_size": step.image_size}, work)
