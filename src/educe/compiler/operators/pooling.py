"""Pooling: windows in which channels do not meet; they stay products until what follows them is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import BOOL, F32, F64, Kind
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.sliding import Sliding
from educe.compiler.operators.window import Window, window_of, with_channels_last
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MAX_RANK = 3


@operator("MaxPool")
def max_pool(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The largest number of each window; NaN if there is one."""
    if len([name for name in call.outputs if name]) > 1:
        raise NotCompiled
    return _maximum(low, x, _window(call, x))


@operator("AveragePool")
def average_pool(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The mean of each window, without the padding unless `count_include_pad`."""
    return _mean(low, x, _window(call, x), with_padding=bool(call.get("count_include_pad", 0)))


@operator("LpPool")
def lp_pool(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    return _norm(low, x, _window(call, x), float(call.get("p", 2)))


def _window(call: Call, x: Tensor) -> Window:
    kernel = call.get("kernel_shape")
    if kernel is None:
        raise ValueError("kernel_shape is missing")
    _check_rank(x)
    return window_of(call, x.shape[2:], [int(size) for size in kernel])


def _check_rank(x: Tensor) -> None:
    if x.rank < 3:
        raise ValueError(f"pooling of {x.rank} dimensions")
    if x.rank > 2 + _MAX_RANK:
        raise NotCompiled


def _maximum(low: Lowering, x: Tensor, window: Window) -> Tensor:
    least = lowest(x.kind)
    return Sliding(low, with_channels_last(low, x), window, "max", start=least, outside=least).product()


def lowest(kind: Kind) -> float:
    """Return the number of `kind` that every other one is at least."""
    if kind.is_float:
        return -np.inf
    return False if kind is BOOL else int(np.iinfo(dtype_of(kind)).min)


def _mean(low: Lowering, x: Tensor, window: Window, *, with_padding: bool) -> Tensor:
    kind = x.kind
    if not kind.is_float:
        raise ValueError(f"a mean of {kind}")
    if kind not in (F32, F64):
        x = low.apply("Cast", x, to="f32")
    total = Sliding(low, with_channels_last(low, x), window, "sum").product()
    mean = low.apply("Div", total, _counts(low, total, window, with_padding=with_padding))
    return mean if mean.kind is kind else low.apply("Cast", mean, to=kind.name)


def _norm(low: Lowering, x: Tensor, window: Window, p: float) -> Tensor:
    kind = x.kind
    if not kind.is_float or p <= 0:
        raise ValueError(f"a {p}-norm of {kind}")
    if kind not in (F32, F64):
        x = low.apply("Cast", x, to="f32")
    dtype = dtype_of(x.kind)
    powers = low.apply("Pow", low.apply("Abs", x), low.constant(np.array(p, dtype)))
    total = Sliding(low, with_channels_last(low, powers), window, "sum").product()
    norm = low.apply("Pow", total, low.constant(np.array(1 / p, dtype)))
    return norm if norm.kind is kind else low.apply("Cast", norm, to=kind.name)


def _counts(low: Lowering, total: Tensor, window: Window, *, with_padding: bool) -> Tensor:
    """Return how many numbers each sum is of: one number where all are the same."""
    counts = window.counts(with_padding=with_padding).astype(dtype_of(total.kind))
    if counts.size and (counts == counts.flat[0]).all():
        return low.constant(counts.reshape(-1)[:1].reshape((1,) * total.rank))
    whole: Sequence[int] = (total.shape[0], 1, *counts.shape)
    key = ("counts", window.key, with_padding, total.shape[0], total.kind.name)
    return low.shared(key, lambda: np.broadcast_to(counts, whole))
