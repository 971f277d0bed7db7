"""What attention knows of a row after some keys, and how that of other keys is added."""

from __future__ import annotations

from dataclasses import dataclass

from educe.compiler import vector_math as vm
from educe.compiler.emit import F32, Function, Val

_MINUS_INFINITY = float("-inf")
_ENDS = 16


def record_elements(features: int) -> int:
    """Return the size of a record of so many features."""
    return features + _ENDS


@dataclass(frozen=True)
class Record:
    """The sums of values, the largest score, and the sum of weights of a row, in memory.

    Attributes:
        fn: The function that is written.
        at: Where the record begins.
        features: Features of a value, a multiple of `lanes`.
        lanes: Features that are computed at once.
    """

    fn: Function
    at: Val
    features: int
    lanes: int

    def clear(self) -> None:
        """Have seen no keys."""
        fn = self.fn
        with fn.loop(0, self.features, self.lanes) as feature:
            fn.store(fn.const(F32, 0, self.lanes), self.at, feature)
        self.weigh(fn.const(F32, _MINUS_INFINITY), fn.const(F32, 0))

    def weigh(self, best: Val, total: Val) -> None:
        """Store the largest score and the sum of weights."""
        self.fn.store(best, self.at, self.features)
        self.fn.store(total, self.at, self.features + 1)

    @property
    def best(self) -> Val:
        """The largest score."""
        return self.fn.load(F32, self.at, self.features)

    @property
    def total(self) -> Val:
        """The sum of weights."""
        return self.fn.load(F32, self.at, self.features + 1)

    def add(self, more: Record) -> None:
        """Add what is known after other keys; that of no keys changes nothing.

        Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, arxiv.org/abs/1805.02867.
        """
        fn, lanes = self.fn, self.lanes
        best = [fn.splat(each.best, lanes) for each in (self, more)]
        most = fn.maximum(*best)
        mine, other = (vm.exp(fn, each - shift(fn, most)) for each in best)
        total = self.total * fn.extract(mine, 0) + more.total * fn.extract(other, 0)
        with fn.loop(0, self.features, lanes) as feature:
            sums, added = (fn.load(F32, each.at, feature, lanes) for each in (self, more))
            fn.store(fn.fma(added, other, sums * mine), self.at, feature)
        self.weigh(fn.extract(most, 0), total)

    def finish(self, out: Val, features: int) -> None:
        """Store the first `features` sums over the weights; zeros if no keys were seen."""
        fn, lanes, total = self.fn, self.lanes, self.total
        inverse = 1.0 / fn.select(total == 0, 1, total)
        with fn.loop(0, features, lanes) as feature:
            mask = fn.tail_mask(features - feature, lanes)
            fn.store(fn.load(F32, self.at, feature, lanes) * inverse, out, feature, mask)


def shift(fn: Function, best: Val) -> Val:
    """Return what is taken from scores before they become weights: the largest, if there is one."""
    return fn.select(best == _MINUS_INFINITY, 0, best)
