"""`Operands`: where the elements of a kernel lie that keeps some dimensions and goes along others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from educe.compiler.emit import I64, Function, Kind, Val
from educe.compiler.kernels.pointwise import MAX_OUTER
from educe.compiler.kernels.scalars import Expression

HEADER = 3 + 2 * MAX_OUTER
PER_OPERAND = 2 * MAX_OUTER + 2

COLUMNS = 4
"""Vectors of columns that are one unit."""

_GROUPS = 4
"""Elements of a column that join a partial result at once."""


class Operands:
    """The operands of a kernel that has `kept` × `rest` × middle × inner elements.

    The kernel's sizes, from `first` on: kept rank, rest rank, number of rest elements, kept sizes and rest
    sizes (`MAX_OUTER` each); then for each operand its kept strides and rest strides (`MAX_OUTER` each), its
    middle step and its inner step. An output's access is ``dense`` or ``strided``; an input may also be
    ``same``, one element along the inner dimension.

    Args:
        fn: The kernel.
        first: The place of the first size.
        kinds: The operands' kinds, outputs first.
        access: How each lies along the inner dimension.
    """

    def __init__(self, fn: Function, first: int, kinds: Sequence[Kind], access: Sequence[str]) -> None:
        self._fn, self._first = fn, first
        self.kinds, self.access = tuple(kinds), tuple(access)
        self._pointers = [fn.pointer(index) for index in range(len(kinds))]
        self._places = [first + HEADER + index * PER_OPERAND for index in range(len(kinds))]
        self.middle_steps = [fn.size(place + 2 * MAX_OUTER) for place in self._places]
        self.inner_steps = [fn.size(place + 2 * MAX_OUTER + 1) for place in self._places]
        self.rest = fn.size(first + 2)

    def kept_starts(self, index: Val) -> list[Val]:
        """Return the address of each operand's first element of the kept index `index`."""
        places = self._places
        offsets = self._offsets(index, self._first, self._first + 3, places)
        return [
            self._fn.at(kind, pointer, offset)
            for kind, pointer, offset in zip(self.kinds, self._pointers, offsets, strict=True)
        ]

    def rest_starts(self, starts: Sequence[Val], index: Val) -> list[Val]:
        """Return `starts` moved to the rest index `index`."""
        places = [place + MAX_OUTER for place in self._places]
        offsets = self._offsets(index, self._first + 1, self._first + 3 + MAX_OUTER, places)
        return [
            self._fn.at(kind, start, offset)
            for kind, start, offset in zip(self.kinds, starts, offsets, strict=True)
        ]

    def middle_starts(self, starts: Sequence[Val], index: Val) -> list[Val]:
        """Return `starts` moved to the index `index` of the middle dimension."""
        return [
            self._fn.at(kind, start, index * step)
            for kind, start, step in zip(self.kinds, starts, self.middle_steps, strict=True)
        ]

    def load(self, operand: int, starts: Sequence[Val], i: Val, lanes: int, mask: Val | None) -> Val:
        """Load a vector of an operand from the inner index `i` on; zeros where `mask` is false."""
        fn, kind, start = self._fn, self.kinds[operand], starts[operand]
        if self.access[operand] == "dense":
            return fn.load(kind, start, i, lanes, mask)
        if self.access[operand] == "same":
            return fn.splat(fn.load(kind, start), lanes)
        return fn.gather(kind, start, self._indices(operand, i, lanes), mask)

    def store(self, operand: int, starts: Sequence[Val], value: Val, i: Val, mask: Val | None) -> None:
        """Store a vector, or one element, from the inner index `i` on."""
        fn, start = self._fn, starts[operand]
        if self.access[operand] == "dense":
            fn.store(value, start, i, mask)
        elif value.lanes:
            fn.scatter(value, start, self._indices(operand, i, value.lanes), mask)
        else:
            fn.store(value, start, i * self.inner_steps[operand])

    def value(
        self,
        expression: Expression,
        first: int,
        starts: Sequence[Val],
        i: Val,
        lanes: int,
        mask: Val | None = None,
    ) -> Val:
        """Return the expression of the operands from `first` on, a vector from the inner index `i` on."""
        count = len(expression.inputs)
        values = [self.load(first + k, starts, i, lanes, mask) for k in range(count)]
        return self._fn.splat(expression.emit(self._fn, values), lanes)

    def _indices(self, operand: int, i: Val, lanes: int) -> Val:
        return (self._fn.lane_numbers(lanes) + i) * self.inner_steps[operand]

    def _offsets(self, index: Val, rank_at: int, sizes_at: int, strides_at: Sequence[int]) -> list[Val]:
        """Return each operand's offset of `index`; one dimension alone needs no division."""
        fn = self._fn
        rest = fn.var(index)
        sums = [fn.var(fn.const(I64, 0)) for _ in strides_at]
        rank = fn.size(rank_at)
        with fn.loop(1, rank) as back:
            axis = rank - back
            size = fn.size(axis + sizes_at)
            place = rest.get() % size
            rest.set(rest.get() // size)
            for total, at in zip(sums, strides_at, strict=True):
                total.set(total.get() + place * fn.size(axis + at))
        return [total.get() + rest.get() * fn.size(at) for total, at in zip(sums, strides_at, strict=True)]


@contextmanager
def columns(fn: Function, block: Val, inner: Val, lanes: int) -> Iterator[tuple[Val, Val]]:
    """Run the block for each vector of one of the blocks of `COLUMNS` vectors: its index and its mask."""
    first = block * (COLUMNS * lanes)
    stop = fn.minimum(first + COLUMNS * lanes, inner)
    with fn.loop(first, stop, lanes) as i:
        yield i, fn.tail_mask(fn.minimum(stop - i, lanes), lanes)


def along(
    fn: Function, first: Val, stop: Val, lanes: int, unroll: int, body: Callable[[int, Val, Val | None], None]
) -> None:
    """Run ``body(accumulator, i, mask)`` for each vector from `first` to `stop`.

    Vectors go in turn to `unroll` accumulators, those behind the last whole group to the first of them; only
    there is a mask. `Partials` does the same for columns.
    """
    group = lanes * unroll
    whole = first + (stop - first) // group * group
    with fn.loop(first, whole, group) as i:
        for k in range(unroll):
            body(k, i + k * lanes, None)
    with fn.loop(whole, stop, lanes) as i:
        body(0, i, fn.tail_mask(fn.minimum(stop - i, lanes), lanes))


class Partials:
    """Partial results of columns in scratch: one row of them for each lane of the accumulators of `along`.

    What `along` gives to a lane of an accumulator goes to the row of that number, and the rows are combined
    by halves, as lanes are: a column is reduced in the order in which a row of its length is.

    Args:
        fn: The function to write.
        kind: The kind of the results.
        lanes: Lanes of an accumulator.
        unroll: How many accumulators there are.
        combine: What combines two results.
        neutral: What changes nothing when combined.
        memory: Where they are.
        columns: How many columns there are.
        length: Elements of a column.
    """

    def __init__(
        self,
        fn: Function,
        kind: Kind,
        lanes: int,
        unroll: int,
        combine: str,
        neutral: float,
        memory: Val,
        columns: Val,
        length: Val,
    ) -> None:
        self._fn, self._kind, self._lanes, self._combine = fn, kind, lanes, combine
        self._rows = lanes * unroll
        self._length = length
        self._whole = length // self._rows * self._rows
        self._used = fn.select(self._whole > 0, self._rows, fn.maximum(fn.minimum(length, lanes), 1))
        self._pitch = (columns + (lanes - 1)) // lanes * lanes
        self.memory = memory
        with fn.loop(0, self._used * self._pitch, lanes) as i:
            fn.store(fn.const(kind, neutral, lanes), memory, i)

    def each(self, body: Callable[[Val, Val, Val, int], None]) -> None:
        """Run ``body(row, first, stop, step)``: elements first, first + step, ... below stop join `row`."""
        fn, some = self._fn, _GROUPS * self._rows
        with fn.loop(0, self._whole, some) as group:
            stop = fn.minimum(group + some, self._whole)
            with fn.loop(0, self._rows) as number:
                body(self._row(number), group + number, stop, self._rows)
        with fn.loop(0, fn.minimum(self._length - self._whole, self._lanes)) as number:
            body(self._row(number), self._whole + number, self._length, self._lanes)

    def join(self, row: Val, i: Val, value: Callable[[Val], Val], first: Val, stop: Val, step: int) -> None:
        """Combine a vector of columns from `i` on with the vectors ``value(element)`` of some elements."""
        fn = self._fn
        total = fn.var(fn.load(self._kind, row, i, self._lanes))
        with fn.loop(first, stop, step) as element:
            total.set(fn.combine(self._combine, total.get(), value(element)))
        fn.store(total.get(), row, i)

    def _row(self, number: Val) -> Val:
        return self._fn.at(self._kind, self.memory, number * self._pitch)

    def finish(self) -> None:
        """Leave the columns' results in the first row."""
        fn, half = self._fn, self._rows // 2
        while half:
            with fn.loop(0, fn.minimum(self._used - half, half) * self._pitch, self._lanes) as i:
                low = fn.load(self._kind, self.memory, i, self._lanes)
                high = fn.load(self._kind, self.memory, i + half * self._pitch, self._lanes)
                fn.store(fn.combine(self._combine, low, high), self.memory, i)
            half //= 2


def partial_rows(length: int, lanes: int, unroll: int) -> int:
    """Return how many rows `Partials` has for columns of `length`."""
    return lanes * unroll if length >= lanes * unroll else max(min(length, lanes), 1)
