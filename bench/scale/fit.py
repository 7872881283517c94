"""Straight lines through measurements: pure."""

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """y = level + slope x, by least squares. `r2`: the share of the variance that it explains; 1 where there is none.
    `off`: the largest distance of a point from it, as a share of the mean.
    """

    level: float
    slope: float
    r2: float
    off: float

    @classmethod
    def through(cls, points: Sequence[Point]) -> "Line":
        """Raises ValueError for points that do not differ in x."""
        count = len(points)
        middle = sum(x for x, _ in points) / count if count else 0.0
        mean = sum(y for _, y in points) / count if count else 0.0
        spread = sum((x - middle) ** 2 for x, _ in points)
        if not spread:
            raise ValueError("a line needs two places")
        slope = sum((x - middle) * (y - mean) for x, y in points) / spread
        level = mean - slope * middle
        errors = [(y - level - slope * x) for x, y in points]
        total = sum((y - mean) ** 2 for _, y in points)
        r2 = 1 - sum(error**2 for error in errors) / total if total else 1.0
        off = max(map(abs, errors)) / abs(mean) if mean else 0.0
        return cls(level, slope, r2, off)
