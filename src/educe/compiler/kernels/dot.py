"""How numbers are multiplied and summed: one of each side at a time, or groups of narrow ones along k."""

from __future__ import annotations

from dataclasses import dataclass

from educe.compiler.emit import I8, I16, I32, KINDS, Function, Kind, Val
from educe.compiler.target import Dot, Target

BLOCK_BYTES = 64
"""Size of a row in the registers of a matrix unit."""

_BFLOAT = Kind("bf16", "bfloat", 2, True, True)


def multiply_add(fn: Function, a: Val, b: Val, c: Val) -> Val:
    """Return a · b + c, rounded once where the target can; integers wrap."""
    return fn.fma(a, b, c) if a.kind.is_float else a * b + c


@dataclass(frozen=True)
class Multiplier:
    """What the lanes of a sum take in one step along k.

    All lanes share a group of numbers of the left side, and each lane has a group of the right side of its
    own. The right side is packed so that the groups of neighbouring lanes lie side by side.

    Attributes:
        left: The kind of the left side.
        right: The kind of the right side.
        total: The kind of the sums.
        dot: The instruction for groups; None where a group is one number.
    """

    left: Kind
    right: Kind
    total: Kind
    dot: Dot | None = None

    @property
    def group(self) -> int:
        """Numbers of each side that a lane takes in one step."""
        return self.dot.group if self.dot else 1

    @property
    def has_matrix_unit(self) -> bool:
        """Whether whole blocks of rows are multiplied by one instruction."""
        return self.dot is not None and bool(self.dot.matrix_unit)

    @property
    def multiple(self) -> int:
        """What the rows of a packed panel are filled up to a multiple of, in numbers along k."""
        return BLOCK_BYTES // self.right.size_bytes if self.has_matrix_unit else self.group

    def load_left(self, fn: Function, row: Val, step: Val, lanes: int) -> Val:
        """Return the group number `step` of a row, for all lanes."""
        if self.group == 1:
            return fn.splat(fn.load(self.left, row, step), lanes)
        return self._shared(fn, fn.load(self.left, row, step * self.group, self.group), lanes)

    def load_last(self, fn: Function, row: Val, depth: Val, lanes: int) -> Val:
        """Return the group after the last whole one of a row of `depth`, filled up with zeros."""
        first = depth - depth % self.group
        group = fn.const(self.left, 0, self.group)
        for index in range(self.group):
            number = fn.load(self.left, row, fn.minimum(first + index, depth - 1))
            number = fn.select(first + index < depth, number, fn.const(self.left, 0))
            text = f"insertelement {group.type} {group.ref}, {number.type} {number.ref}, i64 {index}"
            group = fn.emit(self.left, self.group, text)
        return self._shared(fn, group, lanes)

    def load_right(self, fn: Function, pointer: Val, lane: int | Val, lanes: int) -> Val:
        """Return the groups of `lanes` lanes from the number `lane` on."""
        if self.group == 1:
            return fn.load(self.right, pointer, lane, lanes)
        return fn.load(self.right, pointer, lane * self.group, lanes * self.group)

    def add(self, fn: Function, a: Val, b: Val, total: Val) -> Val:
        """Return the sums after one step more; those of integers are exact, and wrap."""
        if self.dot is None:
            return multiply_add(fn, a, b, total)
        if not self.dot.name:
            return fn.extend(a, self.total) * fn.extend(b, self.total) + total
        if self.total.is_float:
            a, b = (seen_as(fn, each, _BFLOAT, each.lanes) for each in (a, b))
        if self.dot.adds:
            return fn.call(self.dot.name, self.total, total.lanes, total, a, b)
        return fn.call(self.dot.name, self.total, total.lanes, a, b) + total

    def _shared(self, fn: Function, group: Val, lanes: int) -> Val:
        word = fn.splat(seen_as(fn, group, I32, 0), lanes)
        return seen_as(fn, word, self.left, lanes * self.group)


def multiplier(target: Target, kind: Kind) -> Multiplier:
    """Return how the shared numbers of `kind` are multiplied."""
    dot = target.dot(kind.name)
    if dot is None:
        return Multiplier(kind, kind, kind)
    return Multiplier(kind, KINDS[dot.right], KINDS[dot.total], dot)


def bytes_at_once(fn: Function, word: Val, lanes: int) -> Val:
    """Return the four bytes of a word for each of some lanes."""
    return seen_as(fn, fn.splat(word, lanes), I8, 4 * lanes)


def sum_of_bytes(fn: Function, target: Target, a: Val, b: Val, total: Val) -> Val:
    """Return, for each lane of `total`, the sum of the products of four bytes of a and of b added to it.

    Those of b are i8. Those of a are u8 if the target's instruction takes such as its left side, else i8.
    """
    dot = target.integer_dot
    if KINDS[dot.left].size_bytes == 1:
        return fn.call(dot.name, I32, total.lanes, total, a, b)
    if dot.group == 1:
        for shift in (24, 16, 8, 0):
            x, y = ((seen_as(fn, each, I32, total.lanes) << shift) >> 24 for each in (a, b))
            total = total + x * y
        return total
    words = [seen_as(fn, each, I16, 2 * total.lanes) for each in (a, b)]
    for pair in ([(each << 8) >> 8 for each in words], [each >> 8 for each in words]):
        total = total + fn.call(dot.name, I32, total.lanes, *pair)
    return total


def seen_as(fn: Function, a: Val, kind: Kind, lanes: int) -> Val:
    """Return the bits of `a` as other lanes."""
    to = Val(fn, kind, a.ref, lanes)
    return to if a.type == to.type else fn.emit(kind, lanes, f"bitcast {a.type} {a.ref} to {to.type}")
