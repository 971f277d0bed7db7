"""The template `recurrent`: all steps of an LSTM, GRU or RNN after the product of its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from educe.compiler.emit import I32, I64, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.kernels.scalars import Step, apply
from educe.compiler.target import Target

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""How many gates each cell has."""


@dataclass(frozen=True)
class Activation:
    """A function of a gate: scale · f(x · slope + shift), with `f` a scalar function."""

    function: str
    attributes: tuple[tuple[str, float], ...] = ()
    slope: float = 1.0
    shift: float = 0.0
    scale: float = 1.0

    def emit(self, fn: Function, x: Val) -> Val:
        """Emit the function of `x`."""
        x = x if self.slope == 1.0 else x * self.slope
        x = x if self.shift == 0.0 else x + self.shift
        y = x if self.function == "Identity" else apply(fn, Step(self.function, (0,), self.attributes), [x])
        return y if self.scale == 1.0 else y * self.scale


@dataclass(frozen=True)
class Cell:
    """What is fixed of a recurrent cell when its code is made.

    Attributes:
        name: LSTM, GRU or RNN.
        kind: The type of everything.
        activations: The functions f, g, h of the operator's definition, as many as the cell has.
        clip: The bound of what goes into a gate's function, or 0 for none.
        has_peepholes: Whether an LSTM's gates see the cell's state.
        couples: Whether an LSTM forgets exactly what it does not take in.
        resets_after: Whether a GRU's reset gate acts after the product.
    """

    name: str
    kind: Kind
    activations: tuple[Activation, ...]
    clip: float = 0.0
    has_peepholes: bool = False
    couples: bool = False
    resets_after: bool = False

    @property
    def has_state(self) -> bool:
        """Whether there is a state beside the hidden one."""
        return self.name == "LSTM"

    def bounded(self, fn: Function, x: Val) -> Val:
        """Return `x` within the clip's bounds."""
        return fn.minimum(fn.maximum(x, -self.clip), self.clip) if self.clip else x

    def gate(self, fn: Function, index: int, x: Val) -> Val:
        """Return the function number `index` of a gate's clipped input."""
        return self.activations[index].emit(fn, self.bounded(fn, x))


@template("recurrent")
def recurrent(fn: Function, target: Target, cell: Cell, tile: int) -> None:
    """Write every step's hidden state, and the last states.

    The weights lie as [direction][block of hidden units][k][gate][lane], so that a vector of each gate of
    the same units is in a register when their sum over k is done.

    ::

        for unit in begin..end:                      # a direction and a group of rows of the batch
            h, c = initial states of the rows
            for step in steps:
                for block of hidden units, for `tile` rows r of the group:
                    gates[r, g] = x_product[time(step, r), row(r), direction, block, g]
                    for k in hidden:
                        gates[r, g] += h[r, k] * weights[direction, block, k, g]
                    h_new[r, block], c[r, block] = cell(gates[r, :], h[r, block], c[r, block])
                    Y[time(step, r), direction, row(r), block] = h_new[r, block]
                h = h_new
            Y_h, Y_c = h, c

    A row whose length is over keeps its states, and its outputs are 0. Rows beyond the last repeat it.
    A row's place in its group or tile has no say in its result.

    Pointers: Y, Y_h, Y_c, x_product, weights, extra (peepholes of i, o, f, or the biases of a GRU's
    hidden product), lengths (i32), h_0, c_0. Sizes: steps, rows, hidden, the first direction that runs
    backwards, rows of a group, then the strides of x_product (step, direction, row), Y (step, direction,
    row), Y_h and Y_c (direction, row), h_0 (direction, row), c_0 (direction, row).

    Args:
        fn: The function to write.
        target: Its machine.
        cell: What one step is.
        tile: Rows that share the loads of weights.
    """
    _Steps(fn, target, cell, tile).write()


_X, _Y, _LAST, _H0, _C0 = 5, 8, 11, 13, 15


@dataclass(frozen=True)
class _Row:
    """One row of a tile at one step: where its states, its input and its output start."""

    state: Val
    goes_on: Val
    x: Val
    y: Val


class _Steps:
    """The loop nest of `recurrent` while it is written."""

    def __init__(self, fn: Function, target: Target, cell: Cell, tile: int) -> None:
        self.fn, self.cell, self.tile = fn, cell, tile
        self.lanes, self.gates = target.lanes, GATES[cell.name]
        self.steps, self.rows, self.hidden, self.backward, self.group = (fn.size(index) for index in range(5))
        self.strides = {index: fn.size(index) for index in range(_X, _C0 + 2)}
        self.y, self.y_h, self.y_c, self.x, self.weights, self.extra, lengths, self.h_0, self.c_0 = (
            fn.pointer(index) for index in range(9)
        )
        self.lengths = lengths
        self.held = fn.stack(cell.kind, tile * self.gates * self.lanes)
        self.width = (self.hidden + (self.lanes - 1)) // self.lanes * self.lanes

    def write(self) -> None:
        """Write the loop over units."""
        fn, size = self.fn, self.width * self.group
        h_0, h_1, c, reset = (fn.at(self.cell.kind, fn.scratch, size * part) for part in range(4))
        groups = (self.rows + (self.group - 1)) // self.group
        with fn.loop(fn.begin, fn.end) as unit:
            direction, first = unit // groups, (unit % groups) * self.group
            count = fn.minimum(self.rows - first, self.group)
            self._copy(direction, first, count, _H0, h_0, source=self.h_0)
            if self.cell.has_state:
                self._copy(direction, first, count, _C0, c, source=self.c_0)
            with fn.loop(0, self.steps) as step:
                odd = (step & 1) == 1
                old, new = fn.select(odd, h_1, h_0), fn.select(odd, h_0, h_1)
                self._step(direction, first, count, step, old, new, c, reset)
            last = fn.select((self.steps & 1) == 1, h_1, h_0)
            self._copy(direction, first, count, _LAST, last, to=self.y_h)
            if self.cell.has_state:
                self._copy(direction, first, count, _LAST, c, to=self.y_c)

    def _copy(
        self,
        direction: Val,
        first: Val,
        count: Val,
        stride: int,
        state: Val,
        source: Val | None = None,
        to: Val | None = None,
    ) -> None:
        """Copy a state of every row from `source`, or `to` there."""
        fn, kind, lanes, strides = self.fn, self.cell.kind, self.lanes, self.strides
        with fn.loop(0, count) as r, fn.loop(0, self.width, lanes) as j:
            start = direction * strides[stride] + (first + r) * strides[stride + 1] + j
            mask = fn.tail_mask(self.hidden - j, lanes)
            if source is not None:
                fn.store(fn.load(kind, source, start, lanes, mask), state, self.width * r + j)
            if to is not None:
                fn.store(fn.load(kind, state, self.width * r + j, lanes), to, start, mask)

    def _step(
        self, direction: Val, first: Val, count: Val, step: Val, old: Val, new: Val, c: Val, reset: Val
    ) -> None:
        """Write one step of all rows of the group."""
        is_reset_before = self.cell.name == "GRU" and not self.cell.resets_after
        if is_reset_before:
            with self._rows(direction, first, count, step, [(1, old)]) as (j, row, gates):
                self._keep(self.cell.gate(self.fn, 0, gates[0]) * self._state(old, row, j), reset, row, j)
        chosen = [(0, old), (2, reset)] if is_reset_before else [(gate, old) for gate in range(self.gates)]
        with self._rows(direction, first, count, step, chosen) as (j, row, gates):
            h, state = self._cell(direction, j, row, gates, old, c)
            self._keep(self.fn.select(row.goes_on, h, self._state(old, row, j)), new, row, j)
            if state is not None:
                self._keep(self.fn.select(row.goes_on, state, self._state(c, row, j)), c, row, j)
            mask = self.fn.tail_mask(self.hidden - j, self.lanes)
            self.fn.store(self.fn.select(row.goes_on, h, 0.0), self.y, row.y + j, mask)

    @contextmanager
    def _rows(
        self, direction: Val, first: Val, count: Val, step: Val, gates: Sequence[tuple[int, Val]]
    ) -> Iterator[tuple[Val, _Row, list[Val]]]:
        """Write the loops over blocks of hidden units and over rows, after the sums of a tile of them."""
        fn, kind, lanes = self.fn, self.cell.kind, self.lanes
        with fn.loop(0, self.width, lanes) as j, fn.loop(0, count, self.tile) as start:
            places = [fn.minimum(start + r, count - 1) for r in range(self.tile)]
            tile = [self._row(direction, first, place, step) for place in places]
            for index, total in enumerate(self._sums(direction, j, tile, gates)):
                fn.store(total.get(), self.held, index * lanes)
            with fn.loop(0, fn.minimum(count - start, self.tile)) as r:
                held = fn.at(kind, self.held, r * (len(gates) * lanes))
                values = [fn.load(kind, held, index * lanes, lanes) for index in range(len(gates))]
                yield j, self._row(direction, first, start + r, step), values

    def _row(self, direction: Val, first: Val, place: Val, step: Val) -> _Row:
        fn, strides, row = self.fn, self.strides, first + place
        length = fn.minimum(fn.cast(fn.load(I32, self.lengths, row), I64), self.steps)
        goes_on = step < length
        time = fn.select((direction >= self.backward) & goes_on, length - 1 - step, step)
        x, y = (time * strides[at] + direction * strides[at + 1] + row * strides[at + 2] for at in (_X, _Y))
        return _Row(self.width * place, goes_on, x, y)

    def _keep(self, value: Val, state: Val, row: _Row, j: Val) -> None:
        self.fn.store(value, state, row.state + j)

    def _state(self, state: Val, row: _Row, j: Val) -> Val:
        return self.fn.load(self.cell.kind, state, row.state + j, self.lanes)

    def _extra(self, direction: Val, j: Val, index: int, count: int) -> Val:
        place = (direction * self.width + j) * count + index * self.lanes
        return self.fn.load(self.cell.kind, self.extra, place, self.lanes)

    def _sums(
        self, direction: Val, j: Val, tile: Sequence[_Row], gates: Sequence[tuple[int, Val]]
    ) -> list[Var]:
        """Write the products of some gates, each with a state; one that is reset starts without the input."""
        fn, kind, lanes = self.fn, self.cell.kind, self.lanes
        sums: list[Var] = []
        for row in tile:
            for gate, _ in gates:
                first = fn.load(kind, self.x, row.x + j * self.gates + gate * lanes, lanes)
                if self.cell.resets_after:
                    bias = self._extra(direction, j, gate, 3)
                    first = bias if gate == 2 else first + bias
                sums.append(fn.var(first))
        block = (direction * self.width + j) * self.gates
        weights = fn.at(kind, self.weights, block * self.hidden)
        with fn.loop(0, self.hidden) as k:
            loaded = [
                fn.load(kind, weights, k * (self.gates * lanes) + gate * lanes, lanes) for gate, _ in gates
            ]
            totals = iter(sums)
            for row in tile:
                for weight, (_, state) in zip(loaded, gates, strict=True):
                    total = next(totals)
                    total.set(fn.fma(fn.load(kind, state, row.state + k), weight, total.get()))
        return sums

    def _cell(
        self, direction: Val, j: Val, row: _Row, gates: Sequence[Val], old: Val, c: Val
    ) -> tuple[Val, Val | None]:
        """Write the new hidden state of a row, and its other state if the cell has one."""
        if self.cell.name == "RNN":
            return self.cell.gate(self.fn, 0, gates[0]), None
        if self.cell.name == "LSTM":
            return self._lstm(direction, j, gates, self._state(c, row, j))
        return self._gru(j, row.x, gates, self._state(old, row, j)), None

    def _lstm(self, direction: Val, j: Val, gates: Sequence[Val], c: Val) -> tuple[Val, Val]:
        fn, cell = self.fn, self.cell
        i, o, f, g = gates
        if cell.has_peepholes:
            i = fn.fma(self._extra(direction, j, 0, 3), c, i)
            f = fn.fma(self._extra(direction, j, 2, 3), c, f)
        i = cell.gate(fn, 0, i)
        f = 1.0 - i if cell.couples else cell.gate(fn, 0, f)
        state = f * c + i * cell.gate(fn, 1, g)
        if cell.has_peepholes:
            o = fn.fma(self._extra(direction, j, 1, 3), state, o)
        return cell.gate(fn, 0, o) * cell.activations[2].emit(fn, state), state

    def _gru(self, j: Val, x: Val, gates: Sequence[Val], h: Val) -> Val:
        fn, cell = self.fn, self.cell
        z, inner = cell.gate(fn, 0, gates[0]), gates[-1]
        if cell.resets_after:
            place = x + j * self.gates + 2 * self.lanes
            reset = cell.gate(fn, 0, gates[1])
            inner = fn.fma(reset, inner, fn.load(cell.kind, self.x, place, self.lanes))
        return (1.0 - z) * cell.gate(fn, 1, inner) + z * h
