"""`TileEnd`: what becomes of a tile of sums before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from educe.compiler.emit import I64, Function, Kind, Val
from educe.compiler.kernels.scalars import Expression


class TileEnd:
    """The end of a tile: its sums go through the expression to the output.

    Args:
        fn: The function to write.
        lanes: Elements of a vector.
        kind: The kind of the sums.
        expression: What is computed of a sum and the operands.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
        first_pointer: The number of the first operand among the kernel's pointers; the output is number 0.
        first_size: Where the strides of the output and the operands begin: row, outer and inner batch.
    """

    def __init__(
        self,
        fn: Function,
        lanes: int,
        kind: Kind,
        expression: Expression,
        access: tuple[str, ...],
        first_pointer: int,
        first_size: int,
    ) -> None:
        self.fn, self.lanes = fn, lanes
        self.kind, self.expression, self.access = kind, expression, access
        self.kinds = (expression.kind, *expression.inputs[1:])
        self.pointers = [fn.pointer(0), *(fn.pointer(first_pointer + i) for i in range(len(access)))]
        self.strides = [
            tuple(fn.size(first_size + 3 * i + j) for j in range(3)) for i in range(len(access) + 1)
        ]

    def starts(self, batches: tuple[Val, Val]) -> list[Val]:
        """Return where output and operands begin in a part of the batch."""
        outer, inner = batches
        return [
            self.fn.at(kind, pointer, outer * strides[1] + inner * strides[2])
            for kind, pointer, strides in zip(self.kinds, self.pointers, self.strides, strict=True)
        ]

    def write(
        self,
        tile: Val,
        tile_row: Val,
        row: Val,
        rows: Val,
        starts: Sequence[Val],
        column: Val,
        count: Val,
        usual: int = 0,
    ) -> None:
        """Write `rows` from `row` on, `count` columns from `column` on, from a tile of rows of `tile_row`.

        No loop goes over the columns where they are as many as are `usual`, a multiple of the lanes.
        """
        fn, lanes = self.fn, self.lanes
        whole = count - count % lanes
        with fn.loop(0, rows) as r:
            vector = self._row(fn.at(self.kind, tile, r * tile_row), row + r, starts, column)
            with fn.either(count == usual) as otherwise:
                for place in range(0, usual, lanes):
                    vector(fn.const(I64, place), None)
                otherwise()
                with fn.loop(0, whole, lanes) as done:
                    vector(done, None)
        with fn.when(whole < count):
            mask = fn.tail_mask(count - whole, lanes)
            with fn.loop(0, rows) as r:
                self._row(fn.at(self.kind, tile, r * tile_row), row + r, starts, column)(whole, mask)

    def _row(
        self, sums: Val, row: Val, starts: Sequence[Val], column: Val
    ) -> Callable[[Val, Val | None], None]:
        """Return what writes a vector of a row, given how many columns are done, under a mask."""
        fn, lanes = self.fn, self.lanes
        places = [
            fn.at(kind, start, row * strides[0])
            for kind, start, strides in zip(self.kinds, starts, self.strides, strict=True)
        ]
        once = {
            index: fn.load(self.kinds[index], places[index])
            for index, access in enumerate(self.access, 1)
            if access == "same"
        }

        def vector(done: Val, mask: Val | None) -> None:
            values = [fn.load(self.kind, sums, done, lanes)]
            for index in range(1, len(places)):
                kind, place = self.kinds[index], places[index]
                values.append(
                    fn.splat(once[index], lanes)
                    if index in once
                    else fn.load(kind, place, column + done, lanes, mask)
                )
            result = fn.splat(self.expression.emit(fn, values), lanes)
            fn.store(result, places[0], column + done, mask)

        return vector
