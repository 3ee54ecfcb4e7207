"""What becomes of the graph on its target: an engine made here, or one that the device makes at installation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.hardware.target import Target, version

CHECKED_FOR = ("SM86", "SM89", "SM120")
"""GPUs for which TensorRT for RTX tries a graph whose own target it cannot compile for."""
CHECKED_SINCE = (10,)
"""The first TensorRT of which its parser and builder say something.

Those before refuse graphs that it takes, such as INT8 constants: NVIDIA/TensorRT issue 2163.
"""


@dataclass(frozen=True)
class Compiled:
    """How the engine comes about.

    how: `ahead` (made here, `engine` is its file), `at load` or `deferred to install`;
    check: what TensorRT for RTX said of the graph: `accepted`, `refused: ...` or `not run: ...`; None where no TensorRT
    runs it. It shares parser and builder with TensorRT 10 and later, but is not the target's engine.
    """

    how: str
    note: str
    check: str | None = None
    engine: str | None = None


def compile_graph(graph: Path, target: Target, folder: Path) -> Compiled:
    """Compile what can be compiled here; an engine for RTX cards is written into `folder`. Raises DeviceError."""
    if target.engine == "rtx" and TENSORRT_RTX.available().usable:
        made = compile_ahead(graph, [str(target.compute_capability)], folder / "engine.rtx")
        sizes = f"{made.bytes / 1e6:.1f} MB for {', '.join(made.sm)}"
        return Compiled(
            "ahead", f"TensorRT for RTX, {sizes}; final kernels are chosen on the card", engine="engine.rtx"
        )
    if not target.on_tensorrt:
        return Compiled("at load", f"{target.engine} compiles the graph when it loads it")
    note = f"deferred to install: TensorRT builds the engine on the {target.title}"
    return Compiled("deferred to install", note, _parser_check(graph, target, folder))


def _parser_check(graph: Path, target: Target, folder: Path) -> str:
    """Return whether TensorRT for RTX parses and builds the graph, for the GPUs it knows."""
    oldest = target.software.tensorrt.value[0] if target.software.tensorrt else None
    if oldest and version(oldest) < CHECKED_SINCE:
        return f"not run: it says nothing of TensorRT before 10, and the {target.title} has {oldest}"
    found = TENSORRT_RTX.available()
    if not found.usable:
        return f"not run: {found.why}" + (f"; {found.install}" if found.install else "")
    try:
        compile_ahead(graph, CHECKED_FOR, folder / "check.rtx").files[0].unlink()
    except DeviceError as error:
        return f"refused: {error}"
    return f"accepted (TensorRT for RTX {TENSORRT_RTX.version()}, {', '.join(CHECKED_FOR)})"
