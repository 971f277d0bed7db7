"""Known values computed by NumPy while lowering: the arithmetic of shapes, which exported graphs are full of.

Every function takes the node and its inputs as arrays, None where one is left out, and returns the only
output, or None for what it leaves to others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx

from educe.compiler.operators.base import Call
from educe.compiler.tensor import KIND_NAMES
from educe.errors import InputError

Fold: TypeAlias = Callable[..., "np.ndarray | None"]

MAX_SIZE = 4096
"""Elements up to which an operator that makes more of few is computed while lowering."""

_FOLDS: dict[str, Fold] = {}


def fold(call: Call, inputs: Sequence[Any]) -> np.ndarray | None:
    """Return what a node that means what today's operator means gives, or None if that is not told here.

    Raises:
        InputError: the operator's definition forbids these inputs.
    """
    function = None if call.domain else _FOLDS.get(call.operator)
    if function is None or not all(each is None or _is_plain(each) for each in inputs):
        return None
    with np.errstate(all="ignore"):
        try:
            return function(call, *inputs)
        except (ValueError, IndexError, TypeError, OverflowError):
            return None


def repeats(call: Call, inputs: Sequence[Any]) -> bool:
    """Say whether a node makes so many elements of few that they are better made at the run."""
    measure = _MEASURES.get(call.operator)
    if measure is None or call.domain or any(each is None or each.dtype == object for each in inputs):
        return False
    return measure(*(np.asarray(each, np.float64) for each in inputs)) > MAX_SIZE


_MEASURES: dict[str, Callable[..., float]] = {
    "ConstantOfShape": lambda shape: float(np.prod(shape)),
    "Expand": lambda x, shape: float(np.prod(np.maximum(shape, 1)) * x.size),
    "Tile": lambda x, repeats: float(x.size * np.prod(repeats)),
}


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in KIND_NAMES


def _folds(*names: str) -> Callable[[Fold], Fold]:
    def register(function: Fold) -> Fold:
        _FOLDS.update(dict.fromkeys(names, function))
        return function

    return register


def _binary(function: Callable[..., Any]) -> Fold:
    return lambda _call, a, b: np.asarray(function(a, b)) if a.dtype == b.dtype else None


_FOLDS.update(
    {
        "Add": _binary(np.add),
        "Sub": _binary(np.subtract),
        "Mul": _binary(np.multiply),
        "Equal": _binary(np.equal),
        "Less": _binary(np.less),
        "Greater": _binary(np.greater),
        "And": _binary(np.logical_and),
        "Or": _binary(np.logical_or),
        "Not": lambda _call, x: np.asarray(np.logical_not(x)),
        "Where": lambda _call, c, a, b: np.asarray(np.where(c, a, b)) if a.dtype == b.dtype else None,
        "Identity": lambda _call, x: x,
        "NonZero": lambda _call, x: np.array(np.nonzero(np.atleast_1d(x)), np.int64),
    }
)


@_folds("Div")
def _div(call: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    if a.dtype != b.dtype:
        return None
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all():
        return None
    quotient, rest = np.divmod(a, b)
    return np.asarray(quotient + ((rest != 0) & ((a < 0) != (b < 0))).astype(a.dtype))


@_folds("Max", "Min")
def _extreme(call: Call, *values: np.ndarray) -> np.ndarray:
    function = np.maximum if call.operator == "Max" else np.minimum
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return np.asarray(result)


@_folds("Cast")
def _cast(call: Call, x: np.ndarray) -> np.ndarray | None:
    to = onnx.helper.tensor_dtype_to_np_dtype(int(call.get("to")))
    if to not in KIND_NAMES or (x.dtype.kind == "f" and to.kind in "iu"):
        return None
    return x.astype(to)


@_folds("Gather")
def _gather(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.asarray(np.take(x, indices, int(call.get("axis", 0))))


@_folds("GatherElements")
def _gather_elements(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = int(call.get("axis", 0)) % x.ndim
    # The evaluator wants as many indices as elements in the other dimensions.
    seen = tuple(slice(None if each == axis else size) for each, size in enumerate(indices.shape))
    return np.take_along_axis(x[seen], indices, axis)


@_folds("Concat")
def _concat(call: Call, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, int(call.get("axis", 1)))


@_folds("Unsqueeze")
def _unsqueeze(call: Call, x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, axes.tolist())


@_folds("Squeeze")
def _squeeze(call: Call, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return np.squeeze(x, None if axes is None else tuple(axes.tolist()))


@_folds("Slice")
def _slice(
    call: Call,
    x: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> np.ndarray:
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    chosen = [slice(None)] * x.ndim
    for axis, *bounds in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        chosen[axis] = slice(*bounds)
    return x[tuple(chosen)]


@_folds("Reshape")
def _reshape(call: Call, x: np.ndarray, shape: np.ndarray) -> np.ndarray | None:
    sizes = shape.tolist()
    if call.get("allowzero", 0) and 0 in sizes:
        return None
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


@_folds("Transpose")
def _transpose(call: Call, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, call.get("perm"))


@_folds("Expand")
def _expand(call: Call, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape.tolist()))


@_folds("ConstantOfShape")
def _constant_of_shape(call: Call, shape: np.ndarray) -> np.ndarray | None:
    if (shape < 0).any():
        raise InputError(f"{shape.tolist()} is no shape", remedy="sizes are 0 or more")
    value = call.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    return np.full(shape.tolist(), value.reshape(()), value.dtype) if _is_plain(value) else None


@_folds("Range")
def _range(call: Call, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray | None:
    ends = [float(each.item()) for each in (start, limit, delta)]
    if not ends[2] or not np.isfinite(ends).all():
        raise InputError(
            f"from {ends[0]:g} to {ends[1]:g} in steps of {ends[2]:g} has no number of elements",
            remedy="use finite numbers, and a step other than 0",
        )
    if start.dtype.kind not in "iu":
        return None
    ramp: np.ndarray = np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
    return ramp


@_folds("Shape")
def _shape(call: Call, x: np.ndarray) -> np.ndarray:
    end = call.get("end")
    return np.array(x.shape[int(call.get("start", 0)) : None if end is None else int(end)], np.int64)
