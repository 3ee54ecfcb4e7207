"""Engines in a slot: one folder for each state of the device that one was built on, with what is known of it beside it.

The engine's file has nothing in it but the engine, so that other programs, such as DeepStream, can load it.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.device import Device
from edgekd.agent.slots import SELF_TEST, Slot
from edgekd.canonical import canonical_json, file_sha256, json_sha256
from edgekd.errors import EngineMismatchError, HashError
from edgekd.files import new_folder, remove_folder, write_file, writing

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.power import Meter

ENGINE, RECORD = "model.engine", "engine.json"


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
        return found if found and isinstance(found.get("passed"), bool) else None

    def stale(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """What is no longer as it was when the engine was built: each with what it was and what it is."""
        was, now = _belongings(self.record), _belongings(wanted)
        return [{"what": name, "built": was.get(name), "now": now[name]} for name in now if was.get(name) != now[name]]


def wanted_record(slot: Slot, runtime: Runtime, device: Device) -> dict[str, Any]:
    """What an engine for a slot has to be made from and on, to run on the device as it is."""
    return {
        "graph": slot.manifest.graph.sha256,
        "runtime": {"name": runtime.name, "version": runtime.version()},
        "built_on": device.engine_belongs_to(),
    }


def engine_folder(slot: Slot, wanted: dict[str, Any]) -> Path:
    """Where an engine lies."""
    return slot.engines / json_sha256(wanted)[:16]


def read_engine(folder: Path) -> Engine | None:
    """The engine in a folder; None where there is none, or what is known of it cannot be read."""
    record = _read(folder / RECORD)
    known = record and all(isinstance(record.get(name), dict) for name in ("runtime", "built_on"))
    return Engine(folder, record) if record and known else None


def build_engine(slot: Slot, runtime: Runtime, wanted: dict[str, Any]) -> Engine:
    """Build an engine into its folder, which appears when all of it is there. Raises DeviceError, SpecError."""
    folder = engine_folder(slot, wanted)
    if folder.exists():
        remove_folder(folder)
    with new_folder(folder) as temporary:
        began = runtime.clock()
        with writing(folder):
            runtime.build(slot, temporary / ENGINE)
        seconds = runtime.clock() - began
        file = temporary / ENGINE
        record = {**wanted, "seconds": round(seconds, 3), "bytes": file.stat().st_size, "sha256": file_sha256(file)}
        write_file(temporary / RECORD, canonical_json(record))
    return Engine(folder, record)


def require_engine(slot: Slot, wanted: dict[str, Any]) -> Engine:
    """The engine of a slot for the device as it is, undamaged. Raises EngineMismatchError, HashError."""
    found = read_engine(engine_folder(slot, wanted))
    if found is None:
        used = read_engine(slot.engine) if slot.engine else None
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


def layer_counts(runtime: Runtime, engine: Engine) -> dict[str, int] | None:
    """How many layers compute in each precision; None where the runtime does not say."""
    layers = runtime.layers(engine.file)
    if layers is None:
        return None
    precisions = sorted(layer.precision for layer in layers)
    return {precision: precisions.count(precision) for precision in precisions}


def latencies(
    slot: Slot, runtime: Runtime, engine: Engine, iterations: int, seconds: float, meter: Meter | None = None
) -> dict[str, Any]:
    """Time the engine alone, for at least so many runs and so long; then its energy. Raises DeviceError.

    meter: where there is one; `energy` is null, and `refused` says why, where there is none.
    """
    import numpy as np

    from edgekd.benchmark import benchmark
    from edgekd.detectors.preprocess import to_tensor
    from edgekd.detectors.types import spec_from_json
    from edgekd.power.energy import measure_energy

    how = spec_from_json(slot.manifest.detector).preprocess
    noise = np.random.RandomState(0).randint(0, 256, (how.height, how.width, 3)).astype(np.uint8)
    batch, energy, why = to_tensor(noise, how), None, "no sensor here that may be read"
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
        if meter is not None:
            try:
                work = {"": lambda: session.run(batch)}
                energy = measure_energy(meter, work, seconds)[""].as_json()
            except OSError as error:
                why = str(error)
    told = timing.summary()
    told["refused"] += [] if energy else [f"energy: {why}"]
    kept = {name: told[name] for name in ("iterations", "fps", "refused", "inference_ms", "slow_down", "outliers")}
    return {**kept, "energy": energy}


def _belongings(record: dict[str, Any]) -> dict[str, Any]:
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
