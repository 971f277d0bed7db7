"""Mixtures of experts, of whom those that tokens chose are run: Shazeer et al., 2017, arxiv:1701.06538."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from educe.compiler.emit import F32, I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.dot import multiplier
from educe.compiler.kernels.expression import Expression
from educe.compiler.kernels.matrix_unit import MAX_BLOCKS
from educe.compiler.kernels.product import lanes_of, tiles
from educe.compiler.lowering import Product
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.panels import UNITS, Panels, panel_vectors, stacked_panels
from educe.compiler.operators.quantized_linear import (
    Weight,
    check_rows,
    rows_at_once,
    unit_bytes,
    unit_depth,
    uses_matrix_unit,
)
from educe.compiler.tensor import Tensor, broadcast_strides, dense_strides
from educe.model.quantized import PANEL

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("ExpertOrder", domain="educe")
def expert_order(low: Lowering, call: Call, experts: Tensor) -> list[Tensor]:
    """The choices of tokens in the order of the experts that they chose.

    Input: i64[tokens, chosen], numbers of experts. Outputs, of all choices C = tokens · chosen: where each
    lies in the order, i64[C]; the token of each in the order, i64[C]; where the choices of each expert end in
    it, i64[num_experts]. Attribute: `num_experts`.
    """
    num_experts = int(call.get("num_experts", 0))
    if experts.kind is not I64 or experts.rank != 2 or num_experts < 1:
        raise ValueError(f"choices {experts} of {num_experts} experts")
    experts = low.dense(experts)
    outputs = [low.empty(I64, (size,)) for size in (experts.size, experts.size, num_experts)]
    low.launch(
        Kernel.of("expert_order"),
        outputs=outputs,
        inputs=[experts],
        sizes=[experts.size, num_experts, max(experts.shape[1], 1)],
        extent=1,
        flops=2 * (experts.size + num_experts),
        bytes=40 * experts.size + 16 * num_experts,
    )
    return list(outputs)


@operator("ExpertLinear", domain="educe")
def expert_linear(low: Lowering, call: Call, x: Tensor, ends: Tensor, *weights: Tensor) -> Tensor:
    """The product x · Wᵀ of each row and the matrix of its expert.

    Inputs: f32[rows, in], in the order of experts; where the rows of each expert end, i64[experts], as
    `ExpertOrder` gives them; the constant matrix of each expert, f32[out, in]. An output does not depend on
    the other rows.
    """
    del call
    if x.kind is not F32 or any(each.kind is not F32 or each.value is None for each in weights):
        raise NotCompiled
    if not weights or weights[0].rank != 2 or len({each.shape for each in weights}) > 1:
        raise ValueError(f"the matrices {weights} of experts")
    outputs, inputs = weights[0].shape
    if x.rank != 2 or x.shape[1] != inputs or ends.kind is not I64 or ends.shape != (len(weights),):
        raise ValueError(f"{x} and the ends {ends} of {len(weights)} experts of {inputs} inputs")
    x, ends = low.dense(x), low.dense(ends)
    by = multiplier(low.target, F32)
    matrices = [low.permute(each, (1, 0)) for each in weights]
    panels = stacked_panels(low, matrices, panel_vectors(low, by, outputs), by)
    product, shape = _ExpertProduct(low, x, panels, ends, outputs), (x.shape[0], outputs)
    return Tensor(F32, shape, dense_strides(shape), lazy=Product(product.launch, _accepts), node=low.node)


@operator("QuantizedExpertLinear", domain="educe")
def quantized_expert_linear(
    low: Lowering,
    call: Call,
    rows: Tensor,
    row_scales: Tensor,
    sums: Tensor,
    ends: Tensor,
    codes: Tensor,
    scales: Tensor,
    multipliers: Tensor | None = None,
    minimums: Tensor | None = None,
) -> Tensor:
    """What `ExpertLinear` gives, of what `QuantizeRows` gave and packed weights.

    The panels of an expert's `PackedWeight` come behind those of the expert before. Attributes as those of
    `QuantizedLinear`, of one expert.
    """
    outputs, num_experts = int(call.get("out_features", 0)), ends.size
    panels = -(-outputs // PANEL)
    whole = {**call.attributes, "out_features": num_experts * panels * PANEL}
    joined = replace(call, attributes=whole)
    weight = Weight.of(low, joined, codes, scales, multipliers, minimums)
    count = check_rows(weight, rows, row_scales, sums)
    if ends.kind is not I64 or ends.rank != 1:
        raise ValueError(f"the ends {ends} of experts")
    given = [low.dense(each) for each in (rows, row_scales, sums, ends)]
    launch, shape = partial(_launch_quantized, low, given, weight), (count, outputs)
    return Tensor(F32, shape, dense_strides(shape), lazy=Product(launch, _accepts), node=low.node)


def _launch_quantized(
    low: Lowering,
    given: Sequence[Tensor],
    weight: Weight,
    expression: Expression,
    operands: Sequence[Tensor],
    out: Tensor,
) -> None:
    """Launch the products of experts' packed weights with `expression` at their end, into `out`."""
    (count, outputs), num_experts = out.shape, given[3].size
    if out.size == 0:
        return
    form = replace(weight.format, is_whole=False)
    of_weight = (weight.scales, weight.multipliers, weight.minimums)
    parts = [weight.codes, *(each for each in of_weight if each is not None)]
    seen = _seen(operands, out)
    given_rows, panels = -(-count // num_experts), weight.panels // num_experts
    choices: dict[str, Any] = {"template": "quantized_expert_product"}
    unit, scratch_bytes = -(-panels // UNITS), 0
    if uses_matrix_unit(low.target, weight, given_rows):
        choices = {"template": "quantized_expert_unit", "depth": unit_depth(weight)}
        unit = -(-unit // MAX_BLOCKS) * MAX_BLOCKS
        scratch_bytes = unit_bytes(weight)
    else:
        choices["rows"] = rows_at_once(low.target, given_rows)
    low.launch(
        Kernel.of(**choices, weight=form, expression=expression, access=_access(seen)),
        outputs=[out],
        inputs=[*given[:3], *parts, *seen, given[3]],
        sizes=[
            *(outputs, weight.inputs, count, unit, *weight.sizes),
            *(number for each in (out, *seen) for number in (each.strides[0], 0, 0)),
        ],
        extent=num_experts * -(-panels // unit),
        scratch_bytes=scratch_bytes,
        flops=out.size * (2 * weight.inputs + expression.flops),
        bytes=4 * out.size + min(count, num_experts) * weight.codes.size // num_experts,
    )


def _accepts(x: Tensor) -> bool:
    """Say whether the end of a tile can read `x`."""
    return x.strides[-1] in (0, 1)


def _seen(operands: Sequence[Tensor], out: Tensor) -> list[Tensor]:
    """Return operands broadcast to the shape of the output."""
    return [each.view(out.shape, broadcast_strides(each.shape, each.strides, out.shape)) for each in operands]


def _access(seen: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple("dense" if each.strides[-1] == 1 else "same" for each in seen)


@dataclass(frozen=True, eq=False)
class _ExpertProduct:
    """The products of rows and their experts' matrices, which wait for their end.

    Attributes:
        low: Where they are launched.
        x: The rows.
        panels: The matrices of all experts.
        ends: Where each expert's rows end.
        outputs: Columns of a matrix.
    """

    low: Lowering
    x: Tensor
    panels: Panels
    ends: Tensor
    outputs: int

    def launch(self, expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
        """Launch them with `expression` at their end, into `out`."""
        if out.size == 0:
            return
        (rows, depth), num_experts = self.x.shape, self.ends.size
        seen = _seen(operands, out)
        most, at_once = self._tile(-(-rows // num_experts))
        panels = -(-self.outputs // (self.panels.vectors * lanes_of(self.low.target, F32)))
        group = -(-max(1, -(-panels // UNITS)) // at_once) * at_once
        groups, matrices = -(-panels // group), self.panels.matrices
        fetch_step = -(-self.panels.k_step // max(1, -(-rows // num_experts) // most))
        self.low.launch(
            Kernel.of(
                "expert_product",
                kind=F32,
                vectors=self.panels.vectors,
                expression=expression,
                access=_access(seen),
            ),
            outputs=[out],
            inputs=[self.x, matrices, self.ends, *seen],
            sizes=[
                *(self.outputs, depth, rows, group, groups, self.x.strides[0]),
                *(self.panels.k_step, self.panels.panel_step, matrices.strides[0], fetch_step),
                *(size for each in (out, *seen) for size in (each.strides[0], 0, 0)),
            ],
            extent=num_experts * groups,
            flops=out.size * (2 * depth + expression.flops),
            bytes=sum(each.size * 4 for each in (self.x, out, *operands))
            + min(rows, num_experts) * matrices.size // num_experts * 4,
        )

    def _tile(self, rows: int) -> tuple[int, int]:
        """Return the rows and panels of the tile for so many rows of an expert."""
        shapes = tiles(self.low.target, self.panels.vectors)
        return next(shape for shape in reversed(shapes) if shape[0] >= min(rows, shapes[0][0]))
