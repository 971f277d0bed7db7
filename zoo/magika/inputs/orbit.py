"""Print the period of a satellite for some heights above the ground."""

from __future__ import annotations

import math
from collections.abc import Iterable

EARTH_RADIUS_KM = 6371.0
GRAVITY_KM3_S2 = 398600.4418


def period_minutes(height_km: float) -> float:
    """Return the time of one circular orbit."""
    radius = EARTH_RADIUS_KM + height_km
    return 2 * math.pi * math.sqrt(radius**3 / GRAVITY_KM3_S2) / 60


def table(heights: Iterable[float]) -> list[str]:
    """Return one line for each height."""
    return [f"{height:8.0f} km  {period_minutes(height):7.1f} min" for height in heights]


if __name__ == "__main__":
    print("\n".join(table([400, 700, 1200, 20200, 35786])))
