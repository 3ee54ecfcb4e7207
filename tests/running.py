"""What the tests of the command line say of a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ran:
    """What the command line left behind: exit code, and everything on stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; fails where there is anything else."""
        return json.loads(self.out)


BRIEFLY = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parent / "timed_briefly"), os.environ.get("PYTHONPATH")))
    )
}
"""Environment of processes that time each graph briefly."""
EdgeKD = Callable[..., Ran]
DEVICE = ("--device", "local:onnxruntime-cpu")
"""For runs that time something: ONNX Runtime loads a graph sooner than OpenVINO."""


@dataclass(frozen=True)
class Built:
    """A finished build: its folder, the bundle in it, and what `--json` said."""

    out: Path
    bundle: Path
    json: Any


def build_command(model: Path, data: Path, out: Path, *flags: str) -> list[str]:
    """`edgekd build` as a process of its own."""
    return [sys.executable, "-m", "edgekd", "build", str(model), "--data", str(data), "--out", str(out), *flags]
