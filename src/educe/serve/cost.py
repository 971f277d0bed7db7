"""What a run costs by its number of rows, learnt while serving."""

from __future__ import annotations

from bisect import bisect_left

_SHARE = 0.2
# A run that took longer than so many times what was expected was disturbed, and counts as this much.
_MOST_SURPRISE = 3.0
# Numbers of rows beyond this one share a place with others of their power of two.
_EXACT_ROWS = 16


class CostCurve:
    """The seconds of a run, as a function of its rows: a moving mean for each size, and lines between them.

    Numbers are enough to plan with from the first run on; before it, nothing is known and all costs 0.

    Attributes:
        least_row_seconds: What a row costs in runs of the size that costs least for each.
    """

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._seconds: list[float] = []
        self.least_row_seconds = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """Take note of how long a run of `rows` rows took."""
        place = rows if rows <= _EXACT_ROWS else 1 << (rows - 1).bit_length()
        seconds *= place / rows
        index = bisect_left(self._rows, place)
        if index < len(self._rows) and self._rows[index] == place:
            known = self._seconds[index]
            self._seconds[index] += _SHARE * (min(seconds, _MOST_SURPRISE * known) - known)
        else:
            # A run never has to cost more than several of fewer rows, but the first of its size often does.
            most = self._seconds[index - 1] * place / self._rows[index - 1] if index else seconds
            self._rows.insert(index, place)
            self._seconds.insert(index, min(seconds, most))
        pairs = zip(self._rows, self._seconds, strict=True)
        self.least_row_seconds = min(each / count for count, each in pairs)

    def seconds(self, rows: int) -> float:
        """Return how long a run of `rows` rows is expected to take."""
        if not self._rows:
            return 0.0
        index = bisect_left(self._rows, rows)
        if index == len(self._rows):
            return self._seconds[-1] * rows / self._rows[-1]
        if self._rows[index] == rows or index == 0:
            return self._seconds[index]
        left, right = self._rows[index - 1], self._rows[index]
        share = (rows - left) / (right - left)
        return self._seconds[index - 1] + share * (self._seconds[index] - self._seconds[index - 1])
