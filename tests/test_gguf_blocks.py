"""The encodings of GGUF's tensors, against the decoders of the `gguf` package, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from educe.formats import gguf_blocks
from educe.model.encodings import ENCODINGS

PLAIN = {
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "MXFP4")


def decode(data: np.ndarray, name: str) -> np.ndarray:
    return ENCODINGS[name].decode(data.reshape(-1))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype == np.float32
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def test_every_type_has_the_number_and_the_size_of_the_reference() -> None:
    assert len(gguf_blocks.NAMES) == len(set(gguf_blocks.NAMES.values())) == 21
    for code, name in gguf_blocks.NAMES.items():
        reference, known = GGMLQuantizationType(code), ENCODINGS[name]
        assert name == reference.name
        assert (known.block_elements, known.block_bytes) == GGML_QUANT_SIZES[reference]


@pytest.mark.parametrize("name", sorted(set(gguf_blocks.NAMES.values()) - PLAIN.keys()))
def test_any_bytes_decode_as_the_reference_decodes_them(name: str, rng: np.random.Generator) -> None:
    kind = ENCODINGS[name]
    data = rng.integers(0, 256, (7, 5 * 8192 // kind.block_elements * kind.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(data, GGMLQuantizationType[name])
    assert_same_bits(decode(data, name), expected.reshape(-1))


@pytest.mark.parametrize("name", QUANTISED)
def test_what_the_reference_quantises_decodes_near_what_it_was(name: str, rng: np.random.Generator) -> None:
    values = rng.standard_normal((12, 64)).astype(np.float32)
    data = quants.quantize(values, GGMLQuantizationType[name])
    found = decode(data.view(np.uint8), name)
    assert_same_bits(found, quants.dequantize(data, GGMLQuantizationType[name]).reshape(-1))
    assert np.abs(found - values.reshape(-1)).max() < 0.7


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_are_converted(name: str, rng: np.random.Generator) -> None:
    values = (rng.standard_normal(50) * 100).astype(PLAIN[name])
    found = decode(values.view(np.uint8), name)
    assert_same_bits(found, values.astype(np.float32))


def test_the_exponents_of_mxfp4_reach_from_end_to_end() -> None:
    blocks = np.zeros((256, 17), np.uint8)
    blocks[:, 0] = range(256)
    blocks[:, 1:] = 0x2A
    with np.errstate(over="ignore"):
        expected = quants.dequantize(blocks, GGMLQuantizationType.MXFP4)
    assert_same_bits(decode(blocks, "MXFP4"), expected.reshape(-1))


def test_no_blocks_are_no_values() -> None:
    assert decode(np.empty(0, np.uint8), "Q4_K").shape == (0,)
