"""The result of `edgekd bench` as one self-contained HTML page: no script, no network, no external file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekd.evaluation.report import charts, text
from edgekd.evaluation.report.bench_text import STATISTICS, against_lines, bench_lines, bench_rows
from edgekd.evaluation.report.html import MEANING
from edgekd.evaluation.report.markup import Html, page, table, tag
from edgekd.evaluation.report.types import Moment, latency_of

SERIES = (
    ("p50_ms", "Latency, median", "ms"),
    ("cpu_mhz", "CPU clock", "MHz"),
    ("gpu_mhz", "GPU clock", "MHz"),
    ("temperature_c", "Temperature", "°C"),
    ("watts", "Power", "W"),
)


def render(title: str, found: Mapping[str, Any], samples: Mapping[str, Sequence[float]]) -> str:
    """The page. samples: milliseconds of every frame, `after` of the artifact, `before` of what it is compared with."""
    sections = (_head(title, found), _told(found), _latency(found, samples), _against(found), _sustained(found))
    return page(title, sections)


def _head(title: str, found: Mapping[str, Any]) -> Html:
    host = found["host"]
    where = f"{host['engine']} on {host['cpu']}, {host['os']}"
    return tag("header", tag("p", "edgekd bench", class_="kicker"), tag("h1", title), tag("p", where, class_="lead"))


def _told(found: Mapping[str, Any]) -> Html:
    refused = [f"Not told: {reason}" for reason in found["refused"]]
    lines = (tag("li", line) for line in (*bench_lines(found), *refused))
    meaning = MEANING[found["basis"]] if found["basis"] != "measured" else "timed on this machine, and meant for it"
    return _section("Result", tag("ul", *lines), tag("p", tag("b", found["basis"]), f": {meaning}.", class_="why"))


def _latency(found: Mapping[str, Any], samples: Mapping[str, Sequence[float]]) -> Html:
    engine = found["host"]["engine"]
    rows = [latency_of(moment, engine, of, samples[moment]) for moment, of in _sides(found)]
    ticks = charts.latency_ticks(rows)
    content = [tag("figure", charts.latency_chart(rows, ticks), class_="chart")]
    columns = [name.replace("p999", "p99.9") for name in STATISTICS]
    content += [table(f"Milliseconds, {name}", (f"ms, {name}", *columns), bench_rows(of)) for name, of in _named(found)]
    why = "Each number with half of the interval that holds the truth 95 times in 100."
    return _section("Latency", tag("p", why, class_="why"), *content)


def _sides(found: Mapping[str, Any]) -> Iterator[tuple[Moment, Mapping[str, Any]]]:
    if found["against"] is not None:
        yield "before", found["against"]
    yield "after", found


def _named(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the artifact", found
    if found["against"] is not None:
        yield found["against"]["artifact"], found["against"]


def _against(found: Mapping[str, Any]) -> Html:
    if (other := found["against"]) is None:
        return Html()
    why = "In the charts “after” is the artifact, and “before” what it is compared with. Both took turns."
    lines = tag("ul", *(tag("li", line) for line in against_lines(other)))
    return _section(f"Compared with {other['artifact']}", tag("p", why, class_="why"), lines)


def _sustained(found: Mapping[str, Any]) -> Html:
    if (run := found["sustained"]) is None:
        return Html()
    at = [line["at_s"] for line in run["timeline"]]
    series = [([line[key] for line in run["timeline"]], name, unit) for key, name, unit in SERIES]
    content = [
        tag("figure", tag("figcaption", f"{name}, {unit}"), charts.time_line(at, values, unit), class_="chart")
        for values, name, unit in series
        if any(text.known(value) for value in values)
    ]
    why = f"Camera to detections for {run['minutes']:g} minutes, one frame after the other; a point for every second."
    return _section("Sustained run", tag("p", why, class_="why"), *content)


def _section(title: str, *content: str) -> Html:
    return tag("section", tag("h2", title), *content)
