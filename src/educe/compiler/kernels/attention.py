"""The kernel of attention: blocks of queries against blocks of keys, without the matrix of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from educe.compiler import vector_math as vm
from educe.compiler.emit import F32, I64, Function, Operand, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.dot import multiplier
from educe.compiler.kernels.product import sum_of_products, tiles
from educe.compiler.target import Target

# Keys of a block.
_KEYS = 192

_MINUS_INFINITY = float("-inf")


def _feature_rows(target: Target, vectors: int) -> int:
    """Return the features of v that are summed in registers together."""
    return 8 if target.registers >= 32 or vectors == 1 else 4


def scratch_elements(target: Target, vectors: int, features: int, v_features: int) -> int:
    """Return the size of the memory that a thread needs."""
    width = vectors * target.lanes
    keys = _KEYS + tiles(target, vectors)[0][0]
    return width * (_padded(target, features) + 2 * keys + _padded(target, v_features))


def _padded(target: Target, features: int) -> int:
    """Return the rows of memory that hold so many features in whole tiles."""
    unit = max(target.lanes, 8)
    return -(-features // unit) * unit


@template("attention")
def attention(
    fn: Function,
    target: Target,
    vectors: int,
    scale: float,
    softcap: float,
    mask: str,
    bound: float | None,
    causal: bool,
    zeros: str,
) -> None:
    """Write ``out[row] = softmax(scale * q[row] . k + mask[row]) . v`` with one pass over the keys.

    ::

        for unit in begin..end:                      # one of a batch, a head of k and v, a block of rows
            qT[feature] = scale * q[row, feature]                 # rows are the lanes of vectors
            for block of keys:
                s[key] = sum over features of k[key, feature] * qT[feature]
                s[key] = softcap * tanh(s[key] / softcap) + mask[row, key]
                new = max(best, s[key], ...)
                total, o[feature] = both * exp(best - new)
                p[key] = exp(s[key] - new)
                total += p[key]
                o[feature] += v[key, feature] * p[key]
                best = new
            out[row, feature] = o[feature] / total

    The softmax is the online one (Milakov and Gimelshein, 2018, arxiv.org/abs/1805.02867), by blocks of keys
    (Dao et al., 2022, arxiv.org/abs/2205.14135). The rows are the queries of all heads that share k and v,
    those of one head after those of another; rows after the last are the last again.

    Pointers: out, q, k, v, mask. Sizes: rows, queries, keys, features of q and k, features of v, heads of k,
    blocks of rows, how far a query sees beyond its own number; strides of q: batch, head of k, head in its
    group, query; of k and of v: batch, head, key; of out like q; of mask like q.

    Args:
        fn: The function to write.
        target: Its machine.
        vectors: Vectors of rows in a block.
        scale: What q is multiplied by.
        softcap: The bound of scores before the mask; none if 0.
        mask: ``none``; one ``row`` for all queries and heads that share k; or a ``matrix``.
        bound: The largest number of the mask that takes the place of a score; all are added if absent.
        causal: Whether queries see keys up to a number only.
        zeros: Which rows are zeros: ``unseen``, those without keys; ``undefined``, those too whose scores are
            not numbers; ``never``, then both are not numbers.
    """
    lanes = target.lanes
    width = vectors * lanes
    rows, queries, keys, features, v_features, heads, blocks, ahead = (fn.size(index) for index in range(8))
    of_q, of_k, of_v = _strides(fn, 8, 4), _strides(fn, 12, 3), _strides(fn, 15, 3)
    of_out, of_mask = _strides(fn, 18, 4), _strides(fn, 22, 4)
    q_scratch = fn.scratch
    s = fn.at(F32, q_scratch, _padded_features(fn, target, features) * width)
    block_elements = (_KEYS + tiles(target, vectors)[0][0]) * width
    masks = fn.at(F32, s, block_elements)
    o = fn.at(F32, masks, block_elements)
    tables = [fn.stack(I64, width) for _ in range(4)]
    state = _State(fn, vectors, lanes)
    with fn.loop(fn.begin, fn.end) as unit:
        head, first = unit // blocks, unit % blocks * width
        batch, head = head // heads, head % heads
        _fill_tables(fn, tables, width, first, rows, queries, (of_q, of_out, of_mask), ahead)
        q, out, bias = (
            fn.at(F32, fn.pointer(index), batch * strides[0] + head * strides[1])
            for index, strides in ((1, of_q), (0, of_out), (4 if mask != "none" else 1, of_mask))
        )
        k = fn.at(F32, fn.pointer(2), batch * of_k[0] + head * of_k[1])
        v = fn.at(F32, fn.pointer(3), batch * of_v[0] + head * of_v[1])
        with fn.loop(0, vectors) as part:
            _turn(fn, q, tables[0], part, features, fn.at(F32, q_scratch, part * lanes), width, lanes, scale)
        with fn.loop(0, _padded_features(fn, target, v_features) * vectors) as row:
            fn.store(fn.const(F32, 0, lanes), o, row * lanes)
        state.start()
        seen = _seen(fn, tables[3], width, keys) if causal else keys
        with fn.loop(0, seen, _KEYS) as start:
            count = fn.minimum(seen - start, _KEYS)
            _scores_of_block(fn, target, (k, of_k[2]), q_scratch, s, start, count, features, vectors)
            here = fn.at(F32, bias, start)
            if mask == "matrix":
                with fn.loop(0, vectors) as part:
                    _turn(fn, here, tables[2], part, count, fn.at(F32, masks, part * lanes), width, lanes)
            ends = _Ends(softcap, mask, bound, causal, here, masks, tables[3])
            _softmax_of_block(fn, state, s, start, count, ends)
            _weigh(fn, target, fn.at(F32, v, start * of_v[2]), of_v[2], s, o, count, v_features, state)
        _write_rows(fn, state, o, out, tables[1], fn.minimum(rows - first, width), v_features, zeros)


def _strides(fn: Function, first: int, number: int) -> list[Val]:
    return [fn.size(first + index) for index in range(number)]


def _padded_features(fn: Function, target: Target, features: Val) -> Val:
    """Return `_padded` of a number of features that the run knows."""
    unit = max(target.lanes, 8)
    return (features + (unit - 1)) // unit * unit


def _fill_tables(
    fn: Function,
    tables: Sequence[Val],
    width: int,
    first: Val,
    rows: Val,
    queries: Val,
    strides: Sequence[Sequence[Val]],
    ahead: Val,
) -> None:
    """Store the offsets of a block's rows in q, out and mask, and the last key that each sees."""
    head, query = fn.var(first // queries), fn.var(first % queries)
    with fn.loop(0, width) as row:
        for table, steps in zip(tables, strides, strict=False):
            fn.store(head.get() * steps[2] + query.get() * steps[3], table, row)
        fn.store(query.get() + ahead, tables[3], row)
        is_last_query = query.get() + 1 == queries
        more = first + row + 1 < rows
        head.set(fn.select(more & is_last_query, head.get() + 1, head.get()))
        query.set(fn.select(more, fn.select(is_last_query, 0, query.get() + 1), query.get()))


def _seen(fn: Function, limits: Val, width: int, keys: Val) -> Val:
    """Return how many keys the rows see, the one that sees most."""
    most = fn.var(fn.load(I64, limits))
    with fn.loop(1, width) as row:
        most.set(fn.maximum(most.get(), fn.load(I64, limits, row)))
    return fn.minimum(keys, most.get() + 1)


def _turn(
    fn: Function,
    source: Val,
    table: Val,
    part: Val,
    length: Val,
    destination: Val,
    width: int,
    lanes: int,
    scale: float = 1.0,
) -> None:
    """Store ``destination[i, lane] = scale * source[table[part, lane] + i]`` for i up to `length`."""
    tile = fn.stack(F32, lanes * lanes)
    with fn.loop(0, length, lanes) as i:
        mask = fn.tail_mask(length - i, lanes)
        with fn.loop(0, lanes) as lane:
            row = fn.at(F32, source, fn.load(I64, table, part * lanes + lane))
            fn.store(fn.load(F32, row, i, lanes, mask), tile, lane * lanes)
        _transpose(fn, tile, lanes)
        with fn.loop(0, lanes) as number:
            vector = fn.load(F32, tile, number * lanes, lanes)
            fn.store(vector if scale == 1 else vector * scale, destination, (i + number) * width)


def _transpose(fn: Function, tile: Val, n: int) -> None:
    """Transpose n rows of n in memory: blocks of 1, 2, 4, ... change places across the diagonal."""
    step = 1
    while step < n:
        upper = [lane if not lane & step else n + lane - step for lane in range(n)]
        lower = [lane + step if not lane & step else n + lane for lane in range(n)]
        with fn.loop(0, n // 2) as pair:
            first = (pair // step * (2 * step) + pair % step) * n
            second = first + step * n
            a, b = fn.load(F32, tile, first, n), fn.load(F32, tile, second, n)
            fn.store(fn.shuffle(a, b, upper), tile, first)
            fn.store(fn.shuffle(a, b, lower), tile, second)
        step *= 2


def _scores_of_block(
    fn: Function,
    target: Target,
    keys: tuple[Val, Val],
    q: Val,
    s: Val,
    start: Val,
    count: Val,
    features: Val,
    vectors: int,
) -> None:
    """Store the products of a block of keys with all rows, ``s[key, row]``."""
    at_once = tiles(target, vectors)[0][0]
    width, by = vectors * target.lanes, multiplier(target, F32)
    k, step = keys
    with fn.loop(0, count, at_once) as key:
        of_k = [fn.at(F32, k, (start + fn.minimum(key + i, count - 1)) * step) for i in range(at_once)]
        place = fn.at(F32, s, key * width)
        sum_of_products(fn, by, of_k, [q], place, (vectors, target.lanes), features, fn.const(I64, width))


class _State:
    """What is known of each row so far: the largest score, the sum of weights, the last correction."""

    def __init__(self, fn: Function, vectors: int, lanes: int) -> None:
        self.fn, self.vectors, self.lanes = fn, vectors, lanes
        self.best, self.total, self.correction = (fn.stack(F32, vectors * lanes) for _ in range(3))

    def get(self, rows: Val, part: Operand) -> Val:
        """Return a vector of `best`, `total` or `correction`."""
        return self.fn.load(F32, rows, self.fn.as_val(part, I64, 0) * self.lanes, self.lanes)

    def set(self, rows: Val, part: Operand, value: Val) -> None:
        """Change a vector of `best`, `total` or `correction`."""
        self.fn.store(value, rows, self.fn.as_val(part, I64, 0) * self.lanes)

    def start(self) -> None:
        """Begin with no keys."""
        for part in range(self.vectors):
            self.set(self.best, part, self.fn.const(F32, _MINUS_INFINITY, self.lanes))
            self.set(self.total, part, self.fn.const(F32, 0, self.lanes))


@dataclass(frozen=True)
class _Ends:
    """What becomes of scores before the softmax; the mask of the block, as it is and turned."""

    softcap: float
    mask: str
    bound: float | None
    causal: bool
    row: Val
    matrix: Val
    limits: Val

    @property
    def change_scores(self) -> bool:
        """Whether scores become others at all."""
        return bool(self.softcap) or self.mask != "none" or self.causal

    def emit(self, fn: Function, score: Val, key: Val, number: Val, place: Val, limit: Val) -> Val:
        """Return the score at `place` of a key of the block, which is `number` of all keys."""
        lanes = score.lanes
        if self.softcap:
            score = vm.tanh(fn, score * (1 / self.softcap)) * self.softcap
        if self.mask == "row":
            score = self._masked(fn, score, fn.splat(fn.load(F32, self.row, key), lanes))
        elif self.mask == "matrix":
            score = self._masked(fn, score, fn.load(F32, self.matrix, place, lanes))
        if self.causal:
            score = fn.select(fn.splat(number, lanes) > limit, _MINUS_INFINITY, score)
        return score

    def _masked(self, fn: Function, score: Val, mask: Val) -> Val:
        total = score + mask
        return total if self.bound is None else fn.select(mask <= self.bound, mask, total)


def _softmax_of_block(fn: Function, state: _State, s: Val, start: Val, count: Val, ends: _Ends) -> None:
    """Replace the scores of a block of keys by their weights, and bring `state` up to date."""
    lanes = state.lanes
    width = state.vectors * lanes
    with fn.loop(0, state.vectors) as part:
        before = state.get(state.best, part)
        best, limit = fn.var(before), fn.load(I64, ends.limits, part * lanes, lanes)
        with fn.loop(0, count) as key:
            place = key * width + part * lanes
            score = fn.load(F32, s, place, lanes)
            if ends.change_scores:
                score = ends.emit(fn, score, key, start + key, place, limit)
                fn.store(score, s, place)
            best.set(fn.maximum(best.get(), score))
        shift = fn.select(best.get() == _MINUS_INFINITY, 0, best.get())
        correction = vm.exp(fn, before - shift)
        state.set(state.correction, part, correction)
        state.set(state.best, part, best.get())
        total = fn.var(state.get(state.total, part) * correction)
        with fn.loop(0, count) as key:
            place = key * width + part * lanes
            weight = vm.exp(fn, fn.load(F32, s, place, lanes) - shift)
            fn.store(weight, s, place)
            total.set(total.get() + weight)
        state.set(state.total, part, total.get())


def _weigh(
    fn: Function,
    target: Target,
    v: Val,
    step: Val,
    weights: Val,
    o: Val,
    count: Val,
    features: Val,
    state: _State,
) -> None:
    """Correct the sums of all features and add those of a block of keys, ``o[feature, row]``."""
    vectors, lanes = state.vectors, state.lanes
    width = vectors * lanes
    at_once = _feature_rows(target, vectors)
    zero = fn.const(F32, 0, lanes)
    acc = [[fn.var(zero) for _ in range(vectors)] for _ in range(at_once)]
    with fn.loop(0, features, at_once) as feature:
        offsets = [fn.minimum(feature + i, features - 1) for i in range(at_once)]
        for i in range(at_once):
            for part in range(vectors):
                so_far = fn.load(F32, o, (feature + i) * width + part * lanes, lanes)
                acc[i][part].set(so_far * state.get(state.correction, part))
        with fn.loop(0, count) as key:
            each = [fn.load(F32, weights, key * width + part * lanes, lanes) for part in range(vectors)]
            row = fn.at(F32, v, key * step)
            for i in range(at_once):
                a = fn.splat(fn.load(F32, row, offsets[i]), lanes)
                for part in range(vectors):
                    acc[i][part].set(fn.fma(a, each[part], acc[i][part].get()))
        for i in range(at_once):
            for part in range(vectors):
                fn.store(acc[i][part].get(), o, (feature + i) * width + part * lanes)


def _write_rows(
    fn: Function, state: _State, o: Val, out: Val, table: Val, rows: Val, features: Val, zeros: str
) -> None:
    """Divide the sums by their weights and store the rows of the output."""
    vectors, lanes = state.vectors, state.lanes
    inverses = fn.stack(F32, vectors * lanes)
    tile = fn.stack(F32, lanes * lanes)
    for number in range(vectors):
        total = state.get(state.total, number)
        if zeros == "unseen":
            total = fn.select(total == 0, 1, total)
        # Weights are 1 at most, so that the inverse is 0 for no other total.
        inverse = 1.0 / total
        if zeros == "undefined":
            inverse = fn.select(total > 0, inverse, 0)
        fn.store(inverse, inverses, number * lanes)
    with fn.loop(0, vectors) as part:
        inverse = fn.load(F32, inverses, part * lanes, lanes)
        count = fn.minimum(rows - part * lanes, lanes)
        with fn.loop(0, features, lanes) as feature:
            mask = fn.tail_mask(features - feature, lanes)
            with fn.loop(0, lanes) as i:
                place = (feature + i) * (vectors * lanes) + part * lanes
                value = fn.load(F32, o, place, lanes) * inverse
                value = fn.select(inverse == 0, 0, value) if zeros == "undefined" else value
                fn.store(value, tile, i * lanes)
            _transpose(fn, tile, lanes)
            with fn.loop(0, count) as row:
                place = fn.at(F32, out, fn.load(I64, table, part * lanes + row))
                fn.store(fn.load(F32, tile, row * lanes, lanes), place, feature, mask)
