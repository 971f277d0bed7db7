"""The kernels of mixtures of experts: rows in the order of experts, and each expert's product."""

from __future__ import annotations

from educe.compiler.emit import I64, U8, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.dot import multiplier
from educe.compiler.kernels.expression import Expression
from educe.compiler.kernels.product import Body, lanes_of
from educe.compiler.kernels.quantized import Format, Product, Sums
from educe.compiler.kernels.quantized_unit import Unit
from educe.compiler.kernels.tile_end import TileEnd
from educe.compiler.target import Target
from educe.model.quantized import PANEL

PRODUCT_SIZES = 10
"""Sizes of an expert's product before the strides of what its expression reads and writes."""


@template("expert_order")
def expert_order(fn: Function, target: Target) -> None:
    """Sort choices by expert, those of one expert in their own order.

    ::

        count the choices of each expert; ends[expert] = the choices of the experts before it
        for choice: places[choice] = ends[expert of choice]++; sources[places[choice]] = choice / chosen

    Pointers: places, sources, ends, experts (all i64). Sizes: choices, experts, choices of a token. An expert
    that is not there is the nearest that is.
    """
    del target
    places, sources, ends, experts = (fn.pointer(index) for index in range(4))
    count, num_experts, chosen = (fn.size(index) for index in range(3))
    zero, one = fn.const(I64, 0), fn.const(I64, 1)

    def counter(choice: Val) -> Val:
        expert = fn.load(I64, experts, choice)
        return fn.maximum(fn.minimum(expert, num_experts - 1), 0)

    with fn.loop(fn.begin, fn.end):
        with fn.loop(0, num_experts) as expert:
            fn.store(zero, ends, expert)
        with fn.loop(0, count) as choice:
            expert = counter(choice)
            fn.store(fn.load(I64, ends, expert) + one, ends, expert)
        total = fn.var(zero)
        with fn.loop(0, num_experts) as expert:
            before = total.get()
            total.set(before + fn.load(I64, ends, expert))
            fn.store(before, ends, expert)
        with fn.loop(0, count) as choice:
            expert = counter(choice)
            place = fn.load(I64, ends, expert)
            fn.store(place + one, ends, expert)
            fn.store(place, places, choice)
            fn.store(choice // chosen, sources, place)


@template("expert_product")
def expert_product(
    fn: Function, target: Target, kind: Kind, vectors: int, expression: Expression, access: tuple[str, ...]
) -> None:
    """Write ``out[row, column] = expression(sum over k of a[row, k] * b[expert, k, column], operands...)``.

    ::

        for unit in begin..end:                          # an expert, a group of panels
            for panel in the group, tile.panels at a time:
                for row in ends[expert - 1]..ends[expert], tile.rows at a time:
                    as in `product`

    An expert without rows costs nothing. Each output is one sum in the order of k, as in `product`.

    Pointers: out, a, b, ends (i64), operands. Sizes: N, K, M, panels of a group, groups; strides of a: row;
    of b: k_step, panel_step, expert; how far what is fetched of the next panel moves with k; strides of
    out and then of each operand: row, and two that are not used. Ends outside of a are its end.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: The kind of a, which tells that of b and of the sums.
        vectors: Vectors of columns in a panel.
        expression: What ends the sum.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
    """
    lanes, by = lanes_of(target, kind), multiplier(target, kind)
    width = vectors * lanes
    n, depth, m, group_panels, groups, a_row = (fn.size(index) for index in range(6))
    k_step, panel_step, b_expert, fetch_step = (fn.size(index) for index in range(6, 10))
    zero = fn.const(I64, 0)
    ends = TileEnd(fn, lanes, by.total, expression, access, 4, PRODUCT_SIZES)
    body = Body(fn, by, target, vectors, ends, (depth, a_row, k_step, panel_step, fetch_step), False)
    with fn.loop(fn.begin, fn.end) as unit:
        expert, first_panel = unit // groups, unit % groups * group_panels
        rows = _rows_of(fn, fn.pointer(3), expert, m)
        with fn.when(rows[0] < rows[1]):
            b = fn.at(by.right, fn.pointer(2), expert * b_expert)
            stop_column = fn.minimum((first_panel + group_panels) * width, n)
            panels = (first_panel, (stop_column + (width - 1)) // width)
            body.write((fn.pointer(1), b), ends.starts((zero, zero)), rows, panels, stop_column)


@template("quantized_expert_product")
def quantized_expert_product(
    fn: Function, target: Target, weight: Format, rows: int, expression: Expression, access: tuple[str, ...]
) -> None:
    """Write ``out[row, column] = expression(product, operands...)`` of rounded rows and experts' weights.

    ::

        for unit in begin..end:                          # some panels of 16 columns of one expert
            for panel in the unit:
                for row in ends[expert - 1]..ends[expert], `rows` at a time:
                    as in `quantized_product`

    Pointers and sizes are those of `quantized_product`; N is the columns of one expert, and its panels come
    behind those of the expert before. Then another pointer: ends (i64).

    Args:
        fn: The function to write.
        target: Its machine.
        weight: The format of the weights.
        rows: Rows that are multiplied at once.
        expression: What ends the product.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
    """
    body = Product(fn, target, weight, expression, access)
    tile = Sums(body, rows)
    ends = fn.pointer(5 + sum(weight.extras) + len(access))
    with fn.loop(fn.begin, fn.end) as unit:
        panels, (start, stop), origin = _part_of(body, ends, unit)
        with fn.loop(*panels) as panel:
            column = (panel - origin) * PANEL
            count = fn.minimum(body.n - column, PANEL)
            with fn.loop(start, stop, rows) as row:
                tile.write(panel, row, stop)
                left = fn.minimum(stop - row, rows)
                body.ends.write(tile.memory, fn.const(I64, PANEL), row, left, body.starts, column, count)


@template("quantized_expert_unit")
def quantized_expert_unit(
    fn: Function, target: Target, weight: Format, depth: int, expression: Expression, access: tuple[str, ...]
) -> None:
    """Write what `quantized_expert_product` does, by a matrix unit.

    ::

        for unit in begin..end:                          # some panels of 16 columns of one expert
            for row in ends[expert - 1]..ends[expert], from a multiple of 16 on, 32 at a time:
                as in `quantized_unit`

    Pointers and sizes are those of `quantized_expert_product`.

    Args:
        fn: The function to write.
        target: Its machine.
        weight: The format of the weights.
        depth: Numbers along k that are multiplied at once.
        expression: What ends the product.
        access: For each operand, ``dense`` along the columns or the ``same`` for all.
    """
    body = Product(fn, target, weight, expression, access)
    unit_body = Unit(body, depth)
    ends = fn.pointer(5 + sum(weight.extras) + len(access))
    matrix_unit.configure(fn, fn.table(U8, matrix_unit.shapes(depth)))
    with fn.loop(fn.begin, fn.end) as unit:
        panels, rows, origin = _part_of(body, ends, unit)
        with fn.when(rows[0] < rows[1]):
            unit_body.multiply(panels, rows, origin)
    matrix_unit.release(fn)


def _part_of(body: Product, ends: Val, unit: Val) -> tuple[tuple[Val, Val], tuple[Val, Val], Val]:
    """Return panels and rows of a unit of work, firsts and ends, and the first panel of its expert."""
    fn, panels = body.fn, (body.n + (PANEL - 1)) // PANEL
    units = (panels + body.unit - 1) // body.unit
    expert = unit // units
    origin = expert * panels
    first = origin + unit % units * body.unit
    return (first, fn.minimum(first + body.unit, origin + panels)), _rows_of(fn, ends, expert, body.m), origin


def _rows_of(fn: Function, ends: Val, expert: Val, count: Val) -> tuple[Val, Val]:
    """Return the first of the rows of an expert, and their end, within so many."""
    before = fn.load(I64, ends, fn.maximum(expert - 1, 0))
    first = fn.maximum(fn.select(expert > 0, before, 0), 0)
    return first, fn.minimum(fn.load(I64, ends, expert), count)
