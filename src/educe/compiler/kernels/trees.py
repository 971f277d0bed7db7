"""Templates for ensembles of decision trees: every node for many rows, or every path of one row."""

from __future__ import annotations

from educe.compiler.emit import I32, I64, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.target import Target

CODE_VECTORS = 4
"""Vectors of codes that `trees_by_node` holds in registers."""

NAN_FIRST = 1 << 31
"""In a node's feature: NaN goes to the first child."""

EQUALITY = 1 << 30
"""In a node's feature: the test is x == threshold, not x <= threshold."""

FEATURE_MASK = EQUALITY - 1


def block_rows(target: Target, code: Kind) -> int:
    """Return how many rows are one unit of `trees_by_node`."""
    return CODE_VECTORS * target.vector_bytes // code.size_bytes


@template("trees_by_node")
def trees_by_node(fn: Function, target: Target, kind: Kind, code: Kind, aggregate: str) -> None:
    """Write the aggregated leaf weights of ensembles of small trees, a block of rows at a time.

    Every node is tested for every row. A row's `place` is the leftmost of a tree's leaves that it may still
    reach: a node, met before its descendants, moves a row to the right if its own first leaf is that place
    (a form of the interval test of Lucchese et al., QuickScorer, SIGIR 2015). Features become
    codes, the number of an ensemble's thresholds below them, so that a register holds many rows.

    ::

        for unit in begin..end:                                  # a block of rows
            code[plane, row] = count(thresholds[plane] < X[row, feature[plane]])
            total[target, row] = the neutral element
            for tree:
                place[row] = 0
                for node of tree, parents first:
                    if place[row] == first[node] and code[plane[node], row] > threshold[node]:
                        place[row] = second[node]
                for column of tree:
                    total[target[column], row] += weights[base[column] + place[row]]
            out[row, target] = total[target, row]

    Pointers: out, X, planes (feature, first threshold, search steps, code of NaN), thresholds, nodes (plane),
    codes of nodes (first, second, threshold), trees (first node, first column; one more at the end),
    columns (target, base), weights. Sizes: rows, features, planes, trees, targets.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: Of features, thresholds, weights and results.
        code: u8 or u16.
        aggregate: add, min or max.
    """
    rows, features, planes, trees, targets = (fn.size(index) for index in range(5))
    block = block_rows(target, code)
    codes = fn.scratch
    places = fn.at(code, codes, planes * block)
    totals = fn.at(code, places, block)
    tree_table, column_table, weights = fn.pointer(6), fn.pointer(7), fn.pointer(8)
    with fn.loop(fn.begin, fn.end) as unit:
        start = unit * block
        count = fn.minimum(rows - start, block)
        source = fn.at(kind, fn.pointer(1), start * features)
        with fn.loop(0, planes) as plane:
            _encode(fn, target, kind, code, plane, source, count, fn.at(code, codes, plane * block))
        neutral = fn.const(kind, _neutral(kind, aggregate), target.lanes)
        with fn.loop(0, targets * block, target.lanes) as i:
            fn.store(neutral, totals, i)
        with fn.loop(0, trees) as tree:
            first, column = fn.load(I32, tree_table, tree * 2), fn.load(I32, tree_table, tree * 2 + 1)
            stop, last = fn.load(I32, tree_table, tree * 2 + 2), fn.load(I32, tree_table, tree * 2 + 3)
            _places(fn, target, code, codes, fn.cast(first, I64), fn.cast(stop, I64), places)
            with fn.loop(fn.cast(column, I64), fn.cast(last, I64)) as each:
                base = fn.at(kind, weights, _index(fn, column_table, each * 2 + 1))
                total = fn.at(kind, totals, _index(fn, column_table, each * 2) * block)
                with fn.loop(0, block, target.lanes) as i:
                    leaf = fn.cast(fn.load(code, places, i, target.lanes), I32)
                    old = fn.load(kind, total, i, target.lanes)
                    fn.store(fn.combine(aggregate, old, fn.gather(kind, base, leaf)), total, i)
        result = fn.at(kind, fn.pointer(0), start * targets)
        with fn.loop(0, targets) as t, fn.loop(0, count, target.lanes) as i:
            mask = fn.tail_mask(count - i, target.lanes)
            to = (fn.lane_numbers(target.lanes) + i) * targets + t
            fn.scatter(fn.load(kind, fn.at(kind, totals, t * block), i, target.lanes), result, to, mask)


def _index(fn: Function, table: Val, index: Val) -> Val:
    return fn.cast(fn.load(I32, table, index), I64)


def _neutral(kind: Kind, aggregate: str) -> float:
    largest = 3.4028234663852886e38 if kind.name == "f32" else 1.7976931348623157e308
    return {"add": 0.0, "min": largest, "max": -largest}[aggregate]


def _encode(
    fn: Function, target: Target, kind: Kind, code: Kind, plane: Val, source: Val, count: Val, to: Val
) -> None:
    """Store the codes of one plane: by binary search, as many rows at once as a vector has lanes."""
    lanes = target.lanes
    feature, first, steps, of_nan = (_index(fn, fn.pointer(2), plane * 4 + field) for field in range(4))
    thresholds = fn.at(kind, fn.pointer(3), first)
    features = fn.size(1)
    with fn.loop(0, count, lanes) as i:
        mask = fn.tail_mask(count - i, lanes)
        x = fn.gather(kind, source, (fn.lane_numbers(lanes) + i) * features + feature, mask)
        found = fn.var(fn.const(I32, 0, lanes))
        with fn.loop(0, steps) as done:
            half = fn.cast(fn.const(I64, 1) << (steps - 1 - done), I32)
            place = found.get() + half
            below = fn.gather(kind, thresholds, place - 1) < x
            found.set(fn.select(below, place, found.get()))
        coded = fn.select(fn.is_nan(x), fn.splat(fn.cast(of_nan, I32), lanes), found.get())
        fn.store(fn.cast(coded, code), to, i)


def _places(fn: Function, target: Target, code: Kind, codes: Val, first: Val, stop: Val, places: Val) -> None:
    """Store the leaf of one tree that each row of the block reaches."""
    lanes = target.vector_bytes // code.size_bytes
    plane_table, code_table = fn.pointer(4), fn.pointer(5)
    held = [fn.var(fn.const(code, 0, lanes)) for _ in range(CODE_VECTORS)]
    with fn.loop(first, stop) as node:
        left, right, threshold = (
            fn.splat(fn.load(code, code_table, node * 3 + field), lanes) for field in range(3)
        )
        x = fn.at(code, codes, _index(fn, plane_table, node) * (CODE_VECTORS * lanes))
        for vector, place in enumerate(held):
            old = place.get()
            moves = (old == left) & (fn.load(code, x, vector * lanes, lanes) > threshold)
            place.set(fn.select(moves, right, old))
    for vector, place in enumerate(held):
        fn.store(place.get(), places, vector * lanes)


@template("trees_by_path")
def trees_by_path(
    fn: Function, target: Target, kind: Kind, vectors: int, equality: bool, aggregate: str
) -> None:
    """Write the aggregated leaf weights of an ensemble, many trees walking down at once for each row.

    ::

        for row in begin..end:
            for group of trees, `vectors` vectors of them at once:
                node[tree] = root[tree]
                for level below the depth of the group:          # a leaf is its own child
                    goes_second = not (X[row, feature[node]] <= threshold[node])
                    node[tree] = children[node, goes_second]
            for target:
                out[row, target] = sum(weights[base[column] + node[tree[column]]] for column of target)

    Pointers: out, X, roots, depths of groups, features of nodes (with `NAN_FIRST` and `EQUALITY`),
    thresholds, children, first columns of targets (one more at the end), columns (tree, base), weights.
    Sizes: features, groups, targets.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: Of features, thresholds, weights and results.
        vectors: Vectors of trees that walk together.
        equality: Whether some node tests for equality.
        aggregate: add, min or max.
    """
    lanes = target.lanes
    features, groups, targets = (fn.size(index) for index in range(3))
    nodes = fn.scratch
    roots, depths, starts, columns, weights = (fn.pointer(index) for index in (2, 3, 7, 8, 9))
    with fn.loop(fn.begin, fn.end) as row:
        x = fn.at(kind, fn.pointer(1), row * features)
        with fn.loop(0, groups) as group:
            first = group * (vectors * lanes)
            held = [fn.var(fn.load(I32, roots, first + k * lanes, lanes)) for k in range(vectors)]
            with fn.loop(0, _index(fn, depths, group)):
                for node in held:
                    node.set(_child(fn, kind, x, node.get(), equality))
            for k, node in enumerate(held):
                fn.store(node.get(), nodes, first + k * lanes)
        with fn.loop(0, targets) as t:
            total = fn.var(fn.const(kind, _neutral(kind, aggregate)))
            with fn.loop(_index(fn, starts, t), _index(fn, starts, t + 1)) as column:
                leaf = _index(fn, nodes, _index(fn, columns, column * 2))
                weight = fn.load(kind, weights, leaf + _index(fn, columns, column * 2 + 1))
                total.set(fn.combine(aggregate, total.get(), weight))
            fn.store(total.get(), fn.pointer(0), row * targets + t)


def _child(fn: Function, kind: Kind, x: Val, node: Val, equality: bool) -> Val:
    word = fn.gather(I32, fn.pointer(4), node)
    threshold = fn.gather(kind, fn.pointer(5), node)
    value = fn.gather(kind, x, word & FEATURE_MASK)
    second = ~(value <= threshold)
    if equality:
        second = fn.select((word & EQUALITY) != 0, value != threshold, second)
    second = second & ~(fn.is_nan(value) & (word < 0))
    return fn.gather(I32, fn.pointer(6), (node << 1) + fn.extend(second, I32))
