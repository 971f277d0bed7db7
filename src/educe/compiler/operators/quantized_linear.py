"""Products with weights of 4 or 8 bits; `educe.model.quantized` says what these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from educe.compiler.emit import F16, F32, I8, I32, I64, U8
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.matrix_unit import MAX_BLOCKS
from educe.compiler.kernels.quantized import ROWS, Format
from educe.compiler.kernels.quantized_unit import TILE_ROWS, expanded_bytes
from educe.compiler.kernels.scalars import Expression
from educe.compiler.lowering import Product
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.panels import UNITS
from educe.compiler.operators.product import cast
from educe.compiler.tensor import Tensor, broadcast_strides, dense_strides
from educe.model.quantized import GRAIN, PANEL, STEP, TILE_DEPTH, check_blocks, packed_depth

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering
    from educe.compiler.target import Target

_FEW_ROWS = 4
"""Rows that vectors multiply where there is a matrix unit; twice as many if blocks are scaled one by one."""

AT_ONCE = (1, 2, 4, 8)
"""Rows that vectors may multiply at once."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A packed weight, as a node has it.

    Attributes:
        inputs: Numbers of a row.
        outputs: Rows.
        block: Numbers that share a scale.
        group: Numbers that share a multiplier, or `block`.
        codes: The codes, and so on, as `PackedWeight` has them.
    """

    inputs: int
    outputs: int
    block: int
    group: int
    codes: Tensor
    scales: Tensor
    multipliers: Tensor | None
    minimums: Tensor | None

    @classmethod
    def of(
        cls,
        low: Lowering,
        call: Call,
        codes: Tensor,
        scales: Tensor,
        multipliers: Tensor | None,
        minimums: Tensor | None,
    ) -> Weight:
        """Return the weight of a node.

        Raises:
            ValueError: its parts do not fit each other.
        """
        names = ("in_features", "out_features", "block", "group")
        inputs, outputs, block, group = (int(call.get(name, 0)) for name in names)
        group = block if multipliers is None else group
        check_blocks(inputs, block, group)
        panels, depth = -(-outputs // PANEL), packed_depth(inputs)
        steps = depth // STEP if codes.kind is I8 else depth // (2 * STEP)
        of_blocks, of_groups = (panels, -(-inputs // block), PANEL), (panels, -(-inputs // group), PANEL)
        fits = (
            outputs > 0
            and codes.kind in (I8, U8)
            and codes.shape == (panels, steps, PANEL, STEP)
            and scales.kind in (F32, F16)
            and scales.shape == of_blocks
            and (minimums is None or (minimums.kind is scales.kind and minimums.shape == of_blocks))
            and (multipliers is None or (multipliers.kind is U8 and multipliers.shape == of_groups))
            and (multipliers is None or (codes.kind is U8 and minimums is None))
        )
        if not fits:
            raise ValueError(f"codes {codes} and scales {scales} of {outputs} rows of {inputs} by {block}")
        parts = (None if each is None else low.dense(each) for each in (codes, scales, multipliers, minimums))
        return cls(inputs, outputs, block, group, *parts)  # type: ignore[arg-type]

    @property
    def format(self) -> Format:
        """What of it is fixed when code is made."""
        has_minimums = self.minimums is not None
        is_whole = self.block >= self.inputs and not has_minimums
        bits = 8 if self.codes.kind is I8 else 4
        return Format(
            bits,
            self.scales.kind,
            is_whole,
            self.group == GRAIN,
            self.multipliers is not None,
            has_minimums,
        )

    @property
    def panels(self) -> int:
        """Panels of its rows."""
        return -(-self.outputs // PANEL)

    @property
    def blocks(self) -> int:
        """Scales of a row."""
        return -(-self.inputs // self.block)

    @property
    def groups(self) -> int:
        """Multipliers of a row, or scales."""
        return -(-self.inputs // self.group)

    @property
    def parts(self) -> list[Tensor]:
        """What the product reads."""
        extras = zip(self.format.extras, (self.scales, self.multipliers, self.minimums), strict=True)
        return [self.codes, *(each for is_read, each in extras if is_read and each is not None)]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Grains of a block and of a group, blocks, groups."""
        grains = -(-self.inputs // GRAIN)
        block, group = (min(grains, -(-size // GRAIN)) for size in (self.block, self.group))
        return block, group, self.blocks, self.groups


@operator("QuantizeRows", domain="educe")
def quantize_rows(low: Lowering, call: Call, x: Tensor) -> list[Tensor]:
    """The rows of f32[rows, inputs] rounded to 8 bits, as `QuantizedLinear` takes them.

    Each row and block has one scale, by which its largest number becomes 127 or -127; numbers are rounded to
    nearest, the even one of two. Outputs: i8[rows / 16, depth / 64, 16, 64], where `depth` is the inputs
    filled up to a multiple of 64; the scales, f32[rows, blocks]; the sums of groups, i32[rows, groups].
    Attributes: `block` and `group`, as the weight has them; without multipliers `group` is left out.
    """
    if x.kind is not F32:
        raise NotCompiled
    if x.rank != 2:
        raise ValueError(f"rows of {x}")
    count, inputs = x.shape
    block = int(call.get("block", 0))
    group = int(call.get("group", 0)) or block
    check_blocks(inputs, block, group)
    expression, given = low.fused(x)
    if any(each.strides[-1] not in (0, 1) for each in given):
        expression, given = Expression((F32,)), [low.dense(x)]
    blocks, groups, grains = -(-inputs // block), -(-inputs // group), -(-inputs // GRAIN)
    rows = low.empty(I8, (-(-count // ROWS), packed_depth(inputs) // TILE_DEPTH, ROWS, TILE_DEPTH))
    scales, sums = low.empty(F32, (count, blocks)), low.empty(I32, (count, groups))
    low.launch(
        Kernel.of(
            "quantize_rows",
            expression=expression,
            access=tuple("dense" if each.strides[-1] == 1 or inputs == 1 else "same" for each in given),
            has_rest=inputs % GRAIN != 0,
        ),
        outputs=[rows, scales, sums],
        inputs=given,
        sizes=[
            inputs,
            *(min(grains, -(-size // GRAIN)) for size in (block, group)),
            *(blocks, groups),
            *(each.strides[0] for each in given),
        ],
        extent=count,
        flops=x.size * (12 + expression.flops),
        bytes=5 * x.size,
        scratch_bytes=4 * GRAIN * grains,
    )
    return [rows, scales, sums]


@operator("QuantizedLinear", domain="educe")
def quantized_linear(
    low: Lowering,
    call: Call,
    rows: Tensor,
    row_scales: Tensor,
    sums: Tensor,
    codes: Tensor,
    scales: Tensor,
    multipliers: Tensor | None = None,
    minimums: Tensor | None = None,
) -> Tensor:
    """The product x · Wᵀ, f32[rows, outputs], of what `QuantizeRows` gave and a `PackedWeight`.

    Attributes: `in_features` and `out_features`, the sizes of the weight; `block`, and `group` if it has
    multipliers. The sums of products within a block are exact. One block is scaled by
    ``sum * scale * scale of the row``; of several, these are added one after the other.
    """
    weight = Weight.of(low, call, codes, scales, multipliers, minimums)
    count = check_rows(weight, rows, row_scales, sums)
    given = [low.dense(each) for each in (rows, row_scales, sums)]
    shape = (count, weight.outputs)
    total = weight.format.total
    launch = partial(_launch, low, given, weight)
    product = Tensor(total, shape, dense_strides(shape), lazy=Product(launch, _accepts), node=low.node)
    if not weight.format.is_whole:
        return product
    of_column = cast(low, low.reshape(weight.scales, (weight.scales.size,)), F32)
    seen = of_column.view((weight.outputs,), (1,))
    return low.apply("Mul", low.apply("Mul", low.apply("Cast", product, to="f32"), seen), given[1])


def check_rows(weight: Weight, rows: Tensor, row_scales: Tensor, sums: Tensor) -> int:
    """Return how many rows what `QuantizeRows` gave is of; ValueError if it does not fit a weight."""
    count = row_scales.shape[0] if row_scales.rank else 0
    fits = (
        rows.kind is I8
        and rows.shape == (-(-count // ROWS), packed_depth(weight.inputs) // TILE_DEPTH, ROWS, TILE_DEPTH)
        and row_scales.kind is F32
        and row_scales.shape == (count, weight.blocks)
        and sums.kind is I32
        and sums.shape == (count, weight.groups)
    )
    if not fits:
        raise ValueError(f"rows {rows}, {row_scales}, {sums} for {weight.outputs} x {weight.inputs}")
    return count


@operator("DequantizeRows", domain="educe")
def dequantize_rows(
    low: Lowering,
    call: Call,
    rows: Tensor,
    codes: Tensor,
    scales: Tensor,
    multipliers: Tensor | None = None,
    minimums: Tensor | None = None,
) -> Tensor:
    """Some rows of a `PackedWeight`, f32[rows, inputs], whose numbers are i64[rows].

    Attributes as those of `QuantizedLinear`.
    """
    weight = Weight.of(low, call, codes, scales, multipliers, minimums)
    if rows.kind is not I64 or rows.rank != 1:
        raise ValueError(f"numbers of rows {rows}")
    out = low.empty(F32, (rows.size, weight.inputs))
    extras = [each for each in (weight.multipliers, weight.minimums) if each is not None]
    low.launch(
        Kernel.of("dequantize_rows", weight=weight.format, has_rest=weight.inputs % STEP != 0),
        outputs=[out, low.status()],
        inputs=[low.dense(rows), weight.codes, weight.scales, *extras],
        sizes=[weight.outputs, weight.inputs, *weight.sizes],
        extent=rows.size,
        bytes=5 * out.size,
    )
    return out


def _accepts(x: Tensor) -> bool:
    return x.strides[-1] in (0, 1)


def _launch(
    low: Lowering,
    given: Sequence[Tensor],
    weight: Weight,
    expression: Expression,
    operands: Sequence[Tensor],
    out: Tensor,
) -> None:
    """Launch a product with `expression` at its end, into `out`."""
    count, outputs = out.shape
    seen = [each.view(out.shape, broadcast_strides(each.shape, each.strides, out.shape)) for each in operands]
    access = tuple("dense" if each.strides[-1] == 1 or outputs == 1 else "same" for each in seen)
    kernels = {
        each: Kernel.of(
            **_template(low.target, weight, each),
            weight=weight.format,
            expression=expression,
            access=access,
        )
        for each in (count, *AT_ONCE, TILE_ROWS)
    }
    low.expect(kernels.values())
    unit, scratch_bytes = _unit(low.target, weight, count)
    low.launch(
        kernels[count],
        outputs=[out],
        inputs=[*given, *weight.parts, *seen],
        sizes=[
            *(outputs, weight.inputs, count, unit, *weight.sizes),
            *(number for each in (out, *seen) for number in (each.strides[0], 0, 0)),
        ],
        extent=-(-weight.panels // unit) if count else 0,
        flops=out.size * (2 * weight.inputs + expression.flops),
        bytes=sum(each.size * each.kind.size_bytes for each in (out, *given, *weight.parts, *operands)),
        scratch_bytes=scratch_bytes,
    )


def _template(target: Target, weight: Weight, count: int) -> dict[str, Any]:
    """Return the template for so many rows, and its choices."""
    if uses_matrix_unit(target, weight, count):
        return {"template": "quantized_unit", "depth": unit_depth(weight)}
    return {"template": "quantized_product", "rows": rows_at_once(target, count)}


def unit_depth(weight: Weight) -> int:
    """Return how many numbers along k a matrix unit multiplies at once."""
    is_odd = weight.block < weight.inputs and weight.block % TILE_DEPTH
    return GRAIN if is_odd else TILE_DEPTH


def rows_at_once(target: Target, count: int) -> int:
    """Return how many of so many rows vectors multiply at once."""
    most = max(each for each in AT_ONCE if each * PANEL <= target.registers // 4 * min(target.lanes, PANEL))
    return min(each for each in AT_ONCE if each >= min(count, most))


def _unit(target: Target, weight: Weight, count: int) -> tuple[int, int]:
    """Return the panels of a unit of work, and the scratch memory that it needs."""
    if uses_matrix_unit(target, weight, count):
        return MAX_BLOCKS, unit_bytes(weight)
    return -(-weight.panels // UNITS), 0


def unit_bytes(weight: Weight) -> int:
    """Return the scratch memory of a matrix unit: twice as many expanded panels as it multiplies at once."""
    return 0 if weight.codes.kind is I8 else 2 * MAX_BLOCKS * expanded_bytes(-(-weight.inputs // GRAIN))


def uses_matrix_unit(target: Target, weight: Weight, count: int) -> bool:
    """Say whether a matrix unit multiplies so many rows."""
    few = _FEW_ROWS if weight.format.is_whole else 2 * _FEW_ROWS
    return bool(target.integer_dot.matrix_unit) and count > few
