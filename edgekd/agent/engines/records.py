"""JSON documents in the folder of an engine: the record of its build, and its self-test. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekd.agent.runtimes.precision import Realized, Shares
from edgekd.agent.runtimes.types import (
    FLOAT,
    GRAPH,
    DlaDetails,
    RuntimeDetails,
    Source,
    TensorRtDetails,
    TrtexecDetails,
)
from edgekd.core.canonical import json_sha256
from edgekd.core.documents import INLINE, to_plain


@dataclass(frozen=True)
class RuntimeVersion:
    """A runtime.

    Args:
        name: Name for `--runtime`.
        version: Version of its library.
    """

    name: str | None
    version: str | None


@dataclass(frozen=True)
class EnvironmentChange:
    """A fact that has changed since a build.

    Args:
        what: `runtime`, `version`, `device`, `gpu`, `cpu`, `driver`, `l4t` or `os`.
        built: Value at the build.
        now: Present value.
    """

    what: str
    built: str | None
    now: str | None


@dataclass(frozen=True)
class EngineKey:
    """Facts that an engine depends on. graph: SHA-256 of the bundle's; built_on: state of the device, by name."""

    graph: str
    runtime: RuntimeVersion
    built_on: Mapping[str, str | None]

    def changes_since(self, earlier: EngineKey) -> list[EnvironmentChange]:
        """Return the facts on runtime and device that differ from an earlier key."""
        built, now = earlier._facts(), self._facts()
        return [EnvironmentChange(name, built.get(name), now[name]) for name in now if built.get(name) != now[name]]

    def _facts(self) -> dict[str, str | None]:
        return {"runtime": self.runtime.name, "version": self.runtime.version, **self.built_on}


@dataclass(frozen=True)
class Form:
    """Form of the network that an engine is built from.

    Args:
        source: `graph`: the bundle's graph; `float`: the same network without Q/DQ.
        float_layers: Names of the graph's layers whose Q/DQ is left out, in graph order.
    """

    source: Source = GRAPH
    float_layers: tuple[str, ...] = ()


AS_SHIPPED = Form()
ALL_FLOAT = Form(FLOAT)


def folder_name(key: EngineKey, form: Form) -> str:
    """Return the name of the folder of an engine; the defaults of a form are left out of its hash."""
    document = to_plain(key)
    if form.source != GRAPH:
        document["source"] = form.source
    if form.float_layers:
        document["float_layers"] = list(form.float_layers)
    return json_sha256(document)[:16]


@dataclass(frozen=True)
class FailedBuild:
    """A build that found no kernel for a layer.

    Args:
        float_layers: Layers that were built in float.
        node: The builder's name of the layer without a kernel.
        log: Warnings and errors of the builder.
    """

    float_layers: tuple[str, ...]
    node: str
    log: tuple[str, ...]


@dataclass(frozen=True)
class EngineRecord:
    """Content of `engine.json`; records of older agents lack fields that have a default.

    precision: requested, not computed; realized: computed, None where the runtime does not report it, and then
    perhaps `unread`, the reason.
    """

    key: EngineKey = field(metadata=INLINE)
    form: Form = field(metadata=INLINE)
    details: RuntimeDetails = field(metadata=INLINE)
    realized: Realized | None = None
    unread: str | None = None
    precision: str = GRAPH
    allowed: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    attempts: tuple[FailedBuild, ...] = ()
    seconds: float | None = None
    bytes: int | None = None
    sha256: str | None = None


def record_from_json(document: Mapping[str, Any]) -> EngineRecord:
    """Parse an `engine.json`. Raises KeyError, TypeError or ValueError where it is none."""
    entries = dict(document)
    runtime, built_on = entries.pop("runtime"), dict(**entries.pop("built_on"))
    key = EngineKey(entries.pop("graph", ""), RuntimeVersion(runtime.get("name"), runtime.get("version")), built_on)
    form = Form(entries.pop("source", GRAPH), tuple(entries.pop("float_layers", ())))
    realized = entries.pop("realized", None)
    attempts = tuple(
        FailedBuild(tuple(each["float_layers"]), each["node"], tuple(each["log"]))
        for each in entries.pop("attempts", ())
    )
    names = {field.name for field in dataclasses.fields(EngineRecord)} & entries.keys()
    return EngineRecord(
        key,
        form,
        _details(entries),
        Realized(realized["layers"], Shares(**realized["share"])) if realized else None,
        attempts=attempts,
        **{name: entries[name] for name in names},
    )


def _details(entries: Mapping[str, Any]) -> RuntimeDetails:
    """Return the entries of the runtime's own; older agents wrote fewer."""
    kind = next((kind for name, kind in _DETAILS.items() if name in entries), RuntimeDetails)
    names = {field.name for field in dataclasses.fields(kind)} & entries.keys()
    return kind(**{name: entries[name] for name in names})


_DETAILS: dict[str, type[RuntimeDetails]] = {
    "held_in_float": DlaDetails,
    "command": TrtexecDetails,
    "workspace_bytes": TensorRtDetails,
}
"""Details by an entry that no other has; the first that is there decides."""


@dataclass(frozen=True)
class PartErrors:
    """Relative errors, or tolerances, of boxes and of scores: the maximum over all frames.

    Args:
        boxes: Of boxes, each weighted by its score.
        scores: Of scores.
    """

    boxes: float
    scores: float


@dataclass(frozen=True)
class LatencyCheck:
    """Run time of an engine, and its limit.

    Args:
        limit_ms: Maximum of the median, in milliseconds.
        p50_ms: The median.
        runs: Number of timed runs.
    """

    limit_ms: float
    p50_ms: float
    runs: int


@dataclass(frozen=True)
class SelfTest:
    """Result of a self-test, as in `selftest.json`.

    Args:
        passed: True where both errors are within the tolerance, and the latency within its limit.
        precision: `int8` for a graph with quantized layers, else `float`.
        frames: Number of golden frames.
        error: Relative errors of the engine.
        tolerance: Maximum relative errors.
        scratch_bytes: Memory for inner tensors; null where the runtime does not report it.
        latency: Null where no limit applies, or the outputs are wrong already.
    """

    passed: bool
    precision: str
    frames: int
    error: PartErrors
    tolerance: PartErrors
    scratch_bytes: int | None = None
    latency: LatencyCheck | None = None


def self_test_from_json(document: Mapping[str, Any]) -> SelfTest:
    """Parse a `selftest.json`. Raises KeyError or TypeError where it is none."""
    latency, passed = document.get("latency"), document["passed"]
    if not isinstance(passed, bool):
        raise TypeError(f"expected true or false for passed, found {passed!r}")
    return SelfTest(
        passed,
        document["precision"],
        document["frames"],
        PartErrors(**document["error"]),
        PartErrors(**document["tolerance"]),
        document.get("scratch_bytes"),
        LatencyCheck(**latency) if latency else None,
    )
