"""Latency and energy of engines by themselves, one at a time or interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.agent.runtimes.types import ON_CPU
from edgekd.agent.state.device import read_device
from edgekd.core.benchmark import FramePipeline, RunSummary, Stats, benchmark_interleaved, summarize, summarize_run
from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.detection.types import spec_from_json
from edgekd.core.documents import INLINE
from edgekd.core.power.energy import Energy, measure_energy
from edgekd.core.power.find import find_meter

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.runtimes.types import EngineSession, Runtime
    from edgekd.agent.state.slots import Slot
    from edgekd.core.power import Meter

BLOCK = 10
"""Consecutive runs of an engine in an interleaved measurement."""
MAX_ROUNDS = 100
"""Rounds of a comparison; consecutive rounds beyond are joined, as more do not make it more certain."""


@dataclass(frozen=True)
class LatencyReport:
    """Latency of an engine, and its energy.

    Args:
        inference_ms: Milliseconds of a run.
        energy: Energy of a run; null where `refused` has the reason.
    """

    run: RunSummary = field(metadata=INLINE)
    inference_ms: Stats
    energy: Energy | None = None


def measure_latency(
    slot: Slot,
    runtime: Runtime,
    engine: Path,
    iterations: int,
    seconds: float,
    meter: Meter | None = None,
    batch_size: int = 1,
) -> LatencyReport:
    """Time an engine for at least so many runs and so long; then measure its energy. Raises DeviceError.

    batch_size: frames of a run.
    """
    times = runtime.times(engine, iterations, seconds)
    if times is not None:
        reason = f"{runtime.name} runs engines in a process of its own"
        return _report(np.array(times, np.float64) * 1000, None, reason)
    batch = _noise(slot).repeat(batch_size, axis=0)
    with closing(runtime.load(engine)) as session:
        timings = benchmark_interleaved(
            {"": _engine_alone(session)},
            [batch],
            block=1,
            min_iterations=iterations,
            min_seconds=seconds,
            clock=runtime.clock,
        )
        return _report(timings[""].total_ms, *_energy(meter, lambda: session.run(batch), seconds))


def measure_on(
    camera: Camera, slot: Slot, engine: Path, iterations: int, seconds: float, batch_size: int = 1
) -> LatencyReport:
    """Time an engine, and measure its energy by the sensors of the camera. Raises DeviceError."""
    runtime, cards = camera.required_runtime(), read_device(camera.root).gpus
    meter = find_meter(camera.root, gpu=bool(cards) and runtime.name not in ON_CPU)
    return measure_latency(slot, runtime, engine, iterations, seconds, meter, batch_size)


def measure_interleaved(
    slot: Slot, runtime: Runtime, engines: Sequence[Path], rounds: int, seconds: float
) -> list[np.ndarray]:
    """Time engines in turns, at least so many rounds of BLOCK runs, and so long: medians in milliseconds, float64 [n].

    Raises DeviceError.
    """
    if runtime.times(engines[0], BLOCK, 0.0) is not None:
        return _interleaved_times(runtime, engines, rounds)
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(runtime.load(each))) for each in engines]
        timings = benchmark_interleaved(
            {str(index): _engine_alone(each) for index, each in enumerate(sessions)},
            [_noise(slot)],
            block=BLOCK,
            min_iterations=rounds * BLOCK,
            min_seconds=seconds,
            clock=runtime.clock,
        )
    blocks = [each.inference_ms.reshape(-1, BLOCK) for each in timings.values()]
    joined = (np.array_split(each, min(len(each), MAX_ROUNDS)) for each in blocks)
    return [np.array([np.median(part) for part in parts]) for parts in joined]


def _interleaved_times(runtime: Runtime, engines: Sequence[Path], rounds: int) -> list[np.ndarray]:
    """Time engines in turns by the runtime's own program, which loads an engine each time."""
    medians: list[list[float]] = [[] for _ in engines]
    order = list(range(len(engines)))
    for _ in range(rounds):
        for index in order:
            medians[index].append(1000 * float(np.median(runtime.times(engines[index], BLOCK, 0.0) or ())))
        order.reverse()
    return [np.array(each) for each in medians]


def _noise(slot: Slot) -> np.ndarray:
    """Return an input of noise, the same each time."""
    preprocess = spec_from_json(slot.manifest.detector).preprocess
    frame = np.random.RandomState(0).randint(0, 256, (preprocess.height, preprocess.width, 3)).astype(np.uint8)
    return to_tensor(frame, preprocess)


def _engine_alone(session: EngineSession) -> FramePipeline:
    return FramePipeline(session, lambda batch: (batch, None), lambda output, context: None)


def _energy(meter: Meter | None, work: Callable[[], object], seconds: float) -> tuple[Energy | None, str]:
    """Measure the energy of a run; return None and the reason where that is not possible."""
    if meter is None:
        return None, "no sensor here that may be read"
    try:
        return measure_energy(meter, {"": work}, seconds)[""], ""
    except OSError as error:
        return None, str(error)


def _report(samples_ms: np.ndarray, energy: Energy | None, reason: str) -> LatencyReport:
    run = summarize_run(samples_ms)
    if energy is None:
        run = replace(run, refused=[*run.refused, f"energy: {reason}"])
    return LatencyReport(run, summarize(samples_ms), energy)
