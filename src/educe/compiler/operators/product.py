"""Matrix products: MatMul, Gemm, and what other operators build on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from educe.compiler.emit import BF16, F16, F32, Kind
from educe.compiler.kernel import Kernel
from educe.compiler.kernels import matrix_unit
from educe.compiler.kernels.dot import Multiplier, multiplier
from educe.compiler.kernels.product import lanes_of, tiles
from educe.compiler.kernels.scalars import Expression
from educe.compiler.lowering import Product
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.panels import (
    MAX_BATCH,
    UNITS,
    Panels,
    merged_dimensions,
    panels_of,
    unit_blocks,
    walked,
)
from educe.compiler.tensor import (
    Tensor,
    broadcast_shape,
    broadcast_strides,
    dense_strides,
    dtype_of,
)

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_SUMMED = ("f32", "f64", "i32", "u32", "i64", "u64")


@operator("MatMul")
def mat_mul(low: Lowering, call: Call, a: Tensor, b: Tensor) -> Tensor:
    """NumPy's matmul: the products of the last two dimensions, the others broadcast."""
    return multiplied(low, a, b, lambda left, right: matrix_product(low, left, right))


def multiplied(low: Lowering, a: Tensor, b: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return NumPy's matmul of `a` and `b`, of which either may have one dimension, by `multiply`."""
    if a.rank == 0 or b.rank == 0:
        raise ValueError("a matrix product of a scalar")
    left = low.reshape(a, (1, *a.shape)) if a.rank == 1 else a
    right = low.reshape(b, (*b.shape, 1)) if b.rank == 1 else b
    product = multiply(left, right)
    if a.rank > 1 and b.rank > 1:
        return product
    shape = list(product.shape)
    if b.rank == 1:
        del shape[-1]
    if a.rank == 1:
        del shape[-1 if b.rank == 1 else -2]
    return low.reshape(product, shape)


@operator("Gemm")
def gemm(low: Lowering, call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """The sum alpha · A · B + beta · C, A and B transposed if so wished."""
    if a.rank != 2 or b.rank != 2:
        raise ValueError(f"matrices of {a.rank} and {b.rank} dimensions")
    a = low.permute(a, (1, 0)) if call.get("transA", 0) else a
    b = low.permute(b, (1, 0)) if call.get("transB", 0) else b
    result = _scaled(low, matrix_product(low, a, b), call.get("alpha", 1.0))
    if c is None:
        return result
    if broadcast_shape(c.shape, result.shape) != result.shape:
        raise ValueError(f"C of shape {list(c.shape)} is not broadcast to {list(result.shape)}")
    return low.apply("Add", result, _scaled(low, c, call.get("beta", 1.0)))


def _scaled(low: Lowering, x: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return x
    if not x.kind.is_float and factor != int(factor):
        raise NotCompiled
    return low.apply("Mul", x, low.constant(np.array(factor, dtype_of(x.kind))))


def cast(low: Lowering, x: Tensor, kind: Kind) -> Tensor:
    """Return `x` as another kind; a constant once for all runs."""
    if x.kind is kind:
        return x
    if x.value is not None:
        return low.derived(x, ("cast", kind.name), lambda value: value.astype(dtype_of(kind)))
    return low.apply("Cast", x, to=kind.name)


def matrix_product(low: Lowering, a: Tensor, b: Tensor, in_panels: bool = False) -> Tensor:
    """Return the products of the last two dimensions, which are launched when their end is known.

    Narrow numbers that the target sums in groups give wider sums, in the kind that its instruction gives.

    Args:
        low: The lowering.
        a: The left matrices.
        b: The right matrices.
        in_panels: Whether a single column is summed as one of many is, not in the order of `dots`.

    Raises:
        ValueError: the shapes do not fit each other.
        NotCompiled: for kinds that are not summed.
    """
    by = multiplier(low.target, a.kind)
    if a.shape[-1] != b.shape[-2] or b.kind is not by.right:
        raise ValueError(f"{a.kind}{list(a.shape)} times {b.kind}{list(b.shape)}")
    if a.kind in (F16, BF16) and by.dot is None:
        return low.apply("Cast", matrix_product(low, cast(low, a, F32), cast(low, b, F32)), to=a.kind.name)
    if by.total.name not in _SUMMED:
        raise NotCompiled
    batch = broadcast_shape(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if b.shape[-1] == 1 and by.dot is None and a.value is not None and b.value is None:
        # One column is summed in the order in which a column of many is.
        turned = matrix_product(low, _transposed(low, b), _transposed(low, a), in_panels=True)
        return low.reshape(turned, shape)
    made = _made(low, a, b, batch, in_panels)
    product = Tensor(by.total, shape, dense_strides(shape), lazy=Product(made.launch, made.accepts))
    return low.apply("Cast", product, to=a.kind.name) if a.kind is BF16 else product


def _made(low: Lowering, a: Tensor, b: Tensor, batch: tuple[int, ...], in_panels: bool) -> MatrixProduct:
    """Return the product of matrices in a batch of the given dimensions."""
    by = multiplier(low.target, a.kind)
    is_vector = b.shape[-1] == 1 and by.dot is None and not in_panels
    a = _contiguous(low, a, -1)
    right: Tensor | Panels = _contiguous(low, b, -2) if is_vector else panels_of(low, b, a.shape[-2], by)
    given = right if isinstance(right, Tensor) else right.matrices
    sizes = [*batch, a.shape[-2]]
    strides = [
        [*broadcast_strides(a.shape[:-2], a.strides[:-2], batch), a.strides[-2]],
        [*broadcast_strides(b.shape[:-2], given.strides[: b.rank - 2], batch), 0],
        list(dense_strides((*batch, a.shape[-2], b.shape[-1]))[:-1]),
    ]
    groups = merged_dimensions(sizes, strides)
    if _num_batch(groups, sizes, strides[1]) > MAX_BATCH:
        a, b = (low.dense(low.expand(each, (*batch, *each.shape[-2:]))) for each in (a, b))
        return _made(low, a, b, batch, in_panels)
    return MatrixProduct(low, by, a, right, tuple(sizes), b.shape[-1], groups, strides)


def _contiguous(low: Lowering, x: Tensor, axis: int) -> Tensor:
    """Return `x` in memory, its elements along `axis` next to each other."""
    x = low.need(x)
    return x if x.strides[axis] == 1 or x.shape[axis] <= 1 else _turned(low, x, axis)


def _turned(low: Lowering, x: Tensor, axis: int) -> Tensor:
    if axis == -1:
        return low.dense(x)
    return _transposed(low, low.dense(_transposed(low, x)))


def _transposed(low: Lowering, x: Tensor) -> Tensor:
    return low.permute(x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))


def _num_batch(groups: Sequence[Sequence[int]], sizes: Sequence[int], of_b: Sequence[int]) -> int:
    return len(groups) - _has_rows(groups, of_b)


def _has_rows(groups: Sequence[Sequence[int]], of_b: Sequence[int]) -> bool:
    """Say whether the last of `groups` can be the rows: whether all of them meet the same matrix of B."""
    return bool(groups) and all(of_b[axis] == 0 for axis in groups[-1])


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """A matrix product that waits for its end.

    Attributes:
        low: Where it is launched.
        by: How numbers are multiplied.
        a: The left matrices, contiguous along k.
        b: The right matrices: their panels, or vectors if they have one column.
        sizes: The batch, and the rows.
        n: The columns.
        groups: Which of these dimensions are walked through as one.
        strides: Those of a, b and the output along them.
    """

    low: Lowering
    by: Multiplier
    a: Tensor
    b: Tensor | Panels
    sizes: tuple[int, ...]
    n: int
    groups: list[list[int]]
    strides: list[list[int]]

    def accepts(self, x: Tensor) -> bool:
        """Say whether the end of a tile can read `x`: by one step through each group and along columns."""
        strides = x.strides[:-1]
        for group in self.groups:
            for axis, following in itertools.pairwise(group):
                if strides[axis] != strides[following] * self.sizes[following]:
                    return False
        return self._along(x) in (0, 1)

    def _along(self, x: Tensor) -> int:
        """Return the stride of `x` along the dimension in which the end of a tile is vectorised."""
        if isinstance(self.b, Panels):
            return x.strides[-1]
        return x.strides[self._rows[-1]] if self._rows else 1

    @property
    def _rows(self) -> list[int]:
        return self.groups[-1] if _has_rows(self.groups, self.strides[1]) else []

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch it with `expression` at its end, into `out`."""
        assert out.is_dense
        if out.size == 0:
            return
        rows = self._rows
        m = math.prod(self.sizes[axis] for axis in rows)
        seen = [
            each.view(out.shape, broadcast_strides(each.shape, each.strides, out.shape)) for each in operands
        ]
        walks = [*self.strides, *(each.strides[:-1] for each in seen)]
        sizes, steps = walked(self.groups[:-1] if rows else self.groups, self.sizes, walks)
        for walk, step in zip(walks, steps, strict=True):
            step.insert(0, walk[rows[-1]] if rows else 0)
        of_b = steps.pop(1)[1:]
        template, units, numbers = self._units(m, sizes, steps[0], of_b)
        right = self._right
        self.low.launch(
            Kernel.of(
                template,
                kind=self.a.kind,
                expression=expression,
                access=tuple("dense" if self._along(each) == 1 else "same" for each in seen),
                **(self._choices(self.b) if isinstance(self.b, Panels) else {}),
            ),
            outputs=[out],
            inputs=[self.a, right, *seen],
            sizes=[*numbers, *itertools.chain(*steps[1:])],
            extent=units,
            flops=out.size * (2 * self.a.shape[-1] + expression.flops),
            bytes=sum(x.size * x.kind.size_bytes for x in (self.a, out, right, *operands)),
            scratch_bytes=self._scratch_bytes,
        )

    def _units(
        self, m: int, batch: Sequence[int], of_a: Sequence[int], of_b: Sequence[int]
    ) -> tuple[str, int, list[int]]:
        """Return the kernel for `m` rows, its units of work, and its sizes before those of the output."""
        number, depth, lanes = math.prod(batch), self.a.shape[-1], lanes_of(self.low.target, self.a.kind)
        if not isinstance(self.b, Panels):
            block = max(lanes, -(-m * number // UNITS))
            blocks = -(-m // block)
            return "dots", number * blocks, [m, depth, block, blocks, batch[1], *of_a, *of_b]
        panels = -(-self.n // (self.b.vectors * lanes))
        block, group = self._blocks(self.b, m, number, panels)
        blocks, groups = -(-m // block), -(-panels // group)
        steps = [self.b.k_step, self.b.panel_step, *of_b, self._fetch_step(self.b, min(block, m))]
        numbers = [self.n, depth, m, block, blocks, group, groups, batch[1], *of_a, *steps]
        return "product", number * groups * blocks, numbers

    def _choices(self, b: Panels) -> dict[str, Any]:
        has_rest = not self.by.has_matrix_unit and self.a.shape[-1] % self.by.group != 0
        return {"vectors": b.vectors, "has_rest": has_rest}

    @property
    def _scratch_bytes(self) -> int:
        row_bytes = self.a.shape[-1] * self.by.left.size_bytes
        return matrix_unit.scratch_bytes(row_bytes) if self.by.has_matrix_unit else 0

    @property
    def _right(self) -> Tensor:
        return self.b.matrices if isinstance(self.b, Panels) else self.b

    def _fetch_step(self, b: Panels, rows: int) -> int:
        """Return how far to move through the next panel with k, to be at its end after so many rows."""
        if b.panel_step != b.k_step * -(-self.a.shape[-1] // self.by.group):
            return 0
        return -(-b.k_step // max(1, rows // tiles(self.low.target, b.vectors)[0][0]))

    def _blocks(self, b: Panels, m: int, number: int, panels: int) -> tuple[int, int]:
        """Return the rows of a block and the panels of a group: what a unit of work does.

        The panels of a group stay in the second cache while the rows pass.
        """
        if self.by.has_matrix_unit:
            return unit_blocks(self.low.target, m, b.panel_step * self.by.right.size_bytes, panels, number)
        shapes = tiles(self.low.target, b.vectors)
        most, at_once = next(shape for shape in reversed(shapes) if shape[0] >= min(m, shapes[0][0]))
        group = -(-max(1, -(-panels * number // UNITS)) // at_once) * at_once
        row_tiles = -(-m // most)
        blocks = min(row_tiles, max(1, UNITS // (number * -(-panels // group))))
        return -(-row_tiles // blocks) * most, group
