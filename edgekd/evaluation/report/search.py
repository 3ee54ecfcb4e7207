"""The trials of a search as points of a scatter chart."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.evaluation.report import text
from edgekd.evaluation.search_result import SearchResult


@dataclass(frozen=True)
class Spot:
    """A point of a scatter chart. text: shown when pointed at; kind: `tried`, `front` or `winner`."""

    x: float
    y: float
    text: str
    kind: str


def trial_spots(search: SearchResult | None) -> list[Spot]:
    """Return bundle size (MB) and kept accuracy (percent) of the candidates tried as thoroughly as the winner."""
    if search is None or search.winner is None:
        return []
    return [
        Spot(
            x=point.bytes / 1e6,
            y=100 * point.kept,
            text=f"{point.text}, {text.percent(point.kept)} kept, {text.size(point.bytes)}",
            kind="winner" if point.text == search.winner.text else "front" if point.front else "tried",
        )
        for point in search.points
        if point.bytes is not None and point.kept is not None and point.rung == search.winner.rung
    ]
