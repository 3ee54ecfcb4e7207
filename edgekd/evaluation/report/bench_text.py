"""The result of `edgekd bench` as text, for the terminal and the page: rows of its table, and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PARTS = ("decode", "preprocess", "inference", "postprocess")
STATISTICS = ("p50", "p90", "p99", "p999", "mean")


def bench_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a table in milliseconds: camera to detections with its parts, and the engine alone."""
    rows = [["camera to detections", *_statistics(result["total_ms"])]]
    rows += [[f"  {part}", *_statistics(times)] for part in PARTS if (times := result[f"{part}_ms"])]
    return [*rows, ["engine only", *_statistics(result["engine_ms"])]]


def _statistics(times: Mapping[str, Any]) -> list[str]:
    return [_with_interval(times[name], times["intervals"][name]) for name in STATISTICS]


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a number and half of its interval."""
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ±{(interval[1] - interval[0]) / 2:.2f}" if interval else "")


def bench_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each result beside the table."""
    host, frames, throughput = result["host"], result["frames"], result["throughput"]
    for name, state in (("fps", "camera to detections"), ("engine_fps", "engine only")):
        if result[name] is not None:
            yield f"{result[name]:.1f} FPS {state}, one frame after the other ({result['basis']})"
    if throughput and throughput["fps"] is not None:
        low, high = throughput["interval"]
        yield f"{throughput['fps']:.1f} FPS ({low:.1f} to {high:.1f}) with {throughput['streams']} streams at once"
    yield "cold start: {load_ms:.0f} ms to load, {first_ms:.1f} ms for the first inference".format(
        **result["cold_start"]
    )
    if slow := result["slow_down"]:
        both = f"{slow['before_ms']:.2f} ms before, {slow['after_ms']:.2f} ms since"
        yield f"slowed down after {slow['at_s']:.0f} s: {both}"
    if (odd := result["outliers"])["count"]:
        beyond = f"took more than {odd['limit_ms']:.2f} ms, one {odd['worst_ms']:.2f}"
        yield f"{odd['count']} frames ({odd['share']:.1%}) {beyond}"
    for key, lines in (("sustained", _sustained_lines), ("energy", _energy_lines), ("cost", _cost_lines)):
        if result[key] is not None:
            yield from lines(result[key])
    yield f"{result['iterations']} frames, {frames['source']} ({_shapes(frames['shapes'])})"
    yield f"{host['engine']}, {host['threads']} threads, {host['cpu']}{_machine_state(result['conditions'])}"


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    names = [f"{width}x{height}" for width, height in shapes]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} sizes, {names[0]} to {names[-1]}"


def _machine_state(conditions: Mapping[str, Any]) -> str:
    after, mode, locked = conditions["after"], conditions["power_mode"], conditions["clocks_locked"]
    facts = (
        (conditions["governors"], f"governor {', '.join(conditions['governors'])}"),
        (mode, f"power mode {mode and (mode['name'] or mode['id'])}"),
        (locked is not None, "clocks locked" if locked else "not locked"),
        (after["cpu_mhz"], f"CPU {after['cpu_mhz'] or 0:.0f} MHz"),
        (after["gpu_mhz"], f"GPU {after['gpu_mhz'] or 0:.0f} MHz"),
        (after["temperature_c"], f"{after['temperature_c'] or 0:.0f} °C"),
    )
    return "".join(f", {text}" for known, text in facts if known)


def _sustained_lines(run: Mapping[str, Any]) -> Iterator[str]:
    settled, slow = run["settled_fps"], run["slow_down"]
    rate = "no steady rate" if settled is None else f"{settled:.1f} FPS"
    factor = slow and slow["after_ms"] / slow["before_ms"]
    when = f", {factor:.2f} times as long a frame after {slow['at_s']:.0f} s" if slow else ""
    yield f"sustained for {run['minutes']:g} minutes: {rate}{when}"


def _energy_lines(energy: Mapping[str, Any]) -> Iterator[str]:
    for name, what in (("gross", "all that was drawn"), ("net", f"without {energy['idle_watts']:.1f} W at rest")):
        low, high = energy[f"{name}_interval"]
        yield f"{energy[f'{name}_mj']:.1f} mJ a frame ({low:.1f} to {high:.1f}), {what}: {energy['covers']}"


def _cost_lines(cost: Mapping[str, Any]) -> Iterator[str]:
    parts = [f"{name} {cost[name]:.4g}" for name in ("electricity", "instance") if cost[name] is not None]
    unknown = "unknown: energy or throughput was not measured"
    total = unknown if cost["total"] is None else f"{cost['total']:.4g} {cost['currency'] or ''}".rstrip()
    yield f"a million frames cost {total}" + (f" ({', '.join(parts)})" if parts else "")


def against_lines(other: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each comparison of the artifact with the other one."""
    for key, state in (("times_as_fast", "camera to detections"), ("engine_times_as_fast", "engine only")):
        comparison = other[key]
        low, high = comparison["interval"]
        sure = f"{low:.3f} to {high:.3f}, p {comparison['p_value']:.2g}, {comparison['rounds']} rounds"
        ratio, verdict = comparison["ratio"], comparison["verdict"]
        yield f"{state}: {ratio:.3f} times as fast as {other['artifact']} ({sure}): {verdict}"
    if other["cost_change"] is not None:
        yield f"cost of a million frames: {other['cost_change']:+.1%}"
