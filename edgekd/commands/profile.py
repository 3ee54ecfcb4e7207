"""`edgekd profile`: networks timed on a device, as the table that `edgekd predict --table` reads.

Only whole networks are timed: runtimes fuse layers, so the times of separate layers do not add up to that of the
network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from edgekd.agent.engines.records import RuntimeVersion
from edgekd.commands.arguments import required_signatures
from edgekd.commands.options import (
    AgentPath,
    AllowUnsigned,
    Interpreter,
    Iterations,
    PublicKeys,
    Runtime,
    Seconds,
    State,
    StepTimeout,
    TrustFile,
)
from edgekd.commands.parameter import Argument, Option
from edgekd.core.atomic_files import write_file, writing
from edgekd.core.documents import INLINE, Result
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.core.version import __version__
from edgekd.deploy.artifact import PACKED_SUFFIX, expanded
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.engine import REHEARSED, Contents, EngineJob, contents, install
from edgekd.deploy.engine_report import DeviceReport, EngineLatency, InstallReport
from edgekd.evaluation.report.bench_files import require_place
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

    bundle: str
    graph: str
    layers: Mapping[str, int] | None
    times: EngineLatency = field(metadata=INLINE)


@dataclass(frozen=True)
class ProfileResult(Result):
    """Networks of bundles, timed on a device.

    Args:
        table: Path of the table.
        target: Name of the target.
        precision: The lowest precision that layers compute in.
        measured: Description of the measurement, as in the table.
        networks: The networks, in the order in which they were named.
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
    device: Annotated[str, Option("local or ssh://[USER@]HOST[:PORT].", group="Device")],
    out: Annotated[str | Path, Option("The table, a .toml; networks go beside it.", group="Output")],
    *,
    target: Annotated[str | None, Option("Target of a device that does not report its model.")] = None,
    runtime: Runtime = None,
    state: State = None,
    python: Interpreter = None,
    agent: AgentPath = None,
    trust: TrustFile = None,
    keys: PublicKeys = (),
    allow_unsigned: AllowUnsigned = False,
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
        required=required_signatures(trust, keys),
        allow_unsigned=allow_unsigned,
        iterations=iterations,
        seconds=seconds,
        timeout_s=timeout,
    )
    with ExitStack() as stack:
        parts = [stack.enter_context(contents(path, usual.required)) for path in paths]
        chosen = _common_target(target, parts)
        with writing(table_path):
            table_path.parent.mkdir(parents=True, exist_ok=True)
        require_place(table_path)
        reports = [
            _timed(replace(usual, bundle=path), each, target, progress) for path, each in zip(paths, parts, strict=True)
        ]
        precision = _common_precision(reports, chosen)
        graphs = [_keep_graph(table_path, each, report.identity) for each, report in zip(parts, reports, strict=True)]
    networks = tuple(
        MeasuredNetwork(graph, report.bench.inference_ms.p50) for graph, report in zip(graphs, reports, strict=True)
    )
    table = MeasuredTable(chosen.name, precision, _how(reports), networks)
    write_file(table_path, table_toml(table).encode("utf-8"))
    return ProfileResult(
        table=table_path,
        target=chosen.name,
        precision=precision,
        measured=table.measured,
        device=reports[-1].device,
        runtime=reports[-1].runtime,
        networks=tuple(
            ProfiledNetwork(report.bundle, graph, report.engine.layers, report.bench)
            for report, graph in zip(reports, graphs, strict=True)
        ),
    )


def _common_target(given: str | None, parts: Sequence[Contents]) -> Target:
    """Return the target of all bundles. Raises SpecError if they have several, or another one is given."""
    names = {each.manifest.target.name for each in parts} | ({given} if given else set())
    if len(names) > 1:
        fix = "make a table for each target, of bundles that were built for it"
        raise SpecError("profile: one table is of one target", expected="one", found=", ".join(sorted(names)), fix=fix)
    return load_target(names.pop())


def _timed(job: EngineJob, parts: Contents, given: str | None, progress: Progress) -> InstallReport:
    """Time a bundle on a device. Raises SpecError if it is not known to be the target, and the errors of `engine`."""
    report = install(job, parts, progress)
    device, target = report.device.name, report.target
    if report.basis == REHEARSED:
        what, fix = f"{device}: nothing was computed there", "name a device, and another runtime than null"
        raise SpecError(what, expected="a measurement", found="a rehearsal", fix=fix)
    if report.fits is None and given is None:
        fix = f"if you know it: --target {target}"
        raise SpecError(
            f"{device}: not confirmed to be a {target}", expected="a device that reports its model", fix=fix
        )
    return report


def _common_precision(reports: Sequence[InstallReport], target: Target) -> PredictedPrecision:
    """Return the precision of all networks. Raises SpecError if they differ, or the target does not have it."""
    precisions = {_precision(report) for report in reports}
    if len(precisions) > 1:
        fix = "make a table for each precision"
        found = ", ".join(sorted(precisions))
        raise SpecError("profile: one table is of one precision", expected="one", found=found, fix=fix)
    precision = precisions.pop()
    require_precision(target, precision)
    return precision


def _precision(report: InstallReport) -> PredictedPrecision:
    """Return the lowest precision of layers as the runtime reports it, else that of the graph: INT8 or FP32."""
    layers = report.engine.layers
    if layers is None:
        return "int8" if report.self_test.precision == "int8" else "fp32"
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


def _how(reports: Sequence[InstallReport]) -> str:
    """Return a description of the device and the measurement."""
    device, runtime = reports[-1].device, reports[-1].runtime
    mode = device.power_mode
    facts = {
        "": device.model or device.cpu or device.name,
        "power mode ": (mode.name or mode.id) if mode else None,
        "L4T ": device.l4t,
        "driver ": device.driver,
        "kernel ": device.kernel,
    }
    runs = min(report.bench.iterations for report in reports)
    how = f"{runtime.name} {runtime.version}, engine alone, median of {runs} runs or more, edgekd {__version__}"
    return "; ".join([how, *(f"{label}{value}" for label, value in facts.items() if value is not None)])
