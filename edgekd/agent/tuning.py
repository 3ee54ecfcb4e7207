"""INT8 only where it is faster: the form of a slot's network that is fastest on this device and passes the self-test.

The shipped engine and the one in float are profiled by layer, then a few with some layers in float; all are measured
interleaved. The choice takes effect by one rename, of its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.engines.choice import FILE, Choice, Measurement, RelativeTime, TuningLimits, keep_choice, read_choice
from edgekd.agent.engines.engine import Engine, engine_folder
from edgekd.agent.engines.records import ALL_FLOAT, AS_SHIPPED, EngineKey, EnvironmentChange, Form
from edgekd.agent.precision_search import LayerGraph, PrecisionSearch, Profile, layer_graph, profile_of
from edgekd.agent.rebuild_engine import failure, tested_engine
from edgekd.agent.runtimes import networks
from edgekd.agent.status import EngineBuildStatus, built_engine_status
from edgekd.core.atomic_files import remove_folder, writing
from edgekd.core.documents import INLINE
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.state.slots import Slot

MAX_BUILDS = 4
"""Default maximum of engines with some layers in float: each takes minutes on a Jetson."""
PROFILES = 3
"""Interleaved profiles of each engine; the minimum of each layer counts, as other programs only add to it."""
MIN_ROUNDS = 20
MIN_GAIN = 0.02
"""Minimum gain over the shipped engine: smaller ones may be gone on another day."""


@dataclass(frozen=True)
class TuningEffort:
    """Effort of a search. builds: engines besides the two controls; iterations, seconds: of each in the comparison."""

    builds: int = MAX_BUILDS
    iterations: int = 200
    seconds: float = 5.0


@dataclass(frozen=True)
class TunedForm:
    """An engine of a form, built and tested."""

    form: Form
    engine: Engine


@dataclass(frozen=True)
class TuneResult:
    """Result of `tune`.

    Args:
        slot: Name of the slot.
        changed: False where the slot had the same choice already.
        file: Path of the choice.
        candidates: Forms that were compared, the shipped one first; empty without a comparison.
        limits: Limits of the comparison; null without one.
        stale: Changes of the device since the choice.
        engine: The engine of that form.
    """

    slot: str
    changed: bool
    file: Path
    form: Form = field(metadata=INLINE)
    candidates: Sequence[Measurement]
    limits: TuningLimits | None
    stale: Sequence[EnvironmentChange]
    engine: EngineBuildStatus


def tune(camera: Camera, effort: TuningEffort) -> TuneResult:
    """Choose the fastest form for this device. Raises DeviceError where none passes its self-test."""
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        key = camera.engine_key(slot)
        graph = layers_with_qdq(slot)
        candidates = [_build(camera, slot, key, form) for form in (AS_SHIPPED, ALL_FLOAT)]
        refused = _search(camera, slot, key, graph, candidates, effort.builds)
        rounds_ms = measure(slot, runtime, [each.engine.file for each in candidates], effort)
        best = fastest(rounds_ms, [each.engine.passed for each in candidates])
        if best is None:
            raise DeviceError(
                f"slot {slot.name}: no engine passes its self-test",
                expected="the one from the graph, or one with more layers in float",
                fix="keep the engine in service; report this with the device's status",
            )
        limits = TuningLimits(effort.builds, len(rounds_ms[0]), MIN_GAIN)
        measured = [_measurement(each, ms, rounds_ms[0]) for each, ms in zip(candidates, rounds_ms)]  # noqa: B905
        chosen = candidates[best]
        choice = Choice(chosen.form, key, (*measured, *refused), limits)
        return _keep(slot, key, choice, chosen.engine)


def adopt(camera: Camera, path: Path) -> TuneResult:
    """Build and test the engine of a choice in a file, and make it the slot's choice.

    Raises DeviceError where the file is damaged or for another graph or runtime, or the engine does not pass.
    """
    with camera.state.locked():
        slot = camera.chosen_slot()
        key = camera.engine_key(slot)
        choice = read_choice(path, key)
        unknown = sorted(set(choice.form.float_layers) - set(layers_with_qdq(slot).names))
        if unknown:
            raise DeviceError(f"{path}: layers that the graph does not have", found=", ".join(unknown[:3]))
        engine = tested_engine(camera, slot, key, choice.form)
        if not engine.passed:
            raise DeviceError(
                f"{path}: its engine does not pass the self-test here", fix="tune without --choice; nothing was changed"
            )
        return _keep(slot, key, choice, engine)


def reset(camera: Camera) -> TuneResult:
    """Remove the choice of a slot, and build its engine as shipped. Raises DeviceError."""
    with camera.state.locked():
        slot = camera.chosen_slot()
        key = camera.engine_key(slot)
        path = slot.path / FILE
        changed = path.exists()
        if changed:
            with writing(path):
                path.unlink()
        engine = tested_engine(camera, slot, key, AS_SHIPPED)
        return _result(slot, key, Choice(AS_SHIPPED, key), engine, changed=changed)


def fastest(rounds_ms: Sequence[np.ndarray], passed: Sequence[bool]) -> int | None:
    """Return the index of the engine to choose; None where none passed its self-test. Pure.

    rounds_ms: of each engine float64 [rounds], milliseconds in their common rounds; the first is the one as shipped,
    which stays unless another is faster by MIN_GAIN, significantly.
    """
    import numpy as np

    from edgekd.core.statistics import SIGNIFICANT, compare

    eligible = [index for index, each in enumerate(passed) if each]
    if not passed[0]:
        return min(eligible, key=lambda index: float(np.median(rounds_ms[index])), default=None)
    others = [index for index in eligible if index]
    comparisons = {index: compare(rounds_ms[index], rounds_ms[0]) for index in others}
    faster = [
        index
        for index, each in comparisons.items()
        # Bonferroni correction: the more engines, the likelier one of them seems faster by chance.
        if each.differs and each.ratio < 1 - MIN_GAIN and each.p_value * len(others) < SIGNIFICANT
    ]
    return min(faster, key=lambda index: comparisons[index].ratio, default=0)


def measure(slot: Slot, runtime: Runtime, engines: Sequence[Path], effort: TuningEffort) -> list[np.ndarray]:
    """Measure engines interleaved: medians of each in milliseconds, float64 [rounds]. Raises DeviceError."""
    from edgekd.agent.engines.latency import BLOCK, measure_interleaved

    rounds = max(MIN_ROUNDS, -(-effort.iterations // BLOCK))
    return measure_interleaved(slot, runtime, engines, rounds, effort.seconds)


def layers_with_qdq(slot: Slot) -> LayerGraph:
    """Return the layers of a slot's graph. Raises DeviceError where none has Q/DQ."""
    with networks.opened(slot.graph) as opened:
        graph = layer_graph(opened)
    if not graph.names:
        raise DeviceError(f"slot {slot.name}: no layer has Q/DQ, so there is nothing to choose", fix="build")
    return graph


def _build(camera: Camera, slot: Slot, key: EngineKey, form: Form) -> TunedForm:
    return TunedForm(form, tested_engine(camera, slot, key, form))


def _search(
    camera: Camera,
    slot: Slot,
    key: EngineKey,
    graph: LayerGraph,
    candidates: list[TunedForm],
    builds: int,
) -> list[Measurement]:
    """Build further candidates, guided by profiles, and add them; return those that could not be built."""
    runtime, refused = camera.required_runtime(), []
    shipped, floating = _profiles(runtime, [each.engine for each in candidates], graph)
    search = PrecisionSearch(graph, shipped, floating)
    for _ in range(builds):
        names = search.propose()
        if names is None:
            break
        form = Form(float_layers=names)
        try:
            candidate = _build(camera, slot, key, form)
        except DeviceError as error:
            refused.append(Measurement(form, None, False, str(error), None))
            continue
        before, after = _profiles(runtime, [candidates[0].engine, candidate.engine], graph)
        search.add(names, before, after)
        candidates.append(candidate)
    return refused


def _profiles(runtime: Runtime, engines: Sequence[Engine], graph: LayerGraph) -> list[Profile]:
    """Profile engines interleaved, with the minimum of each layer. Empty where the runtime times no layers."""
    runs = [[runtime.layers(each.file) or () for each in engines] for _ in range(PROFILES)]
    profiles = []
    for of_engine in zip(*runs):  # noqa: B905
        times = ([layer.ms or 0.0 for layer in same] for same in zip(*of_engine))  # noqa: B905
        fastest_layers = [replace(layer, ms=min(ms)) for layer, ms in zip(of_engine[0], times)]  # noqa: B905
        profiles.append(profile_of(fastest_layers, graph))
    return profiles


def _measurement(candidate: TunedForm, rounds_ms: np.ndarray, shipped_ms: np.ndarray) -> Measurement:
    """Return the measurement of a candidate."""
    import numpy as np

    from edgekd.core.statistics import compare

    engine, comparison = candidate.engine, compare(rounds_ms, shipped_ms)
    interval = round(comparison.interval.low, 4), round(comparison.interval.high, 4)
    time = RelativeTime(round(float(np.median(rounds_ms)), 4), round(comparison.ratio, 4), interval)
    return Measurement(candidate.form, engine.name, engine.passed, None if engine.passed else failure(engine), time)


def _keep(slot: Slot, key: EngineKey, choice: Choice, engine: Engine) -> TuneResult:
    """Make a choice the slot's, and remove engines without a use."""
    changed = keep_choice(slot, choice)
    keep = {engine.folder, engine_folder(slot, key)}
    for folder in slot.engines.iterdir():
        if folder not in keep and folder.resolve() != slot.engine:
            remove_folder(folder)
    return _result(slot, key, choice, engine, changed=changed)


def _result(slot: Slot, key: EngineKey, choice: Choice, engine: Engine, *, changed: bool) -> TuneResult:
    return TuneResult(
        slot.name,
        changed,
        slot.path / FILE,
        choice.form,
        choice.candidates,
        choice.limits,
        key.changes_since(choice.key),
        built_engine_status(engine),
    )
