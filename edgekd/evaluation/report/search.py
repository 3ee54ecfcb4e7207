"""What a search says of itself in the report of a build: its front, its trials, why the winner won, what is next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekd.evaluation.report import charts, text
from edgekd.evaluation.report.markup import Html, join, table, tag

CHOICES = {
    "student": "the detector",
    "image_size": "side of the input",
    "ratio": "multiply-adds pruned",
    "bits": "bits a weight",
}
FIGURES = ("Kept", "Bundle", "ms a frame", "mJ a frame")


def search_section(found: Mapping[str, Any] | None) -> Html:
    """The section; found: as search.json has it, None where no search was made."""
    if found is None or found["winner"] is None:
        return Html()
    return tag(
        "section",
        tag("h2", "How the recipe was found"),
        tag("p", _summary(found), class_="why"),
        _chart(found),
        tag("h3", "Why it won"),
        tag("ul", *(tag("li", line) for line in found["why"])),
        _parts(found["parts"]),
        _next(found["next"]),
        tag("details", tag("summary", f"All {found['tried']} candidates that were tried"), _trials(found)),
    )


def _summary(found: Mapping[str, Any]) -> str:
    refused, saved = text.count(found["refused"]), text.count(found["trainings_saved"])
    return (
        f"Of {text.count(found['candidates'])} candidates {refused} cannot fit by arithmetic and prediction, "
        f"{text.count(found['tried'])} were tried, {text.count(found['thorough'])} of them in full; "
        f"{saved} full trainings were saved. It took {text.duration(found['seconds'])} and ended because "
        f"{found['reason']}. Accuracy here is of {text.count(found['held_out'])} held-out training images; "
        f"time and energy are {found['basis']}."
    )


def _chart(found: Mapping[str, Any]) -> Html:
    winner, budget = found["winner"], found["budget"]
    spots = [
        charts.Spot(point["bytes"] / 1e6, 100 * point["kept"], _said(point), _kind(point, winner))
        for point in found["points"]
        if not point["error"]
    ]
    most, least = budget["max_bytes"], budget["min_retention"]
    limits = (None if most is None else most / 1e6, None if least is None else 100 * least)
    drawn = charts.scatter(spots, "MB of the bundle", "% of the mAP50-95 kept", limits)
    why = "Filled: none beats it in accuracy, size, time and energy at once. Diamond: the winner. Dashed: the limits."
    return tag("figure", tag("figcaption", why), drawn, class_="chart")


def _kind(point: Mapping[str, Any], winner: Mapping[str, Any]) -> str:
    if point["text"] == winner["text"]:
        return "winner"
    return "front" if point["front"] else "tried"


def _said(point: Mapping[str, Any]) -> str:
    return ", ".join((point["text"], f"{text.percent(point['kept'])} kept", text.size(point["bytes"])))


def _parts(parts: Sequence[Mapping[str, Any]]) -> Html:
    if not parts:
        return Html()
    rows = (
        (
            f"{CHOICES[part['choice']]}: {_value(part['value'])} in place of {_value(part['instead_of'])}",
            text.percent(part["kept"]),
            _saved(part["bytes_saved"], text.size(abs(part["bytes_saved"]))),
            _saved(part["ms_saved"], text.milliseconds(abs(part["ms_saved"] or 0))),
        )
        for part in parts
    )
    caption = "What each choice of the winner costs and saves, as far as all trials tell"
    return table(caption, ("Choice", "Accuracy kept", "Size saved", "Time saved"), rows)


def _value(value: Any) -> str:
    return "itself" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _saved(value: float | None, told: str) -> str:
    return text.MISSING if value is None else f"{'−' if value < 0 else ''}{told}"


def _next(candidates: Sequence[Mapping[str, Any]]) -> Html:
    if not candidates:
        return Html()
    rows = ((each["text"], *_figures(each)) for each in candidates)
    return table("What would be tried next, by estimates", ("Candidate", *FIGURES), rows)


def _trials(found: Mapping[str, Any]) -> Html:
    heads = ("Candidate", "Tried", *FIGURES, "Time")
    rungs = found["rungs"]
    rows = (
        (join((point["text"], tag("small", _note(point)))), _rung(rungs[point["rung"]]), *_figures(point), _took(point))
        for point in found["points"]
    )
    return table("Candidates, the most thoroughly tried first", heads, rows)


def _note(point: Mapping[str, Any]) -> str:
    return str(point["error"] or ("on the front" if point["front"] else ""))


def _rung(rung: Mapping[str, Any]) -> str:
    return f"{text.percent(rung['share'])} of the epochs, {rung['images']} images"


def _took(point: Mapping[str, Any]) -> str:
    return text.duration(point["seconds"])


def _figures(point: Mapping[str, Any]) -> Iterator[str]:
    yield text.percent(point["kept"])
    yield text.size(point["bytes"])
    yield text.milliseconds(point["latency_ms"])
    yield text.MISSING if point["energy_mj"] is None else text.three_digits(point["energy_mj"])
