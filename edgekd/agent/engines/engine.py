"""Engines in a slot: a folder for each state of the device that one was built on, with its record beside it.

The file of an engine has nothing but the engine, so that other programs, such as DeepStream, can load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.engines.choice import forms
from edgekd.agent.engines.kernel_fallback import options_without
from edgekd.agent.engines.records import (
    ALL_FLOAT,
    AS_SHIPPED,
    EngineKey,
    EngineRecord,
    FailedBuild,
    Form,
    RuntimeVersion,
    SelfTest,
    folder_name,
    record_from_json,
    self_test_from_json,
)
from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.precision import Realized, realized
from edgekd.agent.runtimes.types import BuildOptions, UnimplementedLayerError
from edgekd.agent.state.documents import read_object
from edgekd.agent.state.slots import SELF_TEST, Slot
from edgekd.core.atomic_files import new_folder, remove_folder, write_file, writing
from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError, EngineMismatchError, HashError

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.state.device import Device

ENGINE, RECORD = "model.engine", "engine.json"


class PrecisionError(DeviceError):
    """The share of an engine in a precision is below its minimum."""


@dataclass(frozen=True)
class EngineBuildRequest:
    """Options of a build, and the minimum share of the engine by precision."""

    options: BuildOptions = field(default_factory=BuildOptions)
    shares: Mapping[str, float] = field(default_factory=dict)

    def require(self, slot: Slot, report: Realized | None) -> None:
        """Raise PrecisionError where an engine with this report has too small a share of a precision."""
        for precision, minimum in self.shares.items():
            unit, share = report.share_of(precision) if report else ("", 0.0)
            if not report or share < minimum:
                shares = report.shares_in(unit).items() if report else ()
                raise PrecisionError(
                    f"slot {slot.name}: too little of the engine computes in {precision}",
                    expected=f"{minimum:.1%} of its {unit or 'layers'} in {precision}",
                    found=", ".join(f"{name} {each:.1%}" for name, each in shares)
                    or "a runtime that does not report precisions",
                    fix="see the fallbacks of the builder, or require less; an earlier engine stays",
                )


@dataclass(frozen=True)
class Engine:
    """An engine on disk, and the record of its build."""

    folder: Path
    record: EngineRecord

    @property
    def name(self) -> str:
        """Name of its folder, which identifies it in a slot."""
        return self.folder.name

    @property
    def file(self) -> Path:
        """The engine itself."""
        return self.folder / ENGINE

    @property
    def whole(self) -> bool:
        """True if the file is unchanged since the build."""
        return self.file.is_file() and file_sha256(self.file) == self.record.sha256

    @property
    def self_test(self) -> SelfTest | None:
        """Result of its self-test; None without one."""
        document = read_object(self.folder / SELF_TEST)
        try:
            return self_test_from_json(document) if document else None
        except (KeyError, TypeError):
            return None

    @property
    def passed(self) -> bool:
        """True if it was tested and passed."""
        test = self.self_test
        return test is not None and test.passed

    @property
    def failed(self) -> bool:
        """True if it was tested and failed."""
        test = self.self_test
        return test is not None and not test.passed


def engine_key(slot: Slot, runtime: Runtime, device: Device) -> EngineKey:
    """Return the key of an engine of a slot that runs on the device in its current state."""
    version = RuntimeVersion(runtime.name, runtime.version())
    return EngineKey(slot.manifest.graph.sha256, version, device.engine_belongs_to())


def engine_folder(slot: Slot, key: EngineKey, form: Form = AS_SHIPPED) -> Path:
    """Return the folder of an engine of a form."""
    return slot.engines / folder_name(key, form)


def fitting_engine(slot: Slot, key: EngineKey) -> Engine | None:
    """Return the engine for the device in its current state; None where there is none.

    It is the first of `forms` that did not fail its self-test; where all failed, the first.
    """
    engines = [each for each in (read_engine(engine_folder(slot, key, form)) for form in forms(slot, key)) if each]
    return next((engine for engine in engines if not engine.failed), engines[0] if engines else None)


def built_engine(slot: Slot, key: EngineKey, form: Form) -> Engine | None:
    """Return the engine of a form, or the one in float that replaced it as kernels were missing; else None."""
    in_float = read_engine(engine_folder(slot, key, ALL_FLOAT))
    replacement = in_float if in_float and in_float.record.attempts else None
    return read_engine(engine_folder(slot, key, form)) or replacement


def read_engine(folder: Path) -> Engine | None:
    """Return the engine in a folder; None where there is none, or its record cannot be read."""
    document = read_object(folder / RECORD)
    try:
        return Engine(folder, record_from_json(document)) if document else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def engine_of(slot: Slot | None) -> Engine | None:
    """Return the engine of a slot that is, or was last, in service; None where there is none that can be read."""
    return read_engine(slot.engine) if slot and slot.engine else None


def build_engine(
    slot: Slot, runtime: Runtime, key: EngineKey, request: EngineBuildRequest = EngineBuildRequest()
) -> Engine:
    """Build an engine into its folder, which appears complete, in place of an earlier one.

    Where the runtime has no kernel for a layer, that layer is built in float, and at last the whole network; the record
    lists these attempts. Raises DeviceError, SpecError; PrecisionError where a share is too small. An earlier engine
    then stays.
    """
    options = request.options
    attempts: tuple[FailedBuild, ...] = ()
    while True:
        try:
            # Under the name of the requested form, so that it is found again; the record has the form that was built.
            form = Form(
                options.source, request.options.float_layers if options.source == request.options.source else ()
            )
            folder = engine_folder(slot, key, form)
            return _build_once(slot, runtime, key, replace(request, options=options), attempts, folder)
        except UnimplementedLayerError as error:
            attempts = (*attempts, FailedBuild(options.float_layers, error.node, error.log))
            with networks.opened(slot.graph) as graph:
                following = options_without(options, error.node, graph, len(attempts))
            if following is None:
                raise
            options = following


def _build_once(
    slot: Slot,
    runtime: Runtime,
    key: EngineKey,
    request: EngineBuildRequest,
    attempts: tuple[FailedBuild, ...],
    folder: Path,
) -> Engine:
    options = request.options
    with new_folder(folder) as temporary:
        began = runtime.clock()
        file = temporary / ENGINE
        with writing(folder):
            result = runtime.build(slot, file, options)
        seconds = runtime.clock() - began
        report, unread = _realized(runtime, file)
        request.require(slot, report)
        record = EngineRecord(
            key,
            Form(options.source, options.float_layers),
            result.details,
            report,
            unread,
            result.precision,
            tuple(result.allowed),
            tuple(result.fallbacks),
            attempts,
            round(seconds, 3),
            file.stat().st_size,
            file_sha256(file),
        )
        write_file(temporary / RECORD, canonical_json(to_plain(record)))
        if folder.exists():
            remove_folder(folder)
    return Engine(folder, record)


def require_engine(slot: Slot, key: EngineKey) -> Engine:
    """Return the engine of a slot for the device in its current state. Raises EngineMismatchError, HashError."""
    engine = fitting_engine(slot, key)
    if engine is None:
        earlier = engine_of(slot)
        changes = key.changes_since(earlier.record.key) if earlier else []
        raise EngineMismatchError(
            f"slot {slot.name}: no engine for this device as it is",
            expected=f"one for {', '.join(f'{each.what} {each.now}' for each in changes) or 'this runtime'}",
            found="one that was built before" if earlier else "none",
            fix=f"build --slot {slot.name}",
        )
    if not engine.whole:
        expected = f"SHA-256 {engine.record.sha256}"
        raise HashError(f"{engine.file}: damaged", expected=expected, fix=f"build --slot {slot.name}")
    return engine


def _realized(runtime: Runtime, file: Path) -> tuple[Realized | None, str | None]:
    """Return the precisions that an engine computes in; None, and perhaps the reason, where they are unknown."""
    try:
        layers = runtime.layers(file)
    except DeviceError as error:
        return None, str(error)
    return None if layers is None else realized(layers), None
