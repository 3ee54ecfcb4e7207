"""Cost of a million frames at the user's own prices: of energy, and of the machine's time. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1_000_000
_MJ_PER_KWH = 3.6e9


@dataclass(frozen=True)
class Prices:
    """Prices in one currency; None for a price that does not count.

    Args:
        electricity: Price of a kWh.
        instance: Price of the machine for an hour.
    """

    electricity: float | None = None
    instance: float | None = None
    currency: str | None = None

    @property
    def given(self) -> bool:
        """True if there is any price."""
        return self.electricity is not None or self.instance is not None


@dataclass(frozen=True)
class CostPerMillion:
    """Cost of a million frames.

    Args:
        currency: Currency of the prices, as given.
        electricity: Energy, gross, at the price of a kWh.
        instance: The machine's time, at the measured throughput, or else one frame after the other.
        total: Sum of both; null where one of the two has a price and no measurement.
    """

    currency: str | None
    electricity: float | None
    instance: float | None
    total: float | None


def cost_of(prices: Prices, mj: float | None, fps: float | None) -> CostPerMillion:
    """Return the cost at `mj` millijoules per frame and `fps`; a part is None if it is unknown or has no price."""
    electricity = _times(prices.electricity, None if mj is None else mj * MILLION / _MJ_PER_KWH)
    instance = _times(prices.instance, MILLION / fps / 3600 if fps else None)
    priced = [(prices.electricity, electricity), (prices.instance, instance)]
    known = [cost for price, cost in priced if price is not None]
    total = None if None in known or not known else sum(filter(None, known))
    return CostPerMillion(prices.currency, electricity, instance, total)


def _times(price: float | None, amount: float | None) -> float | None:
    return None if price is None or amount is None else price * amount
