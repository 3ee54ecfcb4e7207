"""`edgekd demo`: a build of the shipped detector on rendered street scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from edgekd.builds.run import BuildResult
from edgekd.commands.build import build
from edgekd.commands.options import TargetName
from edgekd.commands.parameter import Option
from edgekd.core.progress import SILENT, Progress
from edgekd.data.demo import DETECTOR, SCENES


@dataclass(frozen=True)
class Demo:
    """The build of a demo; missed limits are not an error."""

    outcome: BuildResult

    @property
    def document(self) -> Any:
        """The documented result of the build."""
        return self.outcome.document


def demo(
    *,
    out: Annotated[str | Path, Option("Folder for the results.", group="Output")] = Path("runs/demo"),
    target: TargetName = "xavier",
    progress: Progress = SILENT,
) -> Demo:
    """Build the shipped detector on rendered scenes. Raises as `build` does. The command: `edgekd demo`."""
    outcome = build(DETECTOR, SCENES, target=target, out=out, progress=progress)
    return Demo(outcome)
