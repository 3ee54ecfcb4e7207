"""`edgekd profile`: networks timed on a device, as the table that `edgekd predict --table` reads.

Whole networks only: runtimes fuse several layers of a network into one, and the times of separate layers do not add up
to that of the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from edgekd.agent.engines.records import RuntimeVersion
from edgekd.commands.options import AgentPath, Interpreter, Iterations, Runtime, Seconds, State, StepTimeout
from edgekd.commands.parameter import Argument, Option
from edgekd.core.atomic_files import write_file, writing
from edgekd.core.documents import INLINE, Result
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.core.version import __version__
from edgekd.deploy.artifact import PACKED_SUFFIX, expanded
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.engine import REHEARSED, Contents, EngineJob, contents, install
from edgekd.deploy.engine_result import DeviceReport, EngineResult, EngineTimes
from edgekd.hardware.predict.device import PRECISIONS, PredictedPrecision, require_precision
from edgekd.hardware.predict.table import MeasuredNetwork, MeasuredTable, table_toml
from edgekd.hardware.target import Target, load_target


@dataclass(frozen=True)
class ProfiledNetwork:
    """A network, timed on the device.

    Args:
        bundle: Path of its bundle here.
        graph: Name of its ONNX file, beside the table.
        layers: Number of layers by the precision that they compute in; null where the runtime does not report it.
    """

    bundle: Path
    graph: str
    layers: Mapping[str, int] | None
    times: EngineTimes = field(metadata=INLINE)


@dataclass(frozen=True)
class ProfileResult(Result):
    """Networks, timed on a device by the agents of their bundles.

    Args:
        table: Path of the table.
        target: Name of the target that it is of.
        precision: The lowest precision that layers compute in.
        measured: Description of the measurement, as in the table.
        networks: In the order in which they were named.
    """

    table: Path
    target: str
    precision: PredictedPrecision
    measured: str
    device: DeviceReport
    runtime: RuntimeVersion
    networks: tuple[ProfiledNetwork, ...]


def profile(
    bundles: Annotated[Sequence[str | Path], Argument("Bundles for one target.")],
    device: Annotated[str, Option("local or ssh://[USER@]HOST[:PORT].")],
    out: Annotated[str | Path, Option("The table, a .toml; networks go beside it.")],
    *,
    target: Annotated[str | None, Option("Target of a device that does not report its model.")] = None,
    runtime: Runtime = None,
    state: State = None,
    python: Interpreter = None,
    agent: AgentPath = None,
    iterations: Iterations = 200,
    seconds: Seconds = 5.0,
    timeout: StepTimeout = 3600.0,
    progress: Progress = SILENT,
) -> ProfileResult:
    """Time the networks of bundles on a device, and write a table that corrects predictions for its target.

    Raises SpecError, and the errors of `engine`; then no table is written. The command: `edgekd profile`.
    """
    paths, table_path = [Path(bundle) for bundle in bundles], Path(out)
    usual = EngineJob(
        bundle=paths[0],
        device=device_named(device),
        runtime=runtime,
        state=state,
        python=python,
        agent=agent,
        iterations=iterations,
        seconds=seconds,
        timeout_s=timeout,
    )
    with ExitStack() as stack:
        parts = [stack.enter_context(contents(path)) for path in paths]
        chosen = _common_target(target, parts)
        with writing(table_path):
            table_path.parent.mkdir(parents=True, exist_ok=True)
        found = []
        for path, each in zip(paths, parts, strict=True):
            found.append(install(replace(usual, bundle=path), each, progress))
            _require_measured_there(found[-1], target)
        precision = _common_precision(found, chosen)
        graphs = [_keep_graph(table_path, each, result.identity) for each, result in zip(parts, found, strict=True)]
    times = [result.bench.inference_ms for result in found]
    networks = tuple(MeasuredNetwork(graph, each.p50) for graph, each in zip(graphs, times, strict=True))
    table = MeasuredTable(chosen.name, precision, _how(found), networks)  # type: ignore[arg-type]
    write_file(table_path, table_toml(table).encode("utf-8"))
    return ProfileResult(
        table=table_path,
        target=chosen.name,
        precision=precision,
        measured=table.measured,
        device=found[-1].device,
        runtime=found[-1].runtime,
        networks=tuple(
            ProfiledNetwork(result.bundle, graph, result.engine.layers, result.bench)
            for result, graph in zip(found, graphs, strict=True)
        ),
    )


def _common_target(given: str | None, parts: Sequence[Contents]) -> Target:
    """Return the target of all bundles. Raises SpecError where they have several, or another is given."""
    names = {each.manifest.target.name for each in parts} | ({given} if given else set())
    if len(names) > 1:
        fix = "make a table for each target, of bundles that were built for it"
        raise SpecError("profile: one table is of one target", expected="one", found=", ".join(sorted(names)), fix=fix)
    return load_target(names.pop())


def _require_measured_there(result: EngineResult, given: str | None) -> None:
    """Require a measurement on a device that is known to be the target. Raises SpecError."""
    device, target = result.device.name, result.target
    if result.basis == REHEARSED:
        what, fix = f"{device}: nothing was computed there", "name a device, and another runtime than null"
        raise SpecError(what, expected="a measurement", found="a rehearsal", fix=fix)
    if result.fits is None and given is None:
        fix = f"if you know it: --target {target}"
        raise SpecError(
            f"{device}: not confirmed to be a {target}", expected="a device that reports its model", fix=fix
        )


def _common_precision(found: Sequence[EngineResult], target: Target) -> PredictedPrecision:
    """Return the precision of all networks. Raises SpecError where they differ, or the target does not have it."""
    precisions = {_precision(result) for result in found}
    if len(precisions) > 1:
        fix = "make a table for each precision"
        found_ = ", ".join(sorted(precisions))
        raise SpecError("profile: one table is of one precision", expected="one", found=found_, fix=fix)
    precision = precisions.pop()
    require_precision(target, precision)
    return precision


def _precision(result: EngineResult) -> PredictedPrecision:
    """Return the lowest precision of layers, by the runtime; where it reports none, by the graph: INT8 or FP32."""
    layers = result.engine.layers
    if layers is None:
        return "int8" if result.self_test.precision == "int8" else "fp32"
    return next((name for name in reversed(PRECISIONS) if layers.get(name)), "fp32")


def _keep_graph(table: Path, parts: Contents, identity: str) -> str:
    """Write the network of a bundle beside the table; return its name."""
    name = f"{table.stem}-{parts.manifest.name}-{identity[:8]}.onnx"
    if parts.graph.suffix == PACKED_SUFFIX:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            content = expanded(parts.graph, Path(scratch, name)).read_bytes()
    else:
        content = parts.graph.read_bytes()
    write_file(table.with_name(name), content)
    return name


def _how(found: Sequence[EngineResult]) -> str:
    """Return a text on the device and how it was measured."""
    device, runtime = found[-1].device, found[-1].runtime
    mode = device.power_mode
    facts = {
        "": device.where,
        "power mode ": (mode.name or mode.id) if mode else None,
        "L4T ": device.l4t,
        "driver ": device.driver,
        "kernel ": device.kernel,
    }
    runs = min(result.bench.iterations for result in found)
    how = f"{runtime.name} {runtime.version}, engine alone, median of {runs} runs or more, edgekd {__version__}"
    return "; ".join([how, *(f"{label}{value}" for label, value in facts.items() if value is not None)])
