"""Templates that move elements to or from places told by indices.

Indices may be negative, counted from the end; one that is outside all the same is moved to the nearest place
inside, so that no content of indices reaches other memory, and the run is told by a byte, the last pointer.
"""

from __future__ import annotations

from educe.compiler.emit import I64, U8, U16, U32, U64, Function, Kind, Operand, Val
from educe.compiler.kernel import template
from educe.compiler.target import Target

ROW_BLOCK = 16384
"""Bytes of a row that are one unit of work."""

INNER_BLOCK = 1024
"""Elements of a row of updates that are one unit of work."""

BITS = {1: U8, 2: U16, 4: U32, 8: U64}
"""The kind that carries elements of so many bytes unchanged."""


class Places:
    """The places that indices tell, all inside, and whether any index was not.

    Args:
        fn: The kernel.
        lanes: How many indices are met at once, 0 for single ones.
    """

    def __init__(self, fn: Function, lanes: int = 0) -> None:
        self._fn = fn
        self._moved = fn.var(fn.const(I64, 0, lanes))

    def nearest(self, index: Val, length: Val) -> Val:
        """Return `index`, counted from the end if negative, as an i64 place inside ``0..length``."""
        fn = self._fn
        told = fn.extend(index, I64)
        length = fn.splat(length, told.lanes)
        told = fn.select(told < 0, told + length, told)
        place = fn.maximum(fn.minimum(told, length - 1), 0)
        self._moved.set(self._moved.get() | (place ^ told))
        return place

    def report(self, status: Val) -> None:
        """Set the byte at `status` if an index was outside."""
        fn, moved = self._fn, self._moved.get()
        with fn.when((fn.reduce("or", moved) if moved.lanes else moved) != 0):
            fn.store(fn.const(U8, 1), status)


def copy_bytes(fn: Function, to: Val, source: Val, count: Val) -> None:
    """Copy `count` bytes between places that do not overlap."""
    fn.declare("llvm.memcpy.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
    fn.line(
        f"call void @llvm.memcpy.p0.p0.i64(ptr align 1 {to.ref}, ptr align 1 {source.ref}, "
        f"i64 {count.ref}, i1 false)"
    )


def offset_of(fn: Function, row: Val, rank: Val, sizes_at: Operand, strides_at: Operand) -> Val:
    """Return the offset of `row`: index times stride over `rank` dimensions, found at `sizes_at` and on."""
    rest, offset = fn.var(row), fn.var(fn.const(I64, 0))
    with fn.loop(0, rank) as back:
        axis = rank - 1 - back
        size = fn.size(axis + sizes_at)
        offset.set(offset.get() + rest.get() % size * fn.size(axis + strides_at))
        rest.set(rest.get() // size)
    return offset.get()


@template("gather_rows")
def gather_rows(fn: Function, target: Target, index: Kind) -> None:
    """Write ``out[r, :] = data[place(r), :]``, where a place is told by a tuple of `depth` indices.

    ::

        for unit in begin..end:                       # a block of a row
            r, block = unit / blocks, unit % blocks
            place = (r / rows) * batch_step
            for j in 0..depth:
                place += clamp(indices[r % index_rows, j], length_j) * step_j
            out[r, block] = data[place + block]

    Pointers: out (dense), data, indices (dense), status. Sizes, all steps in bytes: bytes of a row, blocks of
    a row, rows of a batch, the batch's step, rows of indices, depth, then the length and the step of each
    index.
    """
    row_bytes, blocks, rows, batch_step, index_rows, depth = (fn.size(number) for number in range(6))
    out, data, indices, status = (fn.pointer(number) for number in range(4))
    places = Places(fn)
    with fn.loop(fn.begin, fn.end) as unit:
        row = unit // blocks
        first = unit % blocks * ROW_BLOCK
        place = fn.var(row // rows * batch_step + first)
        start = row % index_rows * depth
        with fn.loop(0, depth) as j:
            found = places.nearest(fn.load(index, indices, start + j), fn.size(j * 2 + 6))
            place.set(place.get() + found * fn.size(j * 2 + 7))
        count = fn.minimum(row_bytes - first, ROW_BLOCK)
        copy_bytes(fn, fn.at(U8, out, row * row_bytes + first), fn.at(U8, data, place.get()), count)
    places.report(status)


@template("gather_elements")
def gather_elements(fn: Function, target: Target, kind: Kind, index: Kind) -> None:
    """Write ``out[row, i] = data[base(row) + i * step + clamp(indices[row, i]) * axis_step]``.

    ::

        for row in begin..end:
            for i in 0..length, a vector at a time, the last one masked:
                place = clamp(indices[base_of_indices(row) + i * index_step], axis_length)
                out[row, i] = data[base(row) + i * step + place * axis_step]

    Pointers: out (dense), data, indices, status. Sizes: length of a row, step, axis length, axis step, index
    step, outer rank, then the outer sizes, data's outer strides, and the outer strides of indices.
    """
    lanes = target.lanes
    length, step, axis_length, axis_step, index_step, rank = (fn.size(number) for number in range(6))
    out, data, indices, status = (fn.pointer(number) for number in range(4))
    places = Places(fn, lanes)
    with fn.loop(fn.begin, fn.end) as row:
        source = fn.at(kind, data, offset_of(fn, row, rank, 6, rank + 6))
        chosen = fn.at(index, indices, offset_of(fn, row, rank, 6, rank * 2 + 6))
        to = fn.at(kind, out, row * length)

        def body(i: Val, mask: Val | None) -> None:
            lane = fn.lane_numbers(lanes) + fn.splat(i, lanes)
            found = places.nearest(fn.gather(index, chosen, lane * index_step, mask), axis_length)
            fn.store(fn.gather(kind, source, found * axis_step + lane * step, mask), to, i, mask)

        whole = length // lanes * lanes
        with fn.loop(0, whole, lanes) as i:
            body(i, None)
        with fn.when(whole < length):
            body(whole, fn.tail_mask(length - whole, lanes))
    places.report(status)


@template("scatter_elements")
def scatter_elements(fn: Function, target: Target, kind: Kind, index: Kind, reduction: str) -> None:
    """Write ``out[line, clamp(indices[line, a])] = updates[line, a]``, or combine it with what is there.

    ::

        for line in begin..end:                       # all of one line is one unit: in the order of indices
            for a in 0..length:
                place = clamp(indices[line, a], axis_length)
                out[base(line) + place * axis_step] = updates[line, a]

    Pointers: out, updates, indices, status. Sizes: length, axis length, axis step of out, of updates and of
    indices, outer rank, then the outer sizes, and the outer strides of out, of updates and of indices.
    """
    length, axis_length, rank = fn.size(0), fn.size(1), fn.size(5)
    steps = [fn.size(2), fn.size(3), fn.size(4)]
    kinds = [kind, kind, index]
    *pointers, status = (fn.pointer(number) for number in range(4))
    places = Places(fn)
    with fn.loop(fn.begin, fn.end) as line:
        out, updates, indices = (
            fn.at(kinds[k], pointers[k], offset_of(fn, line, rank, 6, rank * (k + 1) + 6)) for k in range(3)
        )
        with fn.loop(0, length) as a:
            place = places.nearest(fn.load(index, indices, a * steps[2]), axis_length) * steps[0]
            value = fn.load(kind, updates, a * steps[1])
            if reduction != "none":
                value = fn.combine(reduction, fn.load(kind, out, place), value)
            fn.store(value, out, place)
    places.report(status)


@template("scatter_rows")
def scatter_rows(fn: Function, target: Target, kind: Kind, index: Kind, reduction: str) -> None:
    """Write ``out[place(r), :] = updates[r, :]`` in the order of rows, or combine it with what is there.

    ::

        for block in begin..end:                      # of every row: threads share columns, not rows
            for r in 0..rows:
                place = sum over j in 0..depth of clamp(indices[r, j], length_j) * step_j
                for i in block, a vector at a time, the last one masked:
                    out[place + i] = updates[r, i]

    Pointers: out, updates, indices, all dense, status. Sizes: rows, length of a row, depth, then the length
    and the step of each index.
    """
    lanes = target.lanes
    rows, length, depth = fn.size(0), fn.size(1), fn.size(2)
    out, updates, indices, status = (fn.pointer(number) for number in range(4))
    places = Places(fn)
    with fn.loop(fn.begin, fn.end) as block:
        first = block * INNER_BLOCK
        stop = fn.minimum(first + INNER_BLOCK, length)
        whole = first + (stop - first) // lanes * lanes
        with fn.loop(0, rows) as row:
            place = fn.var(fn.const(I64, 0))
            with fn.loop(0, depth) as j:
                found = places.nearest(fn.load(index, indices, row * depth + j), fn.size(j * 2 + 3))
                place.set(place.get() + found * fn.size(j * 2 + 4))
            to, source = fn.at(kind, out, place.get()), fn.at(kind, updates, row * length)

            def body(i: Val, lanes: int, to: Val = to, source: Val = source) -> None:
                value = fn.load(kind, source, i, lanes)
                if reduction != "none":
                    value = fn.combine(reduction, fn.load(kind, to, i, lanes), value)
                fn.store(value, to, i)

            with fn.loop(first, whole, lanes) as i:
                body(i, lanes)
            with fn.loop(whole, stop) as i:
                body(i, 0)
    places.report(status)
