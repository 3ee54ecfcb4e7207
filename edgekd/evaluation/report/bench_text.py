"""The result of `edgekd bench` as text, for the terminal and the page: rows of its table, a line for each fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PARTS = ("decode", "preprocess", "inference", "postprocess")
STATISTICS = ("p50", "p90", "p99", "p999", "mean")


def bench_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The table of both states: camera to detections with its parts, and the engine alone, in milliseconds."""
    rows = [["camera to detections", *_statistics(found["total_ms"])]]
    rows += [[f"  {part}", *_statistics(of)] for part in PARTS if (of := found[f"{part}_ms"])]
    return [*rows, ["engine only", *_statistics(found["engine_ms"])]]


def _statistics(of: Mapping[str, Any]) -> list[str]:
    return [_sure(of[name], of["intervals"][name]) for name in STATISTICS]


def _sure(value: float | None, interval: Sequence[float] | None) -> str:
    """A number and how far from it the truth may be."""
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ±{(interval[1] - interval[0]) / 2:.2f}" if interval else "")


def bench_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What is told beside the table, a sentence each."""
    host, frames, throughput = found["host"], found["frames"], found["throughput"]
    for name, state in (("fps", "camera to detections"), ("engine_fps", "engine only")):
        if found[name] is not None:
            yield f"{found[name]:.1f} FPS {state}, one frame after the other ({found['basis']})"
    if throughput and throughput["fps"] is not None:
        low, high = throughput["interval"]
        yield f"{throughput['fps']:.1f} FPS ({low:.1f} to {high:.1f}) with {throughput['streams']} streams at once"
    yield "cold start: {load_ms:.0f} ms to load, {first_ms:.1f} ms for the first inference".format(
        **found["cold_start"]
    )
    if slow := found["slow_down"]:
        both = f"{slow['before_ms']:.2f} ms before, {slow['after_ms']:.2f} ms since"
        yield f"slowed down after {slow['at_s']:.0f} s: {both}"
    if (odd := found["outliers"])["count"]:
        beyond = f"took more than {odd['limit_ms']:.2f} ms, one {odd['worst_ms']:.2f}"
        yield f"{odd['count']} frames ({odd['share']:.1%}) {beyond}"
    yield from _sustained_lines(found["sustained"])
    yield from _energy_lines(found["energy"])
    yield from _cost_lines(found["cost"])
    yield f"{found['iterations']} frames, {frames['source']} ({_shapes(frames['shapes'])})"
    yield f"{host['engine']}, {host['threads']} threads, {host['cpu']}{_setting(found['conditions'])}"


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    names = [f"{width}x{height}" for width, height in shapes]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} sizes, {names[0]} to {names[-1]}"


def _setting(conditions: Mapping[str, Any]) -> str:
    now, mode = conditions["after"], conditions["power_mode"]
    told = [f"governor {', '.join(conditions['governors'])}"] if conditions["governors"] else []
    told += [f"power mode {mode['name'] or mode['id']}"] if mode else []
    told += (
        []
        if conditions["clocks_locked"] is None
        else ["clocks locked" if conditions["clocks_locked"] else "not locked"]
    )
    told += [f"CPU {now['cpu_mhz']:.0f} MHz"] if now["cpu_mhz"] else []
    told += [f"GPU {now['gpu_mhz']:.0f} MHz"] if now["gpu_mhz"] else []
    told += [f"{now['temperature_c']:.0f} °C"] if now["temperature_c"] else []
    return "".join(f", {each}" for each in told)


def _sustained_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    settled = found["settled_fps"]
    rate = "no steady rate" if settled is None else f"{settled:.1f} FPS"
    slow = found["slow_down"]
    when = (
        f", {slow['after_ms'] / slow['before_ms']:.2f} times as long a frame after {slow['at_s']:.0f} s" if slow else ""
    )
    yield f"sustained for {found['minutes']:g} minutes: {rate}{when}"


def _energy_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    for name, what in (("gross", "all that was drawn"), ("net", f"without {found['idle_watts']:.1f} W at rest")):
        low, high = found[f"{name}_interval"]
        yield f"{found[f'{name}_mj']:.1f} mJ a frame ({low:.1f} to {high:.1f}), {what}: {found['covers']}"


def _cost_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    parts = [f"{name} {found[name]:.4g}" for name in ("electricity", "instance") if found[name] is not None]
    unknown = "cannot be told, as energy or throughput is not known"
    total = unknown if found["total"] is None else f"{found['total']:.4g} {found['currency'] or ''}".rstrip()
    yield f"a million frames cost {total}" + (f" ({', '.join(parts)})" if parts else "")


def against_lines(other: Mapping[str, Any]) -> Iterator[str]:
    """How the artifact compares with the other one."""
    for key, state in (("times_as_fast", "camera to detections"), ("engine_times_as_fast", "engine only")):
        found = other[key]
        low, high = found["interval"]
        sure = f"{low:.3f} to {high:.3f}, p {found['p_value']:.2g}, {found['rounds']} rounds"
        yield f"{state}: {found['ratio']:.3f} times as fast as {other['artifact']} ({sure}): {found['verdict']}"
    if other["cost_change"] is not None:
        yield f"cost of a million frames: {other['cost_change']:+.1%}"
