"""`edgekd delta`: the difference from one bundle to another, for cameras that have the first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.parameter import Argument, Option
from edgekd.deploy.delta import DeltaResult, run


def delta(
    old: Annotated[str | Path, Argument("The bundle that the cameras have.")],
    new: Annotated[str | Path, Argument("The bundle that they should have.")],
    out: Annotated[str | Path, Option("Delta to write.", group="Output")],
) -> DeltaResult:
    """Write the delta from one bundle to another. Raises SpecError, BundleError. The command: `edgekd delta`."""
    return run(Path(old), Path(new), Path(out))
