"""The result of `edgekd bench` as text, for the terminal and the page: rows of its table, and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.core.benchmark import Stats
    from edgekd.core.power.energy import Energy
    from edgekd.evaluation.bench_result import ArtifactResult, BenchResult, Conditions, OtherArtifact, SustainedRun
    from edgekd.evaluation.cost import CostPerMillion

PARTS = ("decode", "preprocess", "inference", "postprocess")
STATISTICS = ("p50", "p90", "p99", "p999", "mean")


def bench_rows(result: ArtifactResult) -> list[list[str]]:
    """Return a table in milliseconds: camera to detections with its parts, and the engine alone."""
    rows = [["camera to detections", *_statistics(result.total_ms)]]
    rows += [[f"  {part}", *_statistics(times)] for part in PARTS if (times := getattr(result, f"{part}_ms"))]
    together = f", {result.batch} at once" if result.batch > 1 else ""
    return [*rows, [f"engine only{together}", *_statistics(result.engine_ms)]]


def _statistics(times: Stats) -> list[str]:
    return [_with_interval(getattr(times, name), times.intervals[name]) for name in STATISTICS]


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a number and half of its interval."""
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ±{(interval[1] - interval[0]) / 2:.2f}" if interval else "")


def bench_lines(bench: BenchResult) -> Iterator[str]:
    """Yield a sentence for each result beside the table."""
    host, frames, result = bench.host, bench.frames, bench.result
    runs = ((result.fps, "camera to detections", 1), (result.engine_fps, "engine only", result.batch))
    for fps, state, batch in runs:
        if fps is not None:
            order = "one frame after the other" if batch == 1 else f"{batch} frames at once"
            yield f"{fps:.1f} FPS {state}, {order} ({result.basis})"
    if (throughput := result.throughput) and throughput.fps is not None and throughput.interval:
        low, high = throughput.interval
        yield f"{throughput.fps:.1f} FPS ({low:.1f} to {high:.1f}) with {throughput.streams} streams at once"
    start = result.cold_start
    yield f"cold start: {start.load_ms:.0f} ms to load, {start.first_ms:.1f} ms for the first inference"
    if slow := result.slow_down:
        yield f"slowed down after {slow.at_s:.0f} s: {slow.before_ms:.2f} ms before, {slow.after_ms:.2f} ms since"
    if (odd := result.outliers).count:
        beyond = f"took more than {odd.limit_ms:.2f} ms, one {odd.worst_ms:.2f}"
        yield f"{odd.count} frames ({odd.share:.1%}) {beyond}"
    if bench.sustained:
        yield _sustained_line(bench.sustained)
    if result.energy:
        yield from _energy_lines(result.energy)
    if result.cost:
        yield _cost_line(result.cost)
    yield f"{result.iterations} frames, {frames.source} ({_shapes(frames.shapes)})"
    yield f"{host.engine}, {host.threads} threads, {host.cpu}{_machine_state(bench.conditions)}"


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    names = [f"{width}x{height}" for width, height in shapes]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} sizes, {names[0]} to {names[-1]}"


def _machine_state(conditions: Conditions) -> str:
    after, setting = conditions.after, conditions.setting
    mode, locked = setting.power_mode, setting.clocks_locked
    facts = (
        (setting.governors, f"governor {', '.join(setting.governors)}"),
        (mode, f"power mode {mode and (mode.name or mode.id)}"),
        (locked is not None, "clocks locked" if locked else "not locked"),
        (after.cpu_mhz, f"CPU {after.cpu_mhz or 0:.0f} MHz"),
        (after.gpu_mhz, f"GPU {after.gpu_mhz or 0:.0f} MHz"),
        (after.temperature_c, f"{after.temperature_c or 0:.0f} °C"),
    )
    return "".join(f", {text}" for known, text in facts if known)


def _sustained_line(run: SustainedRun) -> str:
    rate = "no steady rate" if run.settled_fps is None else f"{run.settled_fps:.1f} FPS"
    when = ""
    if slow := run.slow_down:
        when = f", {slow.after_ms / slow.before_ms:.2f} times as long a frame after {slow.at_s:.0f} s"
    return f"sustained for {run.minutes:g} minutes: {rate}{when}"


def _energy_lines(energy: Energy) -> Iterator[str]:
    net = f"without {energy.idle_watts:.1f} W at rest"
    for mj, (low, high), what in (
        (energy.gross_mj, energy.gross_interval, "all that was drawn"),
        (energy.net_mj, energy.net_interval, net),
    ):
        yield f"{mj:.1f} mJ a frame ({low:.1f} to {high:.1f}), {what}: {energy.covers}"


def _cost_line(cost: CostPerMillion) -> str:
    known = (("electricity", cost.electricity), ("instance", cost.instance))
    parts = [f"{name} {value:.4g}" for name, value in known if value is not None]
    unknown = "unknown: energy or throughput was not measured"
    total = unknown if cost.total is None else f"{cost.total:.4g} {cost.currency or ''}".rstrip()
    return f"a million frames cost {total}" + (f" ({', '.join(parts)})" if parts else "")


def against_lines(other: OtherArtifact) -> Iterator[str]:
    """Yield a sentence for each comparison of the artifact with the other one."""
    for found, state in ((other.times_as_fast, "camera to detections"), (other.engine_times_as_fast, "engine only")):
        sure = "{:.3f} to {:.3f}, p {:.2g}, {} rounds".format(*found.interval, found.p_value, found.rounds)
        yield f"{state}: {found.ratio:.3f} times as fast as {other.artifact} ({sure}): {found.verdict}"
    if other.cost_change is not None:
        yield f"cost of a million frames: {other.cost_change:+.1%}"
