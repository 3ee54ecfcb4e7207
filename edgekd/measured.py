"""What `edgekd bench` leaves and shows of what it measured: a table, every sample as CSV, a page with charts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import SpecError
from edgekd.files import write_file

if TYPE_CHECKING:
    from edgekd.benchmark import Timing
    from edgekd.measuring import Measured
    from edgekd.predicting import Predicted

PARTS = ("decode", "preprocess", "inference", "postprocess")
STATISTICS = ("p50", "p90", "p99", "p999", "mean")
COLUMNS = ("side", "state", "frame", "start_s", *(f"{part}_ms" for part in PARTS), "total_ms")


def write_csv(file: Path, found: Measured) -> None:
    """Every sample as a line, in seconds from the first and milliseconds. Raises SpecError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (side, state), timing in found.timings.items():
        writer.writerows((side, state, at, *row) for at, row in enumerate(_rows(timing, state)))
    write_file(file, text.getvalue().encode("utf-8"))


def write_page(file: Path, artifact: Path, found: Measured) -> None:
    """A page with the numbers and their charts. Raises SpecError."""
    from edgekd.report.bench import render

    samples = {"after": found.timings["artifact", "camera"].total_ms.tolist()}
    if ("against", "camera") in found.timings:
        samples["before"] = found.timings["against", "camera"].total_ms.tolist()
    write_file(file, render(artifact.name, found.document, samples).encode("utf-8"))


def write_prediction(file: Path, found: Predicted) -> None:
    """A page with a prediction and its roofline. Raises SpecError."""
    from edgekd.report.prediction import render

    write_file(file, render(found.document, found.roof).encode("utf-8"))


def require_place(*files: Path | None) -> None:
    """Raises SpecError, before anything is measured, where a file could not be written."""
    for file in files:
        if file is not None and (not file.parent.is_dir() or file.is_dir()):
            found = "a folder" if file.is_dir() else "no such folder"
            raise SpecError(f"{file}: cannot be written", expected="a file in a folder that is there", found=found)


def _rows(timing: Timing, state: str) -> Iterator[list[str]]:
    parts = [timing.decode_ms, timing.preprocess_ms, timing.inference_ms, timing.postprocess_ms]
    if state == "engine":  # has no other parts
        parts = [None, None, timing.inference_ms, None]
    for at in range(len(timing.total_ms)):
        cells = [None if part is None else part[at] for part in parts]
        start = f"{timing.starts_s[at]:.6f}"
        yield [start, *("" if cell is None else f"{cell:.4f}" for cell in cells), f"{timing.total_ms[at]:.4f}"]


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
