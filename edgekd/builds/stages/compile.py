"""Stage `compile`: an engine built here, or a check of the graph that the device will build at installation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.hardware.target import Target, to_dict, version

CHECKED_FOR = ("SM86", "SM89", "SM120")
"""GPU architectures for which TensorRT for RTX checks a graph whose target it cannot compile for."""
CHECKED_SINCE = (10,)
"""First version of TensorRT for which the check is meaningful.

Earlier versions refuse graphs that TensorRT for RTX accepts, such as INT8 constants: NVIDIA/TensorRT issue 2163.
"""


@dataclass(frozen=True)
class CompileResult(StageResult):
    """The way to an engine.

    Args:
        how: `ahead` (built here, `engine` is its file), `at load` or `deferred to install`.
        note: `how` in more words.
        check: Verdict of TensorRT for RTX on the graph: `accepted ...`, `refused: ...` or `not run: ...`; None if the
            target does not use TensorRT or the engine was built here. TensorRT for RTX shares parser and builder with
            TensorRT 10 and later, but its engine is not the target's.
    """

    how: str
    note: str
    check: str | None = None
    engine: str | None = None

    @property
    def summary(self) -> str:
        """`how`."""
        return self.how


COMPILE = StageKind("compile", 2, CompileResult, ("tensorrt-rtx",))


def run(context: StageContext, graph: GraphStage, target: Target) -> Stage[CompileResult]:
    """Compile a graph for a target, or check it."""

    def work(folder: Path) -> CompileResult:
        return compile_graph(graph.path / GRAPH, target, folder, graph.result.spec.batch)

    return context.run(COMPILE, {"graph": graph.sha256, "target": to_dict(target)}, work)


def compile_graph(graph: Path, target: Target, folder: Path, batch: int = 1) -> CompileResult:
    """Compile a graph for an RTX card into `folder`; for other targets of TensorRT check it. Raises DeviceError.

    batch: Maximum number of frames in a run.
    """
    if target.engine == "rtx" and TENSORRT_RTX.available().usable:
        made = compile_ahead(graph, [str(target.compute_capability)], folder / "engine.rtx", batch)
        sizes = f"{made.bytes / 1e6:.1f} MB for {', '.join(made.sm)}"
        return CompileResult(
            "ahead", f"TensorRT for RTX, {sizes}; final kernels are chosen on the card", engine="engine.rtx"
        )
    if not target.on_tensorrt:
        return CompileResult("at load", f"{target.engine} compiles the graph when it loads it")
    note = f"deferred to install: TensorRT builds the engine on the {target.title}"
    return CompileResult("deferred to install", note, _parser_check(graph, target, folder, batch))


def _parser_check(graph: Path, target: Target, folder: Path, batch: int) -> str:
    """Return the verdict of TensorRT for RTX on the graph, for the GPUs in CHECKED_FOR."""
    oldest = target.software.tensorrt.value[0] if target.software.tensorrt else None
    if oldest and version(oldest) < CHECKED_SINCE:
        return f"not run: it says nothing of TensorRT before 10, and the {target.title} has {oldest}"
    found = TENSORRT_RTX.available()
    if not found.usable:
        return f"not run: {found.why}" + (f"; {found.install}" if found.install else "")
    try:
        compile_ahead(graph, CHECKED_FOR, folder / "check.rtx", batch).files[0].unlink()
    except DeviceError as error:
        return f"refused: {error}"
    return f"accepted (TensorRT for RTX {TENSORRT_RTX.version()}, {', '.join(CHECKED_FOR)})"
