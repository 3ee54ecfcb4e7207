"""What `trtexec` wants to be told, generation by generation. Pure; `flags_of` chooses a row by version.

Sources: `--help` and the source of the program in TensorRT 8.2, 8.4, 8.6, 10.6; for 11 the migration guide, by which
CUDA graphs and spinning are on, and transfers off, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.agent.runtimes.tensorrt_generations import numbers
from edgekd.core.errors import DeviceError

WARM_UP_MS = 500
"""Before anything is timed."""
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Flags:
    """One generation of the program.

    first: the version that it begins with; workspace: the flag with `{}` for megabytes; only_build: what keeps it from
    running what it has built; levels: whether it has levels of optimization; typed: whether types come from the graph
    alone; plain: what makes it run as a program of one's own would, one run after the other with transfers.
    """

    first: tuple[int, int]
    workspace: str
    only_build: str
    levels: bool = False
    typed: bool = False
    plain: tuple[str, ...] = ()

    def precisions(self, quantized: bool) -> tuple[str, ...]:
        """The precisions besides fp32 that have to be allowed."""
        return () if self.typed else ("fp16", "int8") if quantized else ("fp16",)

    def build(
        self, graph: Path, engine: Path, workspace: int, level: int, allowed: Sequence[str], timings: Path | None
    ) -> list[str]:
        """Build an engine; workspace: bytes."""
        return [
            f"--onnx={graph}",
            f"--saveEngine={engine}",
            self.workspace.format(workspace // _MEGABYTE),
            "--profilingVerbosity=detailed",
            *(f"--{precision}" for precision in allowed),
            *([f"--builderOptimizationLevel={level}"] if self.levels else []),
            *([f"--timingCacheFile={timings}"] if timings else []),
            self.only_build,
        ]

    def bench(self, engine: Path, iterations: int, seconds: float, times: Path) -> list[str]:
        """Time an engine; the exported list has a row for each run."""
        # It stops after so many runs and so many seconds, whichever comes last. Seconds are whole ones.
        told = [f"--iterations={iterations}", f"--duration={int(-(-seconds // 1))}", f"--warmUp={WARM_UP_MS}"]
        return [f"--loadEngine={engine}", *self.plain, *told, f"--exportTimes={times}"]

    def infer(self, engine: Path, name: str, given: Path, taken: Path) -> list[str]:
        """Run one input, from a file of its bytes."""
        source = f"'{name}':{given}" if ":" in name else f"{name}:{given}"
        once = ["--iterations=1", "--duration=0", "--warmUp=0"]
        return [f"--loadEngine={engine}", f"--loadInputs={source}", *self.plain, *once, f"--exportOutput={taken}"]

    def inspect(self, engine: Path, layers: Path, profile: Path) -> list[str]:
        """Say what is in an engine, and how long each layer takes over ten runs."""
        told = ["--iterations=10", "--duration=0", "--warmUp=200", "--dumpProfile", "--separateProfileRun"]
        return [
            f"--loadEngine={engine}",
            *self.plain,
            *told,
            f"--exportLayerInfo={layers}",
            f"--exportProfile={profile}",
        ]


_POOL = "--memPoolSize=workspace:{}"
_AS_BEFORE = ("--noCudaGraph", "--noSpinWait", "--includeDataTransfers")
FLAGS = (
    Flags((8, 2), "--workspace={}", "--buildOnly"),
    Flags((8, 4), _POOL, "--buildOnly"),
    Flags((8, 6), _POOL, "--skipInference", levels=True),
    Flags((11, 0), _POOL, "--skipInference", levels=True, typed=True, plain=_AS_BEFORE),
)
"""The oldest first."""


def flags_of(version: str) -> Flags:
    """The generation that a version belongs to. Raises DeviceError where it is older than all."""
    found = [each for each in FLAGS if each.first <= numbers(version)]
    if not found:
        raise DeviceError(f"trtexec {version} is too old", expected="8.2 or newer", fix="update JetPack")
    return found[-1]
