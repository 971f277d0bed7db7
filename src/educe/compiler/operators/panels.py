"""Panels: the right side of a matrix product, packed as its kernel reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.kernel import Kernel
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.dot import Multiplier
from educe.compiler.kernels.product import lanes_of
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering
    from educe.compiler.target import Target

UNITS = 16
"""Units of work that a product is cut into, if it can be."""

MAX_BATCH = 2
"""Dimensions of a batch that kernels walk through."""

_FEW_ROWS = 32
"""Rows of A up to which B is read where it lies, however far its rows are from each other."""

# The share of the machine's peak that panels of so many vectors reach.
_SPEEDS = {1: 0.75, 2: 0.95, 3: 1.0}


@dataclass(frozen=True, eq=False)
class Panels:
    """The columns of matrices in panels.

    Attributes:
        matrices: The memory, whose first dimensions are the batch.
        vectors: Vectors of columns in a panel.
        k_step: From a row of a panel to the next.
        panel_step: From a panel to the next.
    """

    matrices: Tensor
    vectors: int
    k_step: int
    panel_step: int


def panels_of(low: Lowering, b: Tensor, rows: int, by: Multiplier) -> Panels:
    """Return the panels of `b`: packed, once if it is constant, or `b` itself where that is as good.

    Rows of `b` far from each other are read slowly, which more than a few rows of A do not bear.
    """
    depth, n = b.shape[-2:]
    vectors = panel_vectors(low, by, n)
    width = vectors * lanes_of(low.target, b.kind)
    if b.value is not None:
        return packed_panels(low, b, lambda value: value, vectors, by)
    b = low.need(b)
    is_near = abs(b.strides[-2]) * depth * b.kind.size_bytes <= low.target.l2_bytes
    if by.group == 1 and b.strides[-1] == 1 and n % width == 0 and (is_near or rows <= _FEW_ROWS):
        return Panels(b, vectors, b.strides[-2], width)
    return _packed_by_kernel(low, b, vectors, width, by)


def packed_panels(
    low: Lowering, b: Tensor, matrices: Callable[[np.ndarray], np.ndarray], vectors: int, by: Multiplier
) -> Panels:
    """Return the panels of the matrices that the constant `b` stands for."""
    width = vectors * lanes_of(low.target, b.kind)
    packed = low.derived(
        b,
        ("panels", width, by.group, by.multiple),
        lambda value: _packed(matrices(value), width, by.group, by.multiple),
    )
    step = width * by.group
    return Panels(packed, vectors, step, packed.shape[-3] * step)


def stacked_panels(low: Lowering, matrices: Sequence[Tensor], vectors: int, by: Multiplier) -> Panels:
    """Return the panels of constant matrices of one shape, which the first dimension tells apart."""
    width = vectors * lanes_of(low.target, matrices[0].kind)

    def make(*values: np.ndarray) -> np.ndarray:
        return np.stack([_packed(value, width, by.group, by.multiple) for value in values])

    packed = low.combined(matrices, ("panels", width, by.group, by.multiple), make)
    step = width * by.group
    return Panels(packed, vectors, step, packed.shape[-3] * step)


def _packed_by_kernel(low: Lowering, b: Tensor, vectors: int, width: int, by: Multiplier) -> Panels:
    """Return the panels of `b`, which are packed when the program runs."""
    group = by.group
    if group > 1 and b.strides[-1] != 1:
        b = low.dense(b)
    batch, (depth, n) = b.shape[:-2], b.shape[-2:]
    groups = merged_dimensions(batch, [b.strides[:-2]])
    if len(groups) > MAX_BATCH:
        b = low.dense(b)
        groups = merged_dimensions(batch, [b.strides[:-2]])
    count, steps = -(-n // width), -(-depth // by.multiple) * by.multiple // group
    packed = low.empty(b.kind, (*batch, count, steps, width * group))
    sizes, (batch_steps,) = walked(groups, batch, [b.strides[:-2]])
    low.launch(
        Kernel.of("panels", kind=b.kind, vectors=vectors, group=group, is_dense=b.strides[-1] == 1),
        outputs=[packed],
        inputs=[b],
        sizes=[n, depth, count, sizes[1], b.strides[-2], b.strides[-1], *batch_steps, steps],
        extent=math.prod(sizes) * count if packed.size else 0,
        bytes=2 * packed.size * b.kind.size_bytes,
    )
    return Panels(packed, vectors, width * group, steps * width * group)


def _packed(value: np.ndarray, width: int, group: int, multiple: int) -> np.ndarray:
    """Return the panels of constant matrices, [panel][step along k][column][number of a group]."""
    *batch, depth, n = value.shape
    count, steps = -(-n // width), -(-depth // multiple) * multiple // group
    whole = value
    if n % width or depth % multiple:
        whole = np.zeros((*batch, steps * group, count * width), value.dtype)
        whole[..., :depth, :n] = value
    split = whole.reshape(*batch, steps, group, count, width)
    panels: np.ndarray = np.moveaxis(split, (-2, -4, -1, -3), (-4, -3, -2, -1))
    return panels


def panel_vectors(low: Lowering, by: Multiplier, n: int) -> int:
    """Return the vectors of a panel with which `n` columns take least time."""
    vectors = -(-n // lanes_of(low.target, by.left))
    if by.has_matrix_unit:
        return min(vectors, matrix_unit.MAX_BLOCKS)
    return min(_SPEEDS, key=lambda each: -(-vectors // each) * each / _SPEEDS[each])


def merged_dimensions(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the dimensions in groups through which each of `strides` walks by one step; not those of 1."""
    groups: list[list[int]] = []
    for axis in (axis for axis, size in enumerate(sizes) if size != 1):
        if groups and all(each[groups[-1][-1]] == each[axis] * sizes[axis] for each in strides):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def walked(
    groups: Sequence[Sequence[int]], sizes: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Return the sizes of two dimensions that stand for `groups`, and their strides."""
    missing = MAX_BATCH - len(groups)
    whole = [1] * missing + [math.prod(sizes[axis] for axis in group) for group in groups]
    return whole, [[0] * missing + [each[group[-1]] for group in groups] for each in strides]


def unit_blocks(target: Target, rows: int, panel_bytes: int, panels: int, number: int) -> tuple[int, int]:
    """Return the rows of a block and the panels of a group where a matrix unit multiplies.

    The panels of a group stay in the second cache while the rows pass.
    """
    most = matrix_unit.ROWS * matrix_unit.MAX_BLOCKS
    group = max(1, min(panels, target.l2_bytes // (2 * max(panel_bytes, 1))))
    row_tiles = -(-rows // most)
    blocks = min(row_tiles, -(-UNITS // (number * -(-panels // group))))
    groups = max(-(-panels // group), min(panels, UNITS // (2 * number * blocks)))
    return -(-row_tiles // blocks) * most, -(-panels // groups)
