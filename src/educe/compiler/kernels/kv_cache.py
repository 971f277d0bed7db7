"""Keys and values of tokens in pages: how they lie there, and what writes them."""

from __future__ import annotations

from dataclasses import dataclass

from educe.compiler.emit import BF16, F32, I8, I32, I64, U16, U32, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.kernels.dot import seen_as
from educe.compiler.target import Target

CACHE_KINDS = (F32, BF16, I8)
"""The kinds that a cache may have."""

UNIT = 16
"""What the keys of a page, and the features of values as they lie in memory, are a multiple of."""

UNIT_DEPTH = 32
"""Numbers along k that a matrix unit multiplies at once."""

_SCALE_BYTES = 4
_MOST = 127.0
# What is smaller has no inverse that is a number.
_LEAST = 1e-36


@dataclass(frozen=True)
class HeadBlock:
    """How the keys and values of a head lie in a page: ready to be the right sides of products.

    Keys lie by features, [features, page]. Values come after them, [page, row], with rows filled up to a
    multiple of `UNIT`. Where they are integers, then comes a scale for each key and each value, f32[2, page].
    For a matrix unit, columns lie by 16, and of these two rows side by side: [page / 16, features / 2, 16, 2]
    and [row / 16, page / 2, 16, 2].

    Attributes:
        kind: One of `CACHE_KINDS`.
        page: Keys of a page, a multiple of `UNIT`.
        features: Features of a key and of a value.
        is_paired: Whether they are for a matrix unit.
    """

    kind: Kind
    page: int
    features: int
    is_paired: bool = False

    @classmethod
    def of(cls, target: Target, kind: Kind, page: int, features: int) -> HeadBlock:
        """Return how they lie on a machine."""
        dot = target.dot(kind.name)
        whole = page % UNIT_DEPTH == 0 and features % UNIT_DEPTH == 0
        return cls(kind, page, features, kind is BF16 and dot is not None and bool(dot.matrix_unit) and whole)

    @property
    def row(self) -> int:
        """Elements of a value with what fills it up."""
        return -(-self.features // UNIT) * UNIT

    @property
    def values_at(self) -> int:
        """The first element of the values."""
        return self.features * self.page

    @property
    def scales_at(self) -> int:
        """The element where the scales begin, or the end."""
        return self.values_at + self.page * self.row

    @property
    def has_scales(self) -> bool:
        """Whether the numbers are integers with scales."""
        return not self.kind.is_float

    @property
    def elements(self) -> int:
        """Elements of the whole."""
        scales = 2 * self.page * _SCALE_BYTES // self.kind.size_bytes if self.has_scales else 0
        return self.scales_at + scales


@template("cache_write")
def cache_write(fn: Function, target: Target, block: HeadBlock) -> None:
    """Write the keys and values of tokens to their slots in the pages of a pool.

    ::

        for token in begin..end:
            if 0 <= slots[token] < limit:
                for head:
                    page, key = slots[token] / keys of a page, slots[token] % keys of a page
                    for x in k[token, head], v[token, head]:
                        floats: pool[page, head, key] = x, rounded to even
                        integers: scale = max |x| / 127; pool[page, head, key] = x / scale, rounded to even

    An infinite number, or one that is none, makes the scale such, and with it all that is read there.

    Pointers: pool, k, v, slots (i64). Sizes: heads, limit; strides of the pool: page, head; of k and of v:
    token, head.

    Args:
        fn: The function to write.
        target: Its machine.
        block: How they lie in the pool.
    """
    kind, codes = block.kind, fn.stack(block.kind, block.row)
    heads, limit, *of_pool = (fn.size(index) for index in range(4))
    of_k, of_v = ((fn.size(index), fn.size(index + 1)) for index in (4, 6))
    with fn.loop(fn.begin, fn.end) as token:
        slot = fn.load(I64, fn.pointer(3), token)
        with fn.when((slot >= 0) & (slot < limit)), fn.loop(0, heads) as head:
            key = slot % block.page
            to = fn.at(kind, fn.pointer(0), slot // block.page * of_pool[0] + head * of_pool[1])
            scales = fn.at(kind, to, block.scales_at)
            k, v = (
                fn.at(F32, fn.pointer(index), token * strides[0] + head * strides[1])
                for index, strides in ((1, of_k), (2, of_v))
            )
            _round(fn, target, block, k, codes, fn.at(F32, scales, key))
            _store_key(fn, block, codes, to, key)
            _round(fn, target, block, v, codes, fn.at(F32, scales, key + block.page))
            _store_value(fn, block, codes, fn.at(kind, to, block.values_at), key)


def _store_key(fn: Function, block: HeadBlock, codes: Val, to: Val, key: Val) -> None:
    if not block.is_paired:
        with fn.loop(0, block.features) as feature:
            fn.store(fn.load(block.kind, codes, feature), to, feature * block.page + key)
        return
    pairs = block.features // 2
    with fn.loop(0, pairs) as pair:
        fn.store(fn.load(U32, codes, pair), to, key // UNIT * (pairs * UNIT) + pair * UNIT + key % UNIT)


def _store_value(fn: Function, block: HeadBlock, codes: Val, to: Val, key: Val) -> None:
    """Store a value; what lies beside it is not touched, since another thread may write it meanwhile."""
    with fn.loop(0, block.row, UNIT) as feature:
        value = fn.load(block.kind, codes, feature, UNIT)
        if block.is_paired:
            twice = seen_as(fn, fn.extend(seen_as(fn, value, U16, UNIT), U32) * 0x10001, U16, 2 * UNIT)
            odd = fn.lane_numbers(2 * UNIT, I32) & 1
            place = feature * block.page + key // 2 * (2 * UNIT)
            fn.store(twice, to, place, odd == fn.splat(fn.extend(key % 2, I32), 2 * UNIT))
        else:
            fn.store(value, to, key * block.row + feature)


def _round(fn: Function, target: Target, block: HeadBlock, new: Val, codes: Val, scale: Val) -> None:
    """Store a row as numbers of the cache, with zeros behind it, and its scale if it has one."""
    lanes = target.lanes

    def x(feature: Val) -> Val:
        return fn.load(F32, new, feature, lanes, fn.tail_mask(block.features - feature, lanes))

    if not block.has_scales:
        with fn.loop(0, block.row, lanes) as feature:
            fn.store(fn.cast(x(feature), block.kind), codes, feature)
        return
    largest = fn.var(fn.const(F32, 0, lanes))
    with fn.loop(0, block.row, lanes) as feature:
        largest.set(fn.combine("max", largest.get(), fn.intrinsic("fabs", x(feature))))
    most = fn.reduce("max", largest.get())
    fn.store(most / _MOST, scale)
    inverse = fn.select(most >= _LEAST, _MOST / most, 0.0)
    with fn.loop(0, block.row, lanes) as feature:
        inside = fn.minimum(fn.maximum(x(feature) * inverse, -_MOST), _MOST)
        inside = fn.select(fn.is_nan(inside), 0.0, inside)
        code = fn.call(f"llvm.lrint.v{lanes}i32.v{lanes}f32", I32, lanes, inside)
        fn.store(fn.extend(code, I8), codes, feature)
