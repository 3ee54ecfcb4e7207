"""Table of the flags of `trtexec`, by generation; `flags_of` chooses a row by version. Pure.

Sources: `--help` and the source of the program in TensorRT 8.2, 8.4, 8.6, 10.6; for 11 the migration guide, by which
CUDA graphs and spinning are on by default, and transfers off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.agent.runtimes.tensorrt_generations import numbers
from edgekd.core.errors import DeviceError

WARM_UP_MS = 500
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Flags:
    """One generation of the program.

    first: its first version; workspace: flag with `{}` for megabytes; only_build: flag that prevents a run after the
    build; levels: whether it has optimization levels; typed: whether types come from the graph alone; by_layer: whether
    it sets precisions of single layers; plain: flags for sequential runs with transfers, as in an application.
    """

    first: tuple[int, int]
    workspace: str
    only_build: str
    levels: bool = False
    typed: bool = False
    by_layer: bool = False
    plain: tuple[str, ...] = ()

    def precisions(self, quantized: bool) -> tuple[str, ...]:
        """Return the precisions besides fp32 that have to be allowed."""
        return () if self.typed else ("fp16", "int8") if quantized else ("fp16",)

    def in_float32(self, layers: Iterable[str]) -> list[str]:
        """Return the arguments that hold layers in FP32; none for names that the program's syntax cannot have."""
        pairs = ",".join(f"{name}:fp32" for name in layers if not {*name} & {*":,+"})
        if not (pairs and self.by_layer):
            return []
        return ["--precisionConstraints=prefer", f"--layerPrecisions={pairs}", f"--layerOutputTypes={pairs}"]

    def build(
        self, graph: Path, engine: Path, workspace: int, level: int, allowed: Sequence[str], timings: Path | None
    ) -> list[str]:
        """Return the arguments that build an engine; workspace: bytes."""
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
        """Return the arguments that time an engine; the exported list has an entry for each run."""
        # It ends after so many runs or so many seconds, whichever comes last. Seconds are integers.
        limits = [f"--iterations={iterations}", f"--duration={int(-(-seconds // 1))}", f"--warmUp={WARM_UP_MS}"]
        return [f"--loadEngine={engine}", *self.plain, *limits, f"--exportTimes={times}"]

    def infer(self, engine: Path, name: str, batch: Path, output: Path) -> list[str]:
        """Return the arguments that run one input, from a file of its bytes."""
        source = f"'{name}':{batch}" if ":" in name else f"{name}:{batch}"
        once = ["--iterations=1", "--duration=0", "--warmUp=0"]
        return [f"--loadEngine={engine}", f"--loadInputs={source}", *self.plain, *once, f"--exportOutput={output}"]

    def inspect(self, engine: Path, layers: Path, profile: Path) -> list[str]:
        """Return the arguments that export the layers of an engine, and their times over ten runs."""
        runs = ["--iterations=10", "--duration=0", "--warmUp=200", "--dumpProfile", "--separateProfileRun"]
        return [
            f"--loadEngine={engine}",
            *self.plain,
            *runs,
            f"--exportLayerInfo={layers}",
            f"--exportProfile={profile}",
        ]


_POOL = "--memPoolSize=workspace:{}"
_AS_BEFORE = ("--noCudaGraph", "--noSpinWait", "--includeDataTransfers")
FLAGS = (
    Flags((8, 2), "--workspace={}", "--buildOnly"),
    Flags((8, 4), _POOL, "--buildOnly", by_layer=True),
    Flags((8, 6), _POOL, "--skipInference", levels=True, by_layer=True),
    Flags((11, 0), _POOL, "--skipInference", levels=True, typed=True, plain=_AS_BEFORE),
)
"""Oldest first."""


def flags_of(version: str) -> Flags:
    """Return the generation of a version. Raises DeviceError where it is older than all."""
    rows = [each for each in FLAGS if each.first <= numbers(version)]
    if not rows:
        raise DeviceError(f"trtexec {version} is too old", expected="8.2 or newer", fix="update JetPack")
    return rows[-1]
