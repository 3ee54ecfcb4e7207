"""The result of `edgekd predict` as one self-contained HTML page, with the layers under the roof of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.evaluation.report import charts, text
from edgekd.evaluation.report.markup import Html, page, table, tag
from edgekd.hardware.predict.roofline import Roofline


def render(found: Mapping[str, Any], roof: Roofline) -> str:
    """The page."""
    return page(found["model"], (_head(found), _told(found), _roof(roof), _layers(found)))


def _head(found: Mapping[str, Any]) -> Html:
    lead = f"on {found['target']}, in {found['precision']}"
    return tag(
        "header", tag("p", "edgekd predict", class_="kicker"), tag("h1", found["model"]), tag("p", lead, class_="lead")
    )


def _told(found: Mapping[str, Any]) -> Html:
    rows = [("Latency, ms", *(f"{found[name]:.2f}" for name in ("latency_ms", "low_ms", "high_ms")))]
    if found["energy_mj"] is not None:
        rows.append(("Energy, mJ a frame", *(f"{found[name]:.0f}" for name in ("energy_mj", "low_mj", "high_mj"))))
    doubts = tag("ul", *(tag("li", f"Do not trust it far: {doubt}.") for doubt in found["doubts"]))
    why = "Predicted, not measured: nine of ten measurements should lie in that range."
    heads = ("", "Predicted", "From", "To")
    return tag("section", tag("h2", "Result"), tag("p", why, class_="why"), table("Prediction", heads, rows), doubts)


def _roof(roof: Roofline) -> Html:
    if not roof.points:
        return Html()
    under = sum(point.us for point in roof.points if point.intensity < roof.ridge)
    total = sum(point.us for point in roof.points) + roof.other_us
    why = (
        f"A layer is a circle, the larger the longer it takes. Left of {roof.ridge:.0f} operations a byte memory is "
        f"the limit: layers there take {text.percent(under / total)} of the time, and layers without arithmetic, which "
        f"are not shown, {text.percent(roof.other_us / total)}."
    )
    chart = tag("figure", charts.roofline_chart(roof), class_="chart")
    return tag("section", tag("h2", "Roofline"), tag("p", why, class_="why"), chart)


def _layers(found: Mapping[str, Any]) -> Html:
    rows = [(each["name"], each["kind"], f"{each['us']:.1f}") for each in found["layers"]]
    return tag("section", tag("h2", "Dearest layers"), table("Dearest first", ("Layer", "Kind", "µs"), rows))
