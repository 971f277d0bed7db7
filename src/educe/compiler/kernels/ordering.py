"""Templates in which the order of elements counts: places of extremes, running totals, the first k."""

from __future__ import annotations

from educe.compiler.emit import BOOL, F32, F64, I32, I64, U64, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.reduction import accumulator, neutral
from educe.compiler.kernels.rows import Operands, along, columns
from educe.compiler.kernels.scalars import Expression
from educe.compiler.target import Target

_SIZES = 4

Place = tuple[Val, Val]
"""A value, and where it was found."""


@template("arg_extreme")
def arg_extreme(
    fn: Function,
    target: Target,
    expression: Expression,
    access: tuple[str, ...],
    combine: str,
    last: bool,
    contiguous: bool,
) -> None:
    """Write where along the reduced dimension the extreme of expression(in0, ...) is; a NaN is one.

    ::

        for unit in begin..end:                          # a row, or COLUMNS vectors of columns
            for i:
                if x[i] is better than best:             # or as good, if the last one is wanted
                    best, place = x[i], i
            out = place

    A row is gone along a vector at a time, and its lanes compete in the end.

    Pointers: out, in0, ... Sizes: middle, inner, units of a kept index, unused; then those of `Operands`.

    Args:
        fn: The function to write.
        target: Its machine.
        expression: What is compared.
        access: How out and each input lie along the inner dimension.
        combine: min or max.
        last: Whether the last of equals is wanted, not the first.
        contiguous: Whether the inner dimension is reduced, not the middle one.
    """
    operands = Operands(fn, _SIZES, (I64, *expression.inputs), access)
    contest = _Contest(fn, target.lanes, accumulator(expression.kind), combine, last)
    middle, inner, width = (fn.size(index) for index in range(3))
    lanes = target.lanes

    def value(starts: list[Val], i: Val, mask: Val | None) -> Val:
        return fn.cast(operands.value(expression, 1, starts, i, lanes, mask), contest.kind)

    with fn.loop(fn.begin, fn.end) as unit:
        starts = operands.kept_starts(unit // width)
        if contiguous:
            rounds = [contest.start() for _ in range(2)]
            numbers = fn.lane_numbers(lanes, I32)
            along(
                fn, fn.const(I64, 0), inner, lanes, len(rounds),
                lambda k, i, m: contest.meet(rounds[k], value(starts, i, m), numbers + fn.extend(i, I32), m),
            )  # fmt: skip
            fn.store(fn.cast(contest.winner(rounds), I64), starts[0])
        else:
            with columns(fn, unit % width, inner, lanes) as (i, mask):
                held = contest.start()
                with fn.loop(0, middle) as m:
                    places = operands.middle_starts(starts, m)
                    contest.meet(held, value(places, i, mask), fn.splat(fn.extend(m, I32), lanes), None)
                operands.store(0, starts, fn.cast(held[1].get(), I64), i, mask)


class _Contest:
    """Who is better: the larger or the smaller, a NaN in any case; of equals, the first or the last."""

    def __init__(self, fn: Function, lanes: int, kind: Kind, combine: str, last: bool) -> None:
        self.fn, self.lanes, self.kind, self.combine, self.last = fn, lanes, kind, combine, last

    def start(self) -> tuple[Var, Var]:
        """Return variables for the best value and its place, which any element is as good as."""
        worst = self.fn.const(self.kind, neutral(self.combine, self.kind), self.lanes)
        return self.fn.var(worst), self.fn.var(self.fn.const(I32, 0, self.lanes))

    def meet(self, held: tuple[Var, Var], value: Val, place: Val, mask: Val | None) -> None:
        """Let `value` at `place`, which is behind all before, take the place of what is held."""
        fn, best = self.fn, held[0].get()
        wins = ~self._beats(best, value) if self.last else self._beats(value, best)
        wins = wins if mask is None else wins & mask
        held[0].set(fn.select(wins, value, best))
        held[1].set(fn.select(wins, place, held[1].get()))

    def winner(self, rounds: list[tuple[Var, Var]]) -> Val:
        """Return the place of the best of all lanes."""
        (a, b), rest = rounds[0], rounds[1:]
        best = (a.get(), b.get())
        for value, place in rest:
            best = self._better(best, (value.get(), place.get()))
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            low, high = (
                (self.fn.shuffle(value, value, half), self.fn.shuffle(place, place, half))
                for half in (range(lanes), range(lanes, 2 * lanes))
                for value, place in [best]
            )
            best = self._better(low, high)
        return self.fn.extract(best[1], 0)

    def _better(self, a: Place, b: Place) -> Place:
        fn = self.fn
        a_wins, b_wins = self._beats(a[0], b[0]), self._beats(b[0], a[0])
        earlier = b[1] > a[1] if self.last else b[1] < a[1]
        chosen = b_wins | (earlier & ~a_wins)
        return fn.select(chosen, b[0], a[0]), fn.select(chosen, b[1], a[1])

    def _beats(self, a: Val, b: Val) -> Val:
        """Return whether `a` is truly better than `b`."""
        if self.kind is BOOL:
            return a & ~b if self.combine == "max" else ~a & b
        if not self.kind.is_float:
            return a > b if self.combine == "max" else a < b
        worse = a <= b if self.combine == "max" else a >= b
        return ~worse & ~self.fn.is_nan(b)


@template("cumulate")
def cumulate(
    fn: Function,
    target: Target,
    kind: Kind,
    access: tuple[str, ...],
    combine: str,
    exclusive: bool,
    contiguous: bool,
) -> None:
    """Write running totals ``out[i] = combine(in[0], ..., in[i])``, or without the last if `exclusive`.

    ::

        for unit in begin..end:                          # a row, or COLUMNS vectors of columns
            for i, a vector of a row or of columns at a time:
                total = combine(total, in[i])            # the lanes of a row by doubling distances
                out[i] = total                           # or the total before

    Pointers: out, in. Sizes: middle, inner, units of a kept index, unused; then those of `Operands`.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: Of input and output.
        access: How out and the input lie along the inner dimension.
        combine: add or mul.
        exclusive: Whether an element is not part of its own total.
        contiguous: Whether totals run along the inner dimension, not the middle one.
    """
    operands = Operands(fn, _SIZES, (kind, kind), access)
    wide = accumulator(kind)
    lanes, width = target.lanes, fn.size(2)
    middle, inner = fn.size(0), fn.size(1)
    start = fn.const(wide, neutral(combine, wide), lanes)

    def value(starts: list[Val], i: Val, mask: Val | None) -> Val:
        return fn.cast(operands.load(1, starts, i, lanes, mask), wide)

    with fn.loop(fn.begin, fn.end) as unit:
        starts = operands.kept_starts(unit // width)
        if contiguous:
            total = fn.var(start)

            def step(_: int, i: Val, mask: Val | None) -> None:
                old = total.get()
                scanned = fn.combine(combine, old, _scanned(fn, value(starts, i, mask), combine, start))
                total.set(fn.shuffle(scanned, scanned, [lanes - 1] * lanes))
                if exclusive:
                    scanned = fn.shuffle(old, scanned, [0, *range(lanes, 2 * lanes - 1)])
                operands.store(0, starts, fn.cast(scanned, kind), i, mask)

            along(fn, fn.const(I64, 0), inner, lanes, 1, step)
        else:
            with columns(fn, unit % width, inner, lanes) as (i, mask):
                total = fn.var(start)
                with fn.loop(0, middle) as m:
                    places = operands.middle_starts(starts, m)
                    old = total.get()
                    total.set(fn.combine(combine, old, value(places, i, mask)))
                    operands.store(0, places, fn.cast(old if exclusive else total.get(), kind), i, mask)


def _scanned(fn: Function, x: Val, combine: str, start: Val) -> Val:
    """Return the running totals of the lanes of `x` (Hillis and Steele, Data Parallel Algorithms, 1986)."""
    distance = 1
    while distance < x.lanes:
        moved = fn.shuffle(start, x, [*range(distance), *range(x.lanes, 2 * x.lanes - distance)])
        x = fn.combine(combine, moved, x)
        distance *= 2
    return x


@template("top_k")
def top_k(fn: Function, target: Target, kind: Kind, access: tuple[str, ...], largest: bool) -> None:
    """Write the k best of each row in order, and where they were; of equals, the first ones.

    A heap holds the best so far, with the worst of them on top; the rest of the row is compared with that
    one, a vector at a time.

    ::

        for row in begin..end:
            heap = the first k elements
            for i in k..row, a vector at a time:
                if any x[i] is better than the top:
                    for each lane that is: put it in the top's place
            sort the heap                                   # Williams, Algorithm 232: Heapsort, 1964
            values, places = heap

    Pointers: values, places, in. Sizes: unused, inner, unused, k; then those of `Operands`.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: Of input and values.
        access: How each operand lies along a row.
        largest: Whether the largest are the best, not the smallest. NaN counts as largest.
    """
    operands = Operands(fn, _SIZES, (kind, I64, kind), access)
    lanes, inner, k = target.lanes, fn.size(1), fn.size(3)
    heap = _Heap(fn, k)
    with fn.loop(fn.begin, fn.end) as row:
        starts = operands.kept_starts(row)

        def keys(i: Val, mask: Val, starts: list[Val] = starts) -> Val:
            return _key(fn, operands.load(2, starts, i, lanes, mask), largest)

        with fn.loop(0, k, lanes) as i:
            fn.store(keys(i, fn.tail_mask(fn.minimum(inner - i, lanes), lanes)), heap.keys, i)
            fn.store(fn.lane_numbers(lanes) + i, heap.places, i)
        with fn.loop(0, k >> 1) as back:
            heap.sink((k >> 1) - 1 - back, k, *heap.at((k >> 1) - 1 - back))
        with fn.loop(k, inner, lanes) as i:
            mask = fn.tail_mask(fn.minimum(inner - i, lanes), lanes)
            found = keys(i, mask)
            hits = (found > fn.load(I64, heap.keys)) & mask
            with fn.when(fn.call(f"llvm.vector.reduce.or.v{lanes}i1", BOOL, 0, hits)):
                fn.store(found, heap.waiting, 0)
                with fn.loop(0, fn.minimum(inner - i, lanes)) as lane:
                    key = fn.load(I64, heap.waiting, lane)
                    with fn.when(key > fn.load(I64, heap.keys)):
                        heap.sink(fn.const(I64, 0), k, key, i + lane)
        with fn.loop(1, k) as back:
            heap.pop(k - back)
        with fn.loop(0, k) as i:
            place = fn.load(I64, heap.places, i)
            source = fn.load(kind, starts[2], place * operands.inner_steps[2])
            operands.store(0, starts, source, i, None)
            operands.store(1, starts, place, i, None)


class _Heap:
    """A heap in scratch: keys and places, the worst on top, which is the smallest key at the last place."""

    def __init__(self, fn: Function, size: Val) -> None:
        self.fn = fn
        self.waiting = fn.scratch
        self.keys = fn.at(I64, fn.scratch, SPARE)
        self.places = fn.at(I64, self.keys, size + SPARE)

    def at(self, i: Val) -> Place:
        """Return key and place of an entry."""
        return self.fn.load(I64, self.keys, i), self.fn.load(I64, self.places, i)

    def put(self, i: Val, key: Val, place: Val) -> None:
        """Store an entry."""
        self.fn.store(key, self.keys, i)
        self.fn.store(place, self.places, i)

    def sink(self, hole: Val, end: Val, key: Val, place: Val) -> None:
        """Put an entry at `hole` or further below, where those below are better."""
        fn = self.fn
        at, goes_on = fn.var(hole), fn.var(fn.const(BOOL, False))
        with fn.repeat_while() as again:
            parent = at.get()
            child = (parent << 1) + 1
            goes_on.set(False)
            with fn.when(child < end):
                other = fn.select(child + 1 < end, child + 1, child)
                child = fn.select(self._worse(self.at(other), self.at(child)), other, child)
                worst = self.at(child)
                with fn.when(self._worse(worst, (key, place))):
                    self.put(parent, *worst)
                    at.set(child)
                    goes_on.set(True)
            again(goes_on.get())
        self.put(at.get(), key, place)

    def pop(self, end: Val) -> None:
        """Move the worst entry to `end`, where the heap then ends."""
        worst, moved = self.at(self.fn.const(I64, 0)), self.at(end)
        self.put(end, *worst)
        self.sink(self.fn.const(I64, 0), end, *moved)

    def _worse(self, a: Place, b: Place) -> Val:
        return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] > b[1]))


SPARE = 16
"""Entries behind an array in scratch that a whole vector may overwrite."""


def scratch_entries(k: int) -> int:
    """Return how many entries of 8 bytes `top_k` needs."""
    return 2 * k + 3 * SPARE


def _key(fn: Function, x: Val, largest: bool) -> Val:
    """Return integers in the order of `x`, the best the largest: floats by their bits, NaN above all."""
    if x.kind.is_float:
        wide = x if x.kind in (F32, F64) else fn.cast(x, F32)
        wide = wide + 0.0
        whole = I64 if wide.kind is F64 else I32
        bits = fn.bitcast(wide, whole)
        sign = bits >> (8 * whole.size_bytes - 1)
        most = 2 ** (8 * whole.size_bytes - 1) - 1
        key = fn.select(fn.is_nan(wide), most, bits ^ (sign & most))
    elif x.kind is U64:
        key = fn.bitcast(x, I64) ^ -(2**63)
    else:
        key = x
    key = fn.cast(key, I64)
    return key if largest else ~key
