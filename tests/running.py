"""Runs of the command line and of builds, for tests."""

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
    """Result of a command: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON document on stdout. Fails if there is other output."""
        return json.loads(self.out)


BRIEFLY = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parent / "timed_briefly"), os.environ.get("PYTHONPATH")))
    )
}
"""Environment variables for processes, to time each graph briefly."""
EdgeKD = Callable[..., Ran]
DEVICE = ("--device", "local:onnxruntime-cpu")
"""Options for runs with timing: ONNX Runtime loads a graph faster than OpenVINO."""


@dataclass(frozen=True)
class Built:
    """A finished build: its folder, its bundle, and the output of `--json`."""

    out: Path
    bundle: Path
    json: Any


def build_command(model: Path, data: Path, out: Path, *flags: str) -> list[str]:
    """Return the command of `edgekd build` for a separate process."""
    return [sys.executable, "-m", "edgekd", "build", str(model), "--data", str(data), "--out", str(out), *flags]
