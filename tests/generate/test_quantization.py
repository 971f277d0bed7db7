"""Weights of few bits: those of files are kept exactly, those made of floats lose as little as they can."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from educe.formats import gguf_blocks
from educe.generate import precision as precisions
from educe.generate.quantization import INT4, INT8, Q4_0, Q4_1, Q8_0, Format, own_format, quantized
from educe.model.checkpoint import Weight
from educe.model.quantized import QuantizedWeight, pack

assert gguf_blocks  # its encodings are registered

SHAPE = (19, 172)


def weight_of(values: np.ndarray, encoding: str = "F32") -> Weight:
    kind = GGMLQuantizationType[encoding]
    data = quants.quantize(values, kind) if encoding != "F32" else values
    return Weight("w", values.shape, encoding, np.ascontiguousarray(data).view(np.uint8).reshape(-1))


def squared_error(found: QuantizedWeight, values: np.ndarray) -> np.ndarray:
    return ((found.dequantize().astype(np.float64) - values) ** 2).sum(axis=1)


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_matrices_of_gguf_are_kept_bit_by_bit(rng, encoding: str) -> None:
    weight = weight_of(rng.standard_t(3, (19, 224)).astype(np.float32), encoding)
    form = own_format(weight)
    assert form is not None
    found = quantized(weight, form)
    np.testing.assert_array_equal(found.dequantize().view(np.uint32), weight.array().view(np.uint32))


def test_codes_with_a_scale_for_each_row_are_kept(rng) -> None:
    codes = rng.integers(-128, 128, SHAPE).astype(np.int8)
    scales = rng.random(SHAPE[0]).astype(np.float32)
    weight = Weight("w", SHAPE, "I8", codes.view(np.uint8).reshape(-1), scales)
    assert own_format(weight) == INT8
    found = quantized(weight, INT8)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.dequantize(), weight.array())


def plain(values: np.ndarray, form: Format) -> np.ndarray:
    """Return the squared error of each row when the largest number of a block decides its scale."""
    block = form.group or form.block or values.shape[1]
    rows, inputs = values.shape
    cut = np.pad(values, ((0, 0), (0, -inputs % block))).reshape(rows, -1, block).astype(np.float64)
    scales = np.abs(cut).max(axis=2) / (127 if form.bits == 8 else 7)
    if form.group:
        whole = scales.max(axis=1, keepdims=True) / 15
        scales = whole * np.clip(np.rint(scales / whole), 1, 15)
    scales = np.maximum(scales.astype(form.scale).astype(np.float64), 1e-30)[..., None]
    rounded = np.clip(np.rint(cut / scales), *((-127, 127) if form.bits == 8 else (-8, 7))) * scales
    return ((rounded - cut) ** 2).sum(axis=(1, 2))


@pytest.mark.parametrize("form", [INT8, INT4, Q8_0], ids=["int8", "int4", "int8 by 32"])
@pytest.mark.parametrize("tail", [2, 4, 1000])
def test_no_row_loses_more_than_by_plain_rounding_and_all_lose_less(rng, form: Format, tail: int) -> None:
    values = rng.standard_t(tail, (64, 172)).astype(np.float32)
    found = squared_error(quantized(weight_of(values), form), values)
    expected = plain(values, form)
    assert (found <= expected * (1 + 1e-4)).all()
    assert found.sum() < (1 if form.bits == 8 else 0.95) * expected.sum()


@pytest.mark.parametrize(("form", "factor"), [(INT8, 1.2), (INT4, 1.25), (Q8_0, 1.4)])
def test_the_error_is_near_the_best_that_a_search_finds(rng, form: Format, factor: float) -> None:
    values = rng.standard_normal((8, 96)).astype(np.float32)
    found = squared_error(quantized(weight_of(values), form), values).sum()
    size, least, most = (96, -127, 127) if form.bits == 8 and not form.block else (32, -127, 127)
    if form.bits == 4:
        least, most = -8, 7
    blocks = values.reshape(-1, size).astype(np.float64)
    best = np.full(len(blocks), np.inf)
    for largest in np.linspace(most * 0.7, most * 1.6, 400):
        scale = np.abs(blocks).max(axis=1, keepdims=True) / largest
        error = (np.clip(np.rint(blocks / scale), least, most) * scale - blocks) ** 2
        best = np.minimum(best, error.sum(axis=1))
    assert found <= factor * best.sum()


@pytest.mark.parametrize("form", [INT8, INT4])
def test_what_can_be_represented_is_exact(rng, form: Format) -> None:
    inputs = 96
    if form.bits == 8:
        codes = rng.integers(-127, 128, (8, inputs)).astype(np.int8)
        codes[:, 5] = 127
        given = QuantizedWeight(codes, rng.random((8, 1)).astype(np.float32), inputs)
    else:
        unsigned = rng.integers(0, 16, (8, inputs)).astype(np.uint8)
        unsigned[:, ::32] = 15
        unsigned[:, 1::32] = 1
        multipliers = rng.integers(1, 16, (8, inputs // 32)).astype(np.uint8)
        multipliers[:, 1] = 15
        unsigned[unsigned == 0] = 2
        given = QuantizedWeight(unsigned, rng.random((8, 1)).astype(np.float32), inputs, multipliers, 32)
    found = quantized(weight_of(given.dequantize()), form)
    np.testing.assert_array_equal(found.codes, given.codes)
    np.testing.assert_allclose(found.dequantize(), given.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("form", [INT8, INT4, Q8_0])
def test_zeros_and_numbers_at_the_ends_of_the_range_are_kept(form: Format) -> None:
    values = np.zeros((3, 64), np.float32)
    values[1, 3] = 1e-38
    values[2] = np.float32(3e4)
    found = quantized(weight_of(values), form).dequantize()
    assert not found[0].any()
    assert np.abs(found[1]).max() <= 1e-7
    np.testing.assert_allclose(found[2], values[2], rtol=2e-3)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [INT8, INT4, Q8_0])
def test_numbers_that_are_not_finite_are_refused(form: Format, number: float) -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 7] = number
    with pytest.raises(ValueError, match="not finite"):
        quantized(weight_of(values), form)


@pytest.mark.parametrize("form", [INT8, INT4, Q8_0, Q4_0, Q4_1])
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (19, 96), (33, 192)])
def test_the_arrays_of_a_format_are_those_that_packing_makes(rng, form: Format, shape) -> None:
    values = rng.standard_normal(shape).astype(np.float32)
    encodings = {Q4_0: "Q4_0", Q4_1: "Q4_1"}
    packed = pack(quantized(weight_of(values, encodings.get(form, "F32")), form))
    found = {name: (array.dtype, array.shape) for name, array in vars(packed).items() if array is not None}
    assert found == form.arrays(shape)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    {
        "F32": (INT8, INT8, INT4),
        "Q8_0": (Q8_0, Q8_0, INT4),
        "Q4_0": (Q4_0, Q4_0, Q4_0),
        "Q4_1": (Q4_1, Q4_1, Q4_1),
        "Q5_0": (Q8_0, INT8, INT4),
    }.items(),
)
def test_a_precision_keeps_what_a_file_has_in_as_few_bits(rng, encoding: str, expected) -> None:
    weight = weight_of(rng.standard_normal((2, 64)).astype(np.float32), encoding)
    found = tuple(precisions.format_of(weight, name) for name in ("auto", "int8", "int4"))
    assert found == expected
    assert precisions.format_of(weight, "f32") is None
    said = precisions.notes([weight] * 3, "auto")
    again = (f"{precisions.ROUNDED_AGAIN}: 3 of Q5_0",)
    assert said == {"F32": (precisions.ROUNDED,), "Q5_0": again}.get(encoding, ())
    assert precisions.notes([weight] * 3, "f32") == ()
