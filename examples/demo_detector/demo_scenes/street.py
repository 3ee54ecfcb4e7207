"""The demo's street: the layout that the ground, the houses, the props and the traffic share.

Street axes in metres: s along the street, t across it and away from the camera, origin in the middle of the road.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from demo_scenes.geometry import Array


@dataclass(frozen=True)
class Street:
    """The layout that people and vehicles keep to: lengths in metres, `angle` in radians from the world's x axis."""

    angle: float
    distance: float
    half_road: float
    pavement: float
    side_road: float | None
    yard: bool

    def to_world(self, s: float, t: float) -> tuple[float, float]:
        """Street axes -> world x, y."""
        c, sn = math.cos(self.angle), math.sin(self.angle)
        return s * c - t * sn, self.distance + s * sn + t * c

    def to_street(self, x: Array, y: Array) -> tuple[Array, Array]:
        """World x, y -> street axes."""
        c, sn = math.cos(self.angle), math.sin(self.angle)
        y = y - self.distance
        return x * c + y * sn, -x * sn + y * c


def street_crossing(street: Street) -> float:
    """Return the zebra crossing's position along the street: left of the middle, or right if a side road is there."""
    return -5.0 if street.side_road is None or street.side_road > 0 else 6.0
