"""INT8 only where it pays: the form of a slot's network that is fastest on this device and passes the self-test.

The engine as shipped and the one in float are built and profiled layer by layer, then a few with some layers in float.
All of them are measured in turns, and the shipped one stays unless another is faster beyond doubt. Engines that were
built are found again by the next run, so that a power cut costs time and nothing else; the choice takes effect by one
rename, of its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.choice import ALL_FLOAT, AS_SHIPPED, FILE, Choice, Form, keep_choice, read_choice
from edgekd.agent.commands import built_json, engine_json
from edgekd.agent.engines import Engine, engine_folder, stale
from edgekd.agent.precision_search import LayerGraph, Profile, Search, layer_graph, profile_of
from edgekd.agent.rebuild_engine import tested_engine
from edgekd.agent.runtimes import networks
from edgekd.core.atomic_files import remove_folder, writing
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.commands import Camera
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.slots import Slot

BUILDS = 4
"""Engines with some layers in float that are built at most: each takes minutes on a Jetson."""
PROFILES = 3
"""How often engines are profiled, in turns; of each layer the least time counts, which is disturbed least."""
BLOCK = 10
"""Runs of an engine before it is another's turn."""
LEAST_ROUNDS = 20
MOST_ROUNDS = 100
"""More rounds of one engine each are put together: a comparison of so many says all that there is to say."""
LEAST_GAIN = 0.02
"""Least gain for which the shipped engine is replaced: smaller ones may be gone on another day."""


@dataclass(frozen=True)
class Effort:
    """Effort of a search. builds: engines besides the two controls; iterations, seconds: of each in the comparison."""

    builds: int = BUILDS
    iterations: int = 200
    seconds: float = 5.0


@dataclass(frozen=True)
class Candidate:
    """An engine of a form, built and tested."""

    form: Form
    engine: Engine


def tune(camera: Camera, effort: Effort) -> dict[str, Any]:
    """Choose the fastest form for this device. Raises DeviceError where none passes its self-test."""
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        wanted = camera.wanted(slot)
        graph = layers_with_qdq(slot)
        candidates = [_built(camera, slot, wanted, form) for form in (AS_SHIPPED, ALL_FLOAT)]
        refused = _search(camera, slot, wanted, graph, candidates, effort.builds)
        rounds_ms = measured(slot, runtime, [each.engine.file for each in candidates], effort)
        passed = [each.engine.passed for each in candidates]
        best = fastest(rounds_ms, passed)
        if best is None:
            raise DeviceError(
                f"slot {slot.name}: no engine passes its self-test",
                expected="the one from the graph, or one with more layers in float",
                fix="keep what is in service; report this with the device's status",
            )
        limits = {"builds": effort.builds, "rounds": len(rounds_ms[0]), "least_gain": LEAST_GAIN}
        found = [_measurements(each, ms, rounds_ms[0]) for each, ms in zip(candidates, rounds_ms)]  # noqa: B905
        chosen = candidates[best]
        choice = Choice(chosen.form, wanted["graph"], wanted["runtime"], wanted["built_on"], [*found, *refused], limits)
        return _kept(slot, wanted, choice, chosen.engine)


def adopt(camera: Camera, path: Path) -> dict[str, Any]:
    """Build and test the engine of a choice that was made elsewhere or before, and make it the slot's.

    Raises DeviceError where the file is damaged or for another graph or runtime, or the engine does not pass.
    """
    with camera.state.locked():
        slot = camera.chosen_slot()
        wanted = camera.wanted(slot)
        choice = read_choice(path, wanted)
        unknown = sorted(set(choice.form.float_layers) - set(layers_with_qdq(slot).names))
        if unknown:
            raise DeviceError(f"{path}: layers that the graph does not have", found=", ".join(unknown[:3]))
        engine = tested_engine(camera, slot, wanted, choice.form)
        if not engine.passed:
            raise DeviceError(
                f"{path}: its engine does not pass the self-test here", fix="tune without --choice; nothing was changed"
            )
        return _kept(slot, wanted, choice, engine)


def reset(camera: Camera) -> dict[str, Any]:
    """Forget the choice of a slot: its engine is built as shipped again. Raises DeviceError."""
    with camera.state.locked():
        slot = camera.chosen_slot()
        wanted = camera.wanted(slot)
        path = slot.path / FILE
        changed = path.exists()
        if changed:
            with writing(path):
                path.unlink()
        engine = tested_engine(camera, slot, wanted, AS_SHIPPED)
        shipped = Choice(AS_SHIPPED, wanted["graph"], wanted["runtime"], wanted["built_on"])
        return _result(slot, wanted, shipped, engine, changed=changed)


def fastest(rounds_ms: Sequence[np.ndarray], passed: Sequence[bool]) -> int | None:
    """Return the index of the engine to choose; None where none passed its self-test. Pure.

    rounds_ms: of each engine float64 [rounds], milliseconds in the rounds that they shared; the first is the one as
    shipped, which stays unless another is faster by LEAST_GAIN and by more than chance.
    """
    import numpy as np

    from edgekd.core.statistics import SIGNIFICANT, compare

    eligible = [index for index, each in enumerate(passed) if each]
    if not passed[0]:
        return min(eligible, key=lambda index: float(np.median(rounds_ms[index])), default=None)
    others = [index for index in eligible if index]
    ratios = {index: compare(rounds_ms[index], rounds_ms[0]) for index in others}
    faster = [
        index
        for index, found in ratios.items()
        # The more engines are tried, the likelier one of them seems faster by chance.
        if found.differs and found.ratio < 1 - LEAST_GAIN and found.p_value * len(others) < SIGNIFICANT
    ]
    return min(faster, key=lambda index: ratios[index].ratio, default=0)


def measured(slot: Slot, runtime: Runtime, engines: Sequence[Path], effort: Effort) -> list[np.ndarray]:
    """Measure engines in turns: of each float64 [rounds], the median milliseconds of BLOCK runs. Raises DeviceError."""
    import numpy as np

    from edgekd.core.benchmark import Candidate as Lane
    from edgekd.core.benchmark import benchmark_interleaved
    from edgekd.core.detection.preprocess import to_tensor
    from edgekd.core.detection.types import spec_from_json

    rounds = max(LEAST_ROUNDS, -(-effort.iterations // BLOCK))
    by_own_watch = runtime.times(engines[0], BLOCK, 0.0)
    if by_own_watch is not None:
        return _in_turns(runtime, engines, rounds)
    how = spec_from_json(slot.manifest.detector).preprocess
    noise = np.random.RandomState(0).randint(0, 256, (how.height, how.width, 3)).astype(np.uint8)
    batch = to_tensor(noise, how)
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(runtime.load(each))) for each in engines]
        lanes = {
            str(index): Lane(session, lambda frame: (frame, None), lambda output, context: None)
            for index, session in enumerate(sessions)
        }
        timings = benchmark_interleaved(
            lanes,
            [batch],
            block=BLOCK,
            min_iterations=rounds * BLOCK,
            min_seconds=effort.seconds,
            clock=runtime.clock,
        )
    blocks = [timings[name].inference_ms.reshape(-1, BLOCK) for name in lanes]
    parts = (np.array_split(each, min(len(each), MOST_ROUNDS)) for each in blocks)
    return [np.array([np.median(part) for part in each]) for each in parts]


def _in_turns(runtime: Runtime, engines: Sequence[Path], rounds: int) -> list[np.ndarray]:
    """The same where runs are timed by a program of the runtime's own, which loads the engine each time."""
    import numpy as np

    found: list[list[float]] = [[] for _ in engines]
    order = list(range(len(engines)))
    for _ in range(rounds):
        for index in order:
            found[index].append(1000 * float(np.median(runtime.times(engines[index], BLOCK, 0.0) or ())))
        order.reverse()
    return [np.array(each) for each in found]


def layers_with_qdq(slot: Slot) -> LayerGraph:
    """The layers of a slot's graph. Raises DeviceError where none has Q/DQ."""
    with networks.opened(slot.graph) as opened:
        graph = layer_graph(opened)
    if not graph.names:
        raise DeviceError(f"slot {slot.name}: no layer has Q/DQ, so there is nothing to choose", fix="build")
    return graph


def _built(camera: Camera, slot: Slot, wanted: dict[str, Any], form: Form) -> Candidate:
    return Candidate(form, tested_engine(camera, slot, wanted, form))


def _search(
    camera: Camera,
    slot: Slot,
    wanted: dict[str, Any],
    graph: LayerGraph,
    candidates: list[Candidate],
    builds: int,
) -> list[dict[str, Any]]:
    """Build further candidates, guided by profiles, and add them; what became of those that cannot be built."""
    runtime, refused = camera.required_runtime(), []
    shipped, floating = _profiles(runtime, [each.engine for each in candidates], graph)
    search = Search(graph, shipped, floating)
    for _ in range(builds):
        names = search.propose()
        if names is None:
            break
        form = Form(float_layers=names)
        try:
            candidate = _built(camera, slot, wanted, form)
        except DeviceError as error:
            refused.append({**_form_json(form), "key": None, "passed": False, "found": str(error), "ms": None})
            continue
        before, after = _profiles(runtime, [candidates[0].engine, candidate.engine], graph)
        search.add(names, before, after)
        candidates.append(candidate)
    return refused


def _profiles(runtime: Runtime, engines: Sequence[Engine], graph: LayerGraph) -> list[Profile]:
    """Profiles of engines, taken in turns: of each layer the least time. Empty where the runtime times no layers."""
    runs = [[runtime.layers(each.file) or () for each in engines] for _ in range(PROFILES)]
    found = []
    for of_one in zip(*runs):  # noqa: B905
        times = ([layer.ms or 0.0 for layer in same] for same in zip(*of_one))  # noqa: B905
        found.append(profile_of([replace(layer, ms=min(ms)) for layer, ms in zip(of_one[0], times)], graph))  # noqa: B905
    return found


def _measurements(candidate: Candidate, rounds_ms: np.ndarray, shipped_ms: np.ndarray) -> dict[str, Any]:
    """Return the measurements of a candidate, for the file."""
    import numpy as np

    from edgekd.core.statistics import compare

    ratio = compare(rounds_ms, shipped_ms)
    tested = candidate.engine.self_test or {}
    return {
        **_form_json(candidate.form),
        "key": candidate.engine.folder.name,
        "passed": candidate.engine.passed,
        "found": None if candidate.engine.passed else f"self-test failed: errors {tested.get('error')}",
        "ms": {
            "p50": round(float(np.median(rounds_ms)), 4),
            "ratio": round(ratio.ratio, 4),
            "interval": [round(ratio.interval.low, 4), round(ratio.interval.high, 4)],
        },
    }


def _form_json(form: Form) -> dict[str, Any]:
    return {"source": form.source, "float_layers": list(form.float_layers)}


def _kept(slot: Slot, wanted: dict[str, Any], choice: Choice, engine: Engine) -> dict[str, Any]:
    """Make a choice the slot's, and remove the engines that nothing leads to any more."""
    changed = keep_choice(slot, choice)
    keep = {engine.folder, engine_folder(slot, wanted)}
    for folder in slot.engines.iterdir():
        if folder not in keep and folder.resolve() != slot.engine:
            remove_folder(folder)
    return _result(slot, wanted, choice, engine, changed=changed)


def _result(slot: Slot, wanted: Mapping[str, Any], choice: Choice, engine: Engine, *, changed: bool) -> dict[str, Any]:
    document = choice.as_json()
    return {
        "slot": slot.name,
        "changed": changed,
        "file": str(slot.path / FILE),
        **{name: document[name] for name in ("source", "float_layers", "candidates", "limits")},
        "stale": stale({"runtime": choice.runtime, "built_on": choice.built_on}, wanted),
        "engine": {**engine_json(engine), **built_json(engine)},
    }
