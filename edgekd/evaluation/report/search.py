"""The trials of a search as spots of a chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.evaluation.report import text


@dataclass(frozen=True)
class Spot:
    """A point of a scatter chart. text: shown when pointed at; kind: `tried`, `front` or `winner`."""

    x: float
    y: float
    text: str
    kind: str


def trial_spots(search: Mapping[str, Any] | None) -> list[Spot]:
    """Return the trials of a search that did not fail: MB of the bundle and percent of the accuracy kept.

    search: As search.json has it, None where no search was made.
    """
    if search is None or search["winner"] is None:
        return []
    return [
        Spot(
            x=point["bytes"] / 1e6,
            y=100 * point["kept"],
            text=f"{point['text']}, {text.percent(point['kept'])} kept, {text.size(point['bytes'])}",
            kind=_kind(point, search["winner"]),
        )
        for point in search["points"]
        if not point["error"]
    ]


def _kind(point: Mapping[str, Any], winner: Mapping[str, Any]) -> str:
    if point["text"] == winner["text"]:
        return "winner"
    return "front" if point["front"] else "tried"
