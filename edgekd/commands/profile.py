"""`edgekd profile`: networks timed on a device itself, as the table that `edgekd predict --table` reads.

Whole networks only. What a runtime calls a layer is many of a network's fused into one, under a name of its own, and
times of layers taken apart do not add up to that of the network: as layers of the table they would be wrong.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.commands.engine import REHEARSED, Contents, EngineJob, contents, install
from edgekd.core.atomic_files import write_file, writing
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.core.version import __version__
from edgekd.deploy.artifact import PACKED_SUFFIX, expanded
from edgekd.hardware.predict.device import PRECISIONS, require_precision
from edgekd.hardware.predict.table import MeasuredNetwork, MeasuredTable, table_toml
from edgekd.hardware.target import Target, load_target


@dataclass(frozen=True)
class ProfileJob:
    """What `edgekd profile` is asked for.

    usual: the device, and how each bundle is built and timed there; its bundle does not matter. out: the table; target:
    what the device is, for one that does not say so itself.
    """

    bundles: Sequence[Path]
    usual: EngineJob
    out: Path
    target: str | None = None


def run(job: ProfileJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Do it; the documented result. Raises SpecError, and what `edgekd engine` raises; then no table is written."""
    with ExitStack() as stack:
        parts = [stack.enter_context(contents(bundle)) for bundle in job.bundles]
        target = _common_target(job, parts)
        with writing(job.out):
            job.out.parent.mkdir(parents=True, exist_ok=True)
        found = []
        for bundle, each in zip(job.bundles, parts, strict=True):
            found.append(install(replace(job.usual, bundle=bundle), each, progress))
            _require_measured_there(job, found[-1])
        precision = _common_precision(found, target)
        graphs = [_keep_graph(job.out, each, result["identity"]) for each, result in zip(parts, found, strict=True)]
    times = [result["bench"]["inference_ms"] for result in found]
    networks = tuple(MeasuredNetwork(graph, each["p50"]) for graph, each in zip(graphs, times, strict=True))
    table = MeasuredTable(target.name, precision, _how(found), networks)  # type: ignore[arg-type]
    write_file(job.out, table_toml(table).encode("utf-8"))
    return {
        "table": str(job.out),
        "target": target.name,
        "precision": precision,
        "measured": table.measured,
        "device": found[-1]["device"],
        "runtime": found[-1]["runtime"],
        "networks": [
            {"bundle": result["bundle"], "graph": graph, "layers": result["engine"]["layers"], **result["bench"]}
            for result, graph in zip(found, graphs, strict=True)
        ],
    }


def _common_target(job: ProfileJob, parts: Sequence[Contents]) -> Target:
    """The target of all bundles. Raises SpecError where they have several, or another is given."""
    names = {each.manifest.target.name for each in parts} | ({job.target} if job.target else set())
    if len(names) > 1:
        fix = "make a table for each target, of bundles that were built for it"
        raise SpecError("profile: one table is of one target", expected="one", found=", ".join(sorted(names)), fix=fix)
    return load_target(names.pop())


def _require_measured_there(job: ProfileJob, result: Mapping[str, Any]) -> None:
    """Raises SpecError where nothing was computed, or on a device of which it is not known that it is the target."""
    device, target = result["device"]["name"], result["target"]
    if result["basis"] == REHEARSED:
        what, fix = f"{device}: nothing was computed there", "name a device, and another runtime than null"
        raise SpecError(what, expected="a measurement", found="a rehearsal", fix=fix)
    if result["fits"] is None and job.target is None:
        fix = f"if you know it: --target {target}"
        raise SpecError(
            f"{device}: does not say that it is a {target}", expected="a device that says what it is", fix=fix
        )


def _common_precision(found: Sequence[Mapping[str, Any]], target: Target) -> str:
    """In what all networks compute. Raises SpecError where they differ, or the target has no such convolutions."""
    precisions = {_precision(result) for result in found}
    if len(precisions) > 1:
        fix = "make a table for each precision"
        found_ = ", ".join(sorted(precisions))
        raise SpecError("profile: one table is of one precision", expected="one", found=found_, fix=fix)
    precision = precisions.pop()
    require_precision(target, precision)
    return precision


def _precision(result: Mapping[str, Any]) -> str:
    """The lowest that layers compute in, as the runtime says; where it does not, by the graph: INT8 or FP32."""
    layers = result["engine"]["layers"]
    if layers is None:
        return "int8" if result["self_test"]["precision"] == "int8" else "fp32"
    return next((name for name in reversed(PRECISIONS) if layers.get(name)), "fp32")


def _keep_graph(table: Path, parts: Contents, identity: str) -> str:
    """Write the network of a bundle beside the table; its name there."""
    name = f"{table.stem}-{parts.manifest.name}-{identity[:8]}.onnx"
    if parts.graph.suffix == PACKED_SUFFIX:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            content = expanded(parts.graph, Path(scratch, name)).read_bytes()
    else:
        content = parts.graph.read_bytes()
    write_file(table.with_name(name), content)
    return name


def _how(found: Sequence[Mapping[str, Any]]) -> str:
    """How and on what it was measured, in words."""
    device, runtime = found[-1]["device"], found[-1]["runtime"]
    mode = device["power_mode"]
    facts = {
        "": device["model"] or device["cpu"] or device["name"],
        "power mode ": (mode["name"] or mode["id"]) if mode else None,
        "L4T ": device["l4t"],
        "driver ": device["driver"],
        "kernel ": device["kernel"],
    }
    runs = min(result["bench"]["iterations"] for result in found)
    how = f"{runtime['name']} {runtime['version']}, engine alone, median of {runs} runs or more, edgekd {__version__}"
    return "; ".join([how, *(f"{label}{value}" for label, value in facts.items() if value is not None)])
