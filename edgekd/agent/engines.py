"""Engines in a slot: one folder for each state of the device that one was built on, with what is known of it beside it.

The engine's file has nothing in it but the engine, so that other programs, such as DeepStream, can load it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.choice import ALL_FLOAT, AS_SHIPPED, Form, forms
from edgekd.agent.device import Device
from edgekd.agent.kernel_fallback import request_without
from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.precision import realized, share
from edgekd.agent.runtimes.types import AS_THE_GRAPH, GRAPH, UnimplementedLayerError, Wish
from edgekd.agent.slots import SELF_TEST, Slot
from edgekd.core.atomic_files import new_folder, remove_folder, write_file, writing
from edgekd.core.canonical import canonical_json, file_sha256, json_sha256
from edgekd.core.errors import DeviceError, EngineMismatchError, HashError

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.core.power import Meter

ENGINE, RECORD = "model.engine", "engine.json"


class PrecisionError(DeviceError):
    """An engine computes less in a precision than it has to."""


@dataclass(frozen=True)
class Order:
    """How an engine is to be built, and by precision the least share that it has to compute in it."""

    wish: Wish = AS_THE_GRAPH
    shares: Mapping[str, float] = field(default_factory=dict)

    def require(self, slot: Slot, found: Mapping[str, Any] | None) -> None:
        """Raises PrecisionError where an engine that computes as `found` says does not do."""
        for precision, least in self.shares.items():
            of, part = share(found, precision) if found else ("", 0.0)
            if not found or part < least:
                told = ", ".join(f"{name} {each:.1%}" for name, each in found["share"][of].items()) if found else ""
                raise PrecisionError(
                    f"slot {slot.name}: the engine does not compute in {precision} as it has to",
                    expected=f"{least:.1%} of its {of or 'layers'} in {precision}",
                    found=told or "a runtime that does not say in what it computes",
                    fix="see what the builder falls back to, or ask for less; what was there is as it was",
                )


AS_IT_IS = Order()
"""The graph as it is, and nothing required."""


@dataclass(frozen=True)
class Engine:
    """An engine on disk, and what was written down when it was built."""

    folder: Path
    record: dict[str, Any]

    @property
    def file(self) -> Path:
        """The engine itself."""
        return self.folder / ENGINE

    @property
    def whole(self) -> bool:
        """Whether the file is as it was built."""
        return self.file.is_file() and file_sha256(self.file) == self.record.get("sha256")

    @property
    def self_test(self) -> dict[str, Any] | None:
        """The figures of its self-test; None where it had none."""
        found = _read(self.folder / SELF_TEST)
        return (
            {"latency": None, "scratch_bytes": None, **found}
            if found and isinstance(found.get("passed"), bool)
            else None
        )

    @property
    def passed(self) -> bool:
        """Whether it was tested and passed."""
        return bool((self.self_test or {}).get("passed"))

    @property
    def failed(self) -> bool:
        """Whether it was tested and did not pass."""
        tested = self.self_test
        return tested is not None and not tested["passed"]

    def stale(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """What is no longer as it was when the engine was built: each with what it was and what it is."""
        return stale(self.record, wanted)


def wanted_record(slot: Slot, runtime: Runtime, device: Device) -> dict[str, Any]:
    """What an engine for a slot has to be made from and on, to run on the device as it is."""
    return {
        "graph": slot.manifest.graph.sha256,
        "runtime": {"name": runtime.name, "version": runtime.version()},
        "built_on": device.engine_belongs_to(),
    }


def engine_folder(slot: Slot, wanted: dict[str, Any], form: Form = AS_SHIPPED) -> Path:
    """Return the folder of an engine of a form."""
    named = wanted if form.source == GRAPH else {**wanted, "source": form.source}
    if form.float_layers:
        named = {**named, "float_layers": list(form.float_layers)}
    return slot.engines / json_sha256(named)[:16]


def fitting_engine(slot: Slot, wanted: dict[str, Any]) -> Engine | None:
    """The engine for the device as it is; None where there is none.

    It is the first of `forms` that is there and did not fail its self-test; where all failed, the first.
    """
    there = [read_engine(engine_folder(slot, wanted, form)) for form in forms(slot, wanted)]
    found = [engine for engine in there if engine]
    return next((engine for engine in found if not engine.failed), found[0] if found else None)


def built_engine(slot: Slot, wanted: dict[str, Any], form: Form) -> Engine | None:
    """Return the engine of a form, or the one in float that took its place as kernels were missing; else None."""
    instead = read_engine(engine_folder(slot, wanted, ALL_FLOAT))
    took_its_place = instead if instead and instead.record.get("attempts") else None
    return read_engine(engine_folder(slot, wanted, form)) or took_its_place


def read_engine(folder: Path) -> Engine | None:
    """The engine in a folder; None where there is none, or what is known of it cannot be read."""
    record = _read(folder / RECORD)
    known = record and all(isinstance(record.get(name), dict) for name in ("runtime", "built_on"))
    return Engine(folder, record) if record and known else None


def engine_of(slot: Slot | None) -> Engine | None:
    """The engine of a slot that is, or was last, in service; None where there is none, as `read_engine` says."""
    return read_engine(slot.engine) if slot and slot.engine else None


def build_engine(slot: Slot, runtime: Runtime, wanted: dict[str, Any], order: Order = AS_IT_IS) -> Engine:
    """Build an engine into its folder, which appears when all of it is there, in place of what is in it.

    Where the runtime has no kernel for a layer, that layer is built in float, and at last the whole network; the record
    lists these attempts. Raises DeviceError, SpecError; PrecisionError where the engine does not compute as it has to.
    What was there then stays.
    """
    wish: Wish | None = order.wish
    attempts: list[dict[str, Any]] = []
    while True:
        assert wish is not None
        try:
            # Under the name of what was asked for, so that it is found again; what it became is in the record.
            form = Form(wish.source, order.wish.float_layers if wish.source == order.wish.source else ())
            folder = engine_folder(slot, wanted, form)
            return _build_once(slot, runtime, wanted, replace(order, wish=wish), attempts, folder)
        except UnimplementedLayerError as error:
            with networks.opened(slot.graph) as graph:
                following = request_without(wish, error.node, graph, len(attempts) + 1)
            attempts.append({"float_layers": list(wish.float_layers), "node": error.node, "log": list(error.log)})
            if following is None:
                raise
            wish = following


def _build_once(
    slot: Slot, runtime: Runtime, wanted: dict[str, Any], order: Order, attempts: list[dict[str, Any]], folder: Path
) -> Engine:
    wish = order.wish
    with new_folder(folder) as temporary:
        began = runtime.clock()
        file = temporary / ENGINE
        with writing(folder):
            made = runtime.build(slot, file, wish)
        seconds = runtime.clock() - began
        found = _realized(runtime, file)
        order.require(slot, found["realized"])
        record = {
            **made.more,
            **found,
            **wanted,
            "source": wish.source,
            "precision": made.precision,
            "allowed": list(made.allowed),
            "fallbacks": list(made.fallbacks),
            "float_layers": list(wish.float_layers),
            "attempts": attempts,
            "seconds": round(seconds, 3),
            "bytes": file.stat().st_size,
            "sha256": file_sha256(file),
        }
        write_file(temporary / RECORD, canonical_json(record))
        if folder.exists():
            remove_folder(folder)
    return Engine(folder, record)


def require_engine(slot: Slot, wanted: dict[str, Any]) -> Engine:
    """The engine of a slot for the device as it is, undamaged. Raises EngineMismatchError, HashError."""
    found = fitting_engine(slot, wanted)
    if found is None:
        used = engine_of(slot)
        changed = ", ".join(f"{each['what']} {each['now']}" for each in used.stale(wanted)) if used else ""
        raise EngineMismatchError(
            f"slot {slot.name}: no engine for this device as it is",
            expected=f"one for {changed or 'this runtime'}",
            found="one that was built before" if used else "none",
            fix=f"build --slot {slot.name}",
        )
    if not found.whole:
        expected = f"SHA-256 {found.record.get('sha256')}"
        raise HashError(f"{found.file}: damaged", expected=expected, fix=f"build --slot {slot.name}")
    return found


def _realized(runtime: Runtime, file: Path) -> dict[str, Any]:
    """What an engine computes in which precision, None where its runtime does not say, and then perhaps why."""
    try:
        layers = runtime.layers(file)
    except DeviceError as error:
        return {"realized": None, "unread": str(error)}
    return {"realized": None if layers is None else realized(layers), "unread": None}


def latencies(
    slot: Slot, runtime: Runtime, engine: Engine, iterations: int, seconds: float, meter: Meter | None = None
) -> dict[str, Any]:
    """Time the engine alone, for at least so many runs and so long; then its energy. Raises DeviceError.

    meter: where there is one; `energy` is null, and `refused` says why, where there is none.
    """
    import numpy as np

    from edgekd.core.benchmark import alone, benchmark
    from edgekd.core.detection.preprocess import to_tensor
    from edgekd.core.detection.types import spec_from_json

    watched = runtime.times(engine.file, iterations, seconds)
    if watched is not None:
        told = alone(np.array(watched, np.float64) * 1000)
        return _with_energy(told, None, f"{runtime.name} runs engines in a process of its own")
    how = spec_from_json(slot.manifest.detector).preprocess
    noise = np.random.RandomState(0).randint(0, 256, (how.height, how.width, 3)).astype(np.uint8)
    batch = to_tensor(noise, how)
    with closing(runtime.load(engine.file)) as session:
        timing = benchmark(
            session,
            lambda frame: (frame, None),
            lambda output, context: None,
            [batch],
            min_iterations=iterations,
            min_seconds=seconds,
            clock=runtime.clock,
        )
        return _with_energy(alone(timing.total_ms), *_energy(meter, lambda: session.run(batch), seconds))


def _energy(meter: Meter | None, work: Callable[[], object], seconds: float) -> tuple[dict[str, Any] | None, str]:
    """The energy of a run; None, and why, where it cannot be told."""
    from edgekd.core.power.energy import measure_energy

    if meter is None:
        return None, "no sensor here that may be read"
    try:
        return measure_energy(meter, {"": work}, seconds)[""].as_json(), ""
    except OSError as error:
        return None, str(error)


def _with_energy(told: dict[str, Any], energy: dict[str, Any] | None, why: str) -> dict[str, Any]:
    refused = [] if energy else [f"energy: {why}"]
    return {**told, "refused": [*told["refused"], *refused], "energy": energy}


def stale(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what has changed since a record was made, each with its value then and now."""
    was, now = _belongings(record), _belongings(wanted)
    return [{"what": name, "built": was.get(name), "now": now[name]} for name in now if was.get(name) != now[name]]


def _belongings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine belongs to, by what people call it."""
    runtime = record["runtime"]
    return {"runtime": runtime.get("name"), "version": runtime.get("version"), **record["built_on"]}


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
