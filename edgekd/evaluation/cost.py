"""Cost of a million frames. total: None where one of the two has a price and no measurement."""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1_000_000
_MJ_PER_KWH = 3.6e9


@dataclass(frozen=True)
class Prices:
    """In any one currency. electricity: of a kWh; instance: of the machine for an hour; None: it does not count."""

    electricity: float | None = None
    instance: float | None = None
    currency: str | None = None

    @property
    def given(self) -> bool:
        """True if there is any price."""
        return self.electricity is not None or self.instance is not None


@dataclass(frozen=True)
class CostPerMillion:
    """Cost of a million frames. total: None where one of the two has a price and no measurement."""

    electricity: float | None
    instance: float | None
    total: float | None


def cost_of(prices: Prices, mj: float | None, fps: float | None) -> CostPerMillion:
    """Return the cost at millijoules a frame and frames a second; None for what is not known or has no price."""
    electricity = _times(prices.electricity, None if mj is None else mj * MILLION / _MJ_PER_KWH)
    instance = _times(prices.instance, MILLION / fps / 3600 if fps else None)
    priced = [(prices.electricity, electricity), (prices.instance, instance)]
    known = [cost for price, cost in priced if price is not None]
    return CostPerMillion(electricity, instance, None if None in known or not known else sum(filter(None, known)))


def _times(price: float | None, amount: float | None) -> float | None:
    return None if price is None or amount is None else price * amount
