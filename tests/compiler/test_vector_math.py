"""Elementary functions against references of higher precision, on every target that this machine runs."""

from __future__ import annotations

import contextlib
import ctypes
import math

import numpy as np
import pytest

from educe.compiler.emit import F32, F64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.pointwise import BLOCK, MAX_OUTER
from educe.compiler.kernels.scalars import Expression, Step
from educe.compiler.library import library
from educe.compiler.target import TARGETS, host_target
from educe.errors import OptionError

EXTREMES = [
    *(0.0, 1.0, 0.5, 1e-45, 1e-38, 1.17549435e-38, 3.4028235e38, np.inf, np.nan, 2.0**20, 2.0**24, 1e30),
    *(87.33, 88.72, 88.73, 89.0, 103.9, 104.0, 132.0, 176.0, 177.0, 1e4, 0.55, 0.9, 3.92, 9.1, 20.0),
]


def _runnable():
    for name in TARGETS:
        with contextlib.suppress(OptionError):
            yield host_target(name)


@pytest.fixture(params=_runnable(), ids=lambda target: target.name)
def target(request):
    return request.param


def evaluated(target, function, *inputs, **attributes):
    """Return a scalar function of arrays of one length, by a kernel called without anything around it."""
    kinds = tuple(F64 if x.dtype == np.float64 else F32 for x in inputs)
    step = Step(function, tuple(range(len(inputs))), tuple(attributes.items()))
    kernel = Kernel.of(
        "pointwise", expression=Expression(kinds, (step,)), access=("dense",) * (len(inputs) + 1)
    )
    out = np.empty_like(inputs[0])
    arrays = (out, *inputs)
    blocks = -(-out.size // BLOCK)
    sizes = [0, out.size, blocks, 1, 1, 1, *[0] * MAX_OUTER, *([0] * (MAX_OUTER + 1) + [1]) * len(arrays)]
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_void_p)
    pointers = np.array([array.ctypes.data for array in arrays], np.int64)
    numbers = np.array(sizes, np.int64)
    call(library(target).address(kernel))(pointers.ctypes.data, numbers.ctypes.data, 0, blocks, None)
    return out


def sweep(dtype=np.float32):
    """Return numbers of every size and sign, dense where functions bend, and the extremes."""
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    bits[np.isnan(bits)] = np.nan
    near = [np.linspace(-a, a, 30_001, dtype=np.float32) for a in (1.0, 4.0, 20.0, 105.0)]
    sizes = (10.0 ** rng.uniform(-9, 5, 30_000)).astype(np.float32)
    last = np.array(EXTREMES, np.float32)
    x = np.concatenate([bits, *near, sizes, -sizes, last, -last]).astype(dtype)
    with np.errstate(all="ignore"):
        return x if dtype is np.float32 else x * (1 + rng.uniform(0, 1e-9, x.size))


@np.errstate(all="ignore")
def ulps(y, exact):
    """Return how many units in the last place of `y` lie between it and `exact`."""
    limits = np.finfo(y.dtype)
    rounded = exact.astype(y.dtype)
    unit = np.spacing(np.minimum(np.abs(rounded), limits.max)).astype(exact.dtype)
    found = np.abs(y.astype(exact.dtype) - exact) / unit
    is_same = (y == rounded) | (np.isnan(y) & np.isnan(rounded))
    found[is_same & ~np.isfinite(rounded)] = 0
    return np.where(np.isnan(found), np.inf, found)


def _erf(x):
    return np.vectorize(math.erf, otypes=[float])(x.astype(np.float64))


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# The function and the units in the last place that f32 and f64 may be off.
FUNCTIONS = {
    "Exp": (np.exp, 1.1, 2),
    "Log": (np.log, 1, 2),
    "Tanh": (np.tanh, 2, 3),
    "Erf": (_erf, 2, 1),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3, 3),
    "Elu": (lambda x: np.where(x < 0, np.expm1(x), x), 2, 2),
    "Softplus": (_softplus, 3, 3),
    "Sin": (np.sin, 1, 1),
    "Cos": (np.cos, 1, 1),
    "Tan": (np.tan, 1, 2),
    "Asin": (np.arcsin, 1, 1),
    "Acos": (np.arccos, 1, 1),
    "Atan": (np.arctan, 1, 1),
    "Sinh": (np.sinh, 1, 3),
    "Cosh": (np.cosh, 1, 3),
    "Asinh": (np.arcsinh, 1, 3),
    "Acosh": (np.arccosh, 1, 3),
    "Atanh": (np.arctanh, 1, 3),
}
_ATTRIBUTES = {"Elu": {"alpha": 1.0}}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_f32_is_within_its_bound_over_the_whole_range(name, target):
    function, bound, _ = FUNCTIONS[name]
    x = sweep()
    with np.errstate(all="ignore"):
        error = ulps(evaluated(target, name, x, **_ATTRIBUTES.get(name, {})), function(x.astype(np.float64)))
    worst = np.argmax(error)
    assert error[worst] <= bound, (x[worst], error[worst])


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no type of higher precision than f64")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_f64_is_within_its_bound_over_the_range_of_f32(name):
    function, _, bound = FUNCTIONS[name]
    x = sweep(np.float64)
    with np.errstate(all="ignore"):
        y = evaluated(host_target(), name, x, **_ATTRIBUTES.get(name, {}))
        error = ulps(y, function(x.astype(np.longdouble)))
    # For the largest arguments x87's own reduction has too few bits of π.
    far = np.abs(x) > 2.0**31 if name in ("Sin", "Cos", "Tan") else np.zeros(x.shape, bool)
    worst = np.argmax(np.where(far, 0, error))
    assert error[worst] <= bound, (x[worst], error[worst])


def test_zeros_keep_their_sign():
    zeros = np.array([0.0, -0.0] * 20, np.float32)
    for name in ("Tanh", "Erf", "Sin", "Tan", "Asin", "Atan", "Sinh", "Asinh", "Atanh"):
        np.testing.assert_array_equal(
            np.signbit(evaluated(host_target(), name, zeros)), np.signbit(zeros), name
        )


def test_what_is_masked_out_of_a_softmax_is_nothing():
    x = np.array([-176, -200, -1e4, -65504, -1e9, -3.4e38, -np.inf] * 9, np.float32)
    assert not evaluated(host_target(), "Exp", x).any()
    assert not evaluated(host_target(), "Sigmoid", x).any()


def test_powers_are_those_of_the_c_library(target):
    rng = np.random.default_rng(3)
    x = np.exp(rng.uniform(-80, 80, 20_000)).astype(np.float32)
    y = (rng.uniform(-1, 1, x.size) * 90 / np.abs(np.log(x))).astype(np.float32)
    bases, exponents = (np.array([*EXTREMES, 2.0, 3.0, 2.5], np.float32) for _ in range(2))
    bases, exponents = np.concatenate([bases, -bases]), np.concatenate([exponents, -exponents])
    x, y = np.append(x, np.repeat(bases, exponents.size)), np.append(y, np.tile(exponents, bases.size))
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
        found = evaluated(target, "Pow", x, y)
        error = ulps(found, exact)
    worst = np.argmax(error)
    assert error[worst] <= 1, (x[worst], y[worst], found[worst], exact[worst])


def test_a_lane_does_not_depend_on_its_neighbours():
    x = sweep()[:4096]
    for name in ("Exp", "Tanh", "Erf", "Sin", "Log"):
        whole = evaluated(host_target(), name, x)
        parts = [evaluated(host_target(), name, x[at : at + 37]) for at in range(0, x.size, 37)]
        np.testing.assert_array_equal(whole.view(np.int32), np.concatenate(parts).view(np.int32), name)
