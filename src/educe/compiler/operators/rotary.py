"""The rotation of queries and keys by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from educe.compiler.operators.attention import by_heads
from educe.compiler.operators.base import Call, operator, operators
from educe.compiler.operators.movement import sliced
from educe.compiler.tensor import Tensor, broadcast_shape, memory_order, strides_in_order
from educe.graph.normalize import INTERNAL_OPSET

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_RANK = 4


@operator("RotaryEmbedding", domain="educe")
def fused_rotary_embedding(low: Lowering, call: Call, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The sum x · cos + y · sin, where y is x with each pair of features (a, b) as (-b, a)."""
    shape = broadcast_shape(x.shape, cos.shape, sin.shape)
    x = low.need(x)
    out = low.empty(x.kind, shape, strides_in_order(shape, memory_order(x.shape, x.strides)))
    x, cos, sin = (low.expand(each, shape) for each in (x, cos, sin))
    places = _places(shape[-1], call)
    angles = [tuple(sliced(low, each, x.rank - 1, part) for part in places) for each in (cos, sin)]
    _rotate(low, x, out, places, angles)
    return out


@operator("RotaryEmbedding")
def rotary_embedding(
    low: Lowering, call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Pairs of features turned by an angle of their position: Su et al., 2021, arxiv.org/abs/2104.09864."""
    out = low.empty(x.kind, x.shape)
    by_head = _positions_first(low, call, x)
    turned = _positions_first(low, call, out)
    size = int(call.get("rotary_embedding_dim", 0)) or by_head.shape[3]
    half = size // 2
    if size % 2 or size > by_head.shape[3] or cos.shape != sin.shape or cos.shape[-1] != half:
        raise ValueError(f"angles {cos} and {sin} for {size} of {by_head.shape[3]} features")
    if positions is not None:
        rows = Call("Gather", "", INTERNAL_OPSET, {"axis": 0})
        cos, sin = (operators()["", "Gather"](low, rows, each, positions) for each in (cos, sin))  # type: ignore[assignment]
    if cos.shape != (*by_head.shape[:2], half):
        raise ValueError(f"angles {cos} for {by_head.shape[0]} times {by_head.shape[1]} positions")
    cos, sin = (low.reshape(each, (*each.shape[:2], 1, half)) for each in (cos, sin))
    _rotate(low, by_head, turned, _places(size, call), [(cos, cos), (sin, sin)])
    rest = range(size, by_head.shape[3])
    if rest:
        low.copy(sliced(low, by_head, 3, rest), sliced(low, turned, 3, rest))
    return out


def _places(size: int, call: Call) -> tuple[range, range]:
    """Return where the first and the second features of pairs lie."""
    half = size // 2
    return (
        (range(0, size, 2), range(1, size, 2))
        if call.get("interleaved", 0)
        else (range(half), range(half, size))
    )


def _rotate(
    low: Lowering,
    x: Tensor,
    out: Tensor,
    places: Sequence[range],
    angles: Sequence[tuple[Tensor, ...]],
) -> None:
    """Write the pairs of `x` at `places`, turned by angles: the cosines and sines of each place."""
    cos, sin = angles
    a, b = (sliced(low, x, x.rank - 1, each) for each in places)
    real = low.apply("Sub", low.apply("Mul", cos[0], a), low.apply("Mul", sin[0], b))
    imaginary = low.apply("Add", low.apply("Mul", sin[1], a), low.apply("Mul", cos[1], b))
    for part, each in zip((real, imaginary), places, strict=True):
        low.write(part, sliced(low, out, x.rank - 1, each))


def _positions_first(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Return `x` as (batch, positions, heads, features), without a copy."""
    if x.rank == _RANK:
        return low.permute(x, (0, 2, 1, 3))
    return low.permute(by_heads(low, x, call.get("num_heads")), (0, 2, 1, 3))
