"""What every peer's adapter does besides quantizing: read its job, time itself, say what it took.

An adapter is a script that runs in the peer's own environment: NumPy and the peer, neither edgekd nor PyTorch.

    python with_PEER.py --model float.onnx --frames FOLDER --out int8.onnx [--method NAME] [--exclude NODE ...]

FOLDER holds the calibration frames, one float32 [1, 3, h, w] `.npy` each. The last line on stdout is a JSON object:
`seconds` (wall time from the float file to the quantized file, libraries already imported), `peak_bytes` (largest
resident memory of the process) and `packages` (version of everything installed beside the peer).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Job:
    """One model to quantize. `exclude`: regular expressions that match the names of nodes to leave in float."""

    model: Path
    frames: tuple[Path, ...]
    out: Path
    method: str
    exclude: tuple[str, ...]

    def batches(self) -> Iterator[np.ndarray]:
        """The calibration frames in order, float32 [1, 3, h, w], one in memory at a time."""
        return (np.load(frame) for frame in self.frames)

    def input_name(self) -> str:
        """The name of the model's input."""
        import onnx

        return str(onnx.load(self.model).graph.input[0].name)

    def excluded(self) -> list[str]:
        """The names of the nodes that `exclude` matches."""
        import re

        import onnx

        names = [node.name for node in onnx.load(self.model).graph.node]
        return [name for name in names if any(re.search(pattern, name) for pattern in self.exclude)]


def run(quantize: Callable[[Job], None]) -> None:
    """Do the job that the command line describes, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="")
    parser.add_argument("--exclude", action="append", default=[])
    given = parser.parse_args()
    frames = tuple(sorted(given.frames.glob("*.npy")))
    job = Job(given.model, frames, given.out, given.method, tuple(given.exclude))
    began = time.perf_counter()
    quantize(job)
    seconds = time.perf_counter() - began
    packages = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    print()
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "packages": packages}))


def peak_bytes() -> int:
    """The largest resident memory of this process so far.

    From /proc: `getrusage` also counts what the parent held when it forked.
    """
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
