"""Operators whose elements are told by their places: constants, ramps, triangles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from educe.compiler.folding import MAX_SIZE
from educe.compiler.operators.base import Call, NotCompiled, known_values, operator
from educe.compiler.operators.movement import integers, sliced
from educe.compiler.tensor import Tensor, dtype_of, kind_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("ConstantOfShape")
def constant_of_shape(low: Lowering, call: Call, shape: Tensor) -> Tensor:
    """One element, repeated without a copy."""
    sizes = integers(low, shape)
    value = np.asarray(call.get("value", np.zeros(1, np.float32)))
    if kind_of(value.dtype) is None:
        raise NotCompiled
    if min(sizes, default=0) < 0:
        raise ValueError(f"{sizes} is no shape")
    return _repeated(low, value, sizes)


@operator("EyeLike")
def eye_like(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Ones on the diagonal `k`, zeros elsewhere."""
    if x.rank != 2:
        raise ValueError(f"a tensor of {x.rank} dimensions instead of 2")
    kind = x.kind
    if "dtype" in call.attributes:
        found = kind_of(onnx.helper.tensor_dtype_to_np_dtype(int(call.get("dtype"))))
        if found is None:
            raise NotCompiled
        kind = found
    rows, columns = x.shape
    k = int(call.get("k", 0))
    out = low.empty(kind, x.shape)
    low.copy(_repeated(low, np.zeros(1, dtype_of(kind)), x.shape, known=False), out)
    first_row, first_column = max(-k, 0), max(k, 0)
    length = max(min(rows - first_row, columns - first_column), 0)
    if length:
        diagonal = out.view([length], [columns + 1], first_row * columns + first_column)
        low.copy(_repeated(low, np.ones(1, dtype_of(kind)), [length], known=False), diagonal)
    return out


@operator("Range")
def range_(low: Lowering, call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... below limit: computed while lowering once these are known."""
    known_values(low, start, limit, delta)
    raise NotCompiled


@operator("Trilu")
def trilu(low: Lowering, call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The triangle above or below the diagonal `k`, zeros elsewhere."""
    if x.rank < 2:
        raise ValueError(f"a tensor of {x.rank} dimensions has no triangle")
    rows, columns = x.shape[-2:]
    diagonal = ramp(low, rows, (rows, 1))
    if k is not None:
        diagonal = low.apply("Add", diagonal, low.reshape(k, ()))
    column = ramp(low, columns, (columns,))
    upper = call.get("upper", 1)
    outside = low.apply("Less", column, diagonal) if upper else low.apply("Less", diagonal, column)
    zero = low.constant(np.zeros((), dtype_of(x.kind)))
    return low.apply("Where", outside, zero, x)


@operator("OneHot")
def one_hot(low: Lowering, call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """The second of `values` at the places that `indices` name along a new dimension, the first elsewhere."""
    (given,) = known_values(low, depth)
    assert given is not None
    number = int(given.item())
    if number < 0 or values.shape != (2,):
        raise ValueError(f"a depth of {number} with values of shape {list(values.shape)}")
    rank = indices.rank + 1
    axis = call.axis(rank, -1)
    places = low.reshape(indices, [*indices.shape[:axis], 1, *indices.shape[axis:]])
    if places.kind.name != "i64":
        places = low.apply("Cast", places, to="i64")
    zero, length = (low.constant(np.array(each, np.int64)) for each in (0, number))
    length.varies = depth.varies
    places = low.apply("Where", low.apply("Less", places, zero), low.apply("Add", places, length), places)
    ramp_shape = [number if each == axis else 1 for each in range(rank)]
    own = ramp(low, number, ramp_shape)
    off, on = (low.reshape(sliced(low, values, 0, range(each, each + 1)), ()) for each in (0, 1))
    above = low.apply("Where", low.apply("Less", own, places), off, on)
    return low.apply("Where", low.apply("Less", places, own), off, above)


def ramp(low: Lowering, number: int, shape: tuple[int, ...] | list[int]) -> Tensor:
    """Return the constant 0, 1, 2, ... of `shape`."""
    return low.reshape(low.shared(("ramp", number), lambda: np.arange(number)), shape)


def _repeated(
    low: Lowering, value: np.ndarray, shape: tuple[int, ...] | list[int], known: bool = True
) -> Tensor:
    made = low.constants.made(("one", value.dtype.str, value.tobytes()), lambda: value.reshape(1))
    whole = low.expand(low.reshape(low.constant(made), ()), shape)
    if not known or whole.size > MAX_SIZE:
        whole.value = None
    return whole
