"""`Layout`: the dimensions of a kernel that keeps some of a tensor's axes and goes along others."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from educe.compiler.kernels.pointwise import MAX_OUTER
from educe.compiler.kernels.rows import COLUMNS
from educe.compiler.operators.base import NotCompiled
from educe.compiler.tensor import Tensor, collapsed


@dataclass(frozen=True)
class Layout:
    """Kept × rest × middle × inner elements of some operands, as the kernels' `Operands` read them.

    Attributes:
        kept: Sizes of the dimensions that are kept.
        rest: Sizes of those that are gone along, but for the middle and the inner one.
        middle: The size of the middle dimension, which is gone along.
        inner: The size of the inner dimension.
        contiguous: Whether the inner dimension is gone along; else it is kept.
        strides: For each operand: its kept strides, rest strides, middle step and inner step.
    """

    kept: tuple[int, ...]
    rest: tuple[int, ...]
    middle: int
    inner: int
    contiguous: bool
    strides: tuple[tuple[tuple[int, ...], tuple[int, ...], int, int], ...]

    @classmethod
    def of(
        cls,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        axes: Collection[int],
        contiguous: bool | None = None,
    ) -> Layout:
        """Return the layout of operands of one shape for a kernel that goes along `axes`.

        Args:
            outputs: What is written.
            inputs: What is read; the first decides what is contiguous.
            axes: What is gone along.
            contiguous: Whether the inner dimension has to be one that is gone along, or one that is kept.
        """
        shape, count = inputs[0].shape, len(inputs)
        model = [*inputs, *outputs]

        def joined(chosen: Sequence[int]) -> tuple[list[int], list[list[int]]]:
            sizes, strides = collapsed(
                [shape[axis] for axis in chosen], [[x.strides[axis] for axis in chosen] for x in model]
            )
            return sizes, [*strides[count:], *strides[:count]]

        kept, kept_strides = joined([axis for axis in range(len(shape)) if axis not in axes])
        rest: list[int] = []
        rest_strides: list[list[int]] = [[] for _ in model]
        for run in _runs(shape, inputs[0].strides, axes):
            sizes, steps = joined(run)
            rest += sizes
            rest_strides = [[*whole, *part] for whole, part in zip(rest_strides, steps, strict=True)]
        if contiguous is None:
            first = len(outputs)
            contiguous = bool(rest) and (not kept or rest_strides[first][-1] < kept_strides[first][-1])
        inner, inner_steps = _popped(rest, rest_strides) if contiguous else _popped(kept, kept_strides)
        middle, middle_steps = _popped(rest, rest_strides)
        if len(kept) > MAX_OUTER or len(rest) > MAX_OUTER:
            raise NotCompiled
        strides = zip(kept_strides, rest_strides, middle_steps, inner_steps, strict=True)
        return cls(
            tuple(kept),
            tuple(rest),
            middle,
            inner,
            contiguous,
            tuple((tuple(a), tuple(b), c, d) for a, b, c, d in strides),
        )

    @property
    def rows(self) -> int:
        """The number of kept indices."""
        return math.prod(self.kept)

    @property
    def access(self) -> tuple[str, ...]:
        """How each operand lies along the inner dimension."""
        return tuple(
            "dense" if step == 1 or self.inner == 1 else "same" if step == 0 else "strided"
            for *_, step in self.strides
        )

    def width(self, lanes: int) -> int:
        """Return how many units a kept index has: blocks of columns, or one row."""
        return 1 if self.contiguous else -(-self.inner // (COLUMNS * lanes))

    def numbers(self) -> list[int]:
        """Return the sizes that `Operands` reads."""
        numbers = [len(self.kept), len(self.rest), math.prod(self.rest)]
        numbers += [*_padded(self.kept), *_padded(self.rest)]
        for kept, rest, middle, inner in self.strides:
            numbers += [*_padded(kept), *_padded(rest), middle, inner]
        return numbers

    def with_blocks(self, step: int, scale: int) -> Layout:
        """Return the layout whose first operand has blocks `step` apart instead of a middle dimension.

        Args:
            step: Elements from a block to the next.
            scale: By what the operand's other strides are multiplied.
        """
        kept, rest, _, inner = self.strides[0]
        scaled = tuple(scale * stride for stride in kept)
        return replace(self, strides=((scaled, rest, step, scale * inner), *self.strides[1:]))


def _runs(shape: Sequence[int], strides: Sequence[int], axes: Collection[int]) -> list[list[int]]:
    """Return `axes` in the order in which they lie, parted where one that is kept lies between them.

    It parts them even if its size is 1: they are gone along in the same order whatever that size is.
    """
    order = sorted(range(len(shape)), key=lambda axis: (-strides[axis], shape[axis] == 1, axis))
    runs: list[list[int]] = []
    is_parted = True
    for axis in order:
        if axis not in axes:
            is_parted = is_parted or strides[axis] != 0
        elif shape[axis] != 1:
            if is_parted or any(each not in axes for each in _between(runs[-1][-1], axis)):
                runs.append([])
            runs[-1].append(axis)
            is_parted = False
    return runs


def _between(a: int, b: int) -> range:
    return range(min(a, b) + 1, max(a, b))


def _popped(sizes: list[int], strides: list[list[int]]) -> tuple[int, list[int]]:
    if not sizes:
        return 1, [0] * len(strides)
    return sizes.pop(), [each.pop() for each in strides]


def _padded(values: Sequence[int]) -> list[int]:
    return [*values, *([0] * (MAX_OUTER - len(values)))]
