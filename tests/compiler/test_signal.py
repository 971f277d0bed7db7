"""DFT and STFT against NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.errors import EduceError
from tests.compiler.models import FLOAT, model, native

KINDS = {np.float32: FLOAT, np.float64: TensorProto.DOUBLE}


def dft(x: np.ndarray, axis: int, length: int | None = None, **attributes: Any) -> np.ndarray:
    """Run the node DFT, without any part of it on the host."""
    weights = {"axis": np.array(axis)}
    if length is not None:
        weights["length"] = np.array(length)
    names = ["x", "length" if length is not None else "", "axis"]
    node = helper.make_node("DFT", names, ["y"], **attributes)
    made = model([node], {"x": (KINDS[x.dtype.type], [None] * x.ndim)}, ["y"], weights)
    executable = native(made)
    assert all(segment.step is None for segment in executable.program({"x": x}))
    return np.asarray(executable.run({"x": x})["y"])


def parts(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 31, 100, 400, 513, 960, 1024, 2205])
@pytest.mark.parametrize("complex_input", [False, True])
def test_forward_and_back(length: int, complex_input: bool) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, length)) + 1j * rng.normal(size=(3, length)) * complex_input
    x = (parts(z) if complex_input else z.real[..., None]).astype(np.float32)
    found = dft(x, 1)
    expected = parts(np.fft.fft(z))
    np.testing.assert_allclose(found, expected, atol=2e-6 * length**0.5 * 10)
    np.testing.assert_allclose(dft(found, -2, inverse=1), parts(z), atol=1e-5)


@pytest.mark.parametrize("length", [6, 9, 600, 1001])
def test_one_side(length: int) -> None:
    x = np.random.default_rng(1).normal(size=(2, length, 5, 1))
    half = dft(x, 1, onesided=1)
    np.testing.assert_allclose(half, parts(np.fft.rfft(x[..., 0], axis=1)), atol=1e-9)
    back = dft(half, 1, length, inverse=1, onesided=1)
    np.testing.assert_allclose(back, x, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("length", [20, 700])
def test_other_lengths_and_axes(rows: int, length: int) -> None:
    x = np.random.default_rng(2).normal(size=(30, rows, 2)).astype(np.float32)
    z = x[..., 0] + 1j * x[..., 1]
    np.testing.assert_allclose(dft(x, 0, length), parts(np.fft.fft(z, length, 0)), atol=1e-4)


def test_a_row_does_not_depend_on_others() -> None:
    x = np.random.default_rng(3).normal(size=(33, 1000, 1)).astype(np.float32)
    whole = dft(x, 1)
    np.testing.assert_array_equal(dft(x[:1], 1), whole[:1])
    np.testing.assert_array_equal(dft(x[:20], 1), whole[:20])


def stft(x: np.ndarray, step: int, window: np.ndarray | None, size: int | None, onesided: int) -> np.ndarray:
    """Run the node STFT."""
    weights = {"step": np.array(step)}
    if window is not None:
        weights["window"] = window
    if size is not None:
        weights["size"] = np.array(size)
    names = ["x", "step", "window" if window is not None else "", "size" if size is not None else ""]
    node = helper.make_node("STFT", names, ["y"], onesided=onesided)
    made = model([node], {"x": (KINDS[x.dtype.type], [None] * x.ndim)}, ["y"], weights)
    return np.asarray(native(made).run({"x": x})["y"])


@pytest.mark.parametrize("size", [16, 25, 1024])
@pytest.mark.parametrize("windowed", [False, True])
def test_frames(size: int, windowed: bool) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 1100, 1)).astype(np.float32)
    window = np.hanning(size).astype(np.float32) if windowed else None
    frames = np.stack([x[:, s : s + size, 0] for s in range(0, 1100 - size + 1, 7)], 1)
    weighted = frames * (1 if window is None else window)
    for onesided, transform in ((1, np.fft.rfft), (0, np.fft.fft)):
        found = stft(x, 7, window, size, onesided)
        np.testing.assert_allclose(found, parts(transform(weighted)), atol=2e-4)


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(EduceError, match="frames of 30"):
        stft(np.zeros((1, 20, 1), np.float32), 4, None, 30, 1)


def test_no_rows() -> None:
    assert dft(np.zeros((0, 600, 1), np.float32), 1).shape == (0, 600, 2)
