"""Weights are read as they are written, and bound to what an architecture declares."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from educe.errors import ModelFileError, UnsupportedModelError
from educe.formats import gguf_blocks
from educe.model.binding import Binding
from educe.model.checkpoint import Checkpoint, Weight, size_in_bytes
from educe.model.encodings import ENCODINGS

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def weight(name: str, *shape: int) -> Weight:
    values = np.arange(np.prod(shape), dtype=np.float32)
    return Weight(name, shape, "F32", values.view(np.uint8))


def checkpoint(*weights: Weight) -> Checkpoint:
    return Checkpoint("llama", {}, {w.name: w for w in weights}, None, {}, Path("here"), [b"abc"])


@pytest.mark.parametrize("encoding", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_numbers_are_decoded_from_any_offset(encoding: str, offset: int) -> None:
    dtype = np.dtype(DTYPES[encoding])
    values = np.random.default_rng(0).integers(0, 2, (5, 3)).astype(dtype)
    memory = np.zeros(values.nbytes + offset, np.uint8)
    memory[offset:] = values.reshape(-1).view(np.uint8)
    read = Weight("w", (5, 3), encoding, memory[offset:])
    np.testing.assert_array_equal(read.array(), values.astype(np.float32))
    np.testing.assert_array_equal(read.rows(1, 4), values[1:4].astype(np.float32))
    assert read.array().dtype == np.float32
    assert read.array().flags.aligned
    assert read.num_elements == 15


def test_every_plain_encoding_is_tested() -> None:
    assert {name for name, known in ENCODINGS.items() if known.block_elements == 1} == set(DTYPES)


def test_aligned_f32_is_not_copied() -> None:
    read = weight("w", 4, 3)
    assert np.shares_memory(read.array(), read.data)
    assert np.shares_memory(read.rows(1, 2), read.data)


def test_scales_multiply_rows() -> None:
    values = np.array([[1, -2], [3, 4], [5, -128]], np.int8)
    scales = np.array([0.5, 2, 0.25], np.float32)
    read = Weight("w", (3, 2), "I8", values.view(np.uint8).reshape(-1), scales)
    np.testing.assert_array_equal(read.array(), [[0.5, -1], [6, 8], [1.25, -32]])
    np.testing.assert_array_equal(read.rows(1, 3), [[6, 8], [1.25, -32]])
    assert read.cut(1, 3, "v").name == "v"


def test_scalars_and_empty_weights_have_sizes() -> None:
    assert size_in_bytes((), "F16") == 2
    assert Weight("w", (0, 3), "F32", np.empty(0, np.uint8)).array().shape == (0, 3)


def test_a_transposed_matrix_is_written_as_it_was() -> None:
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    turned = Weight("w", (2, 3), "F16", values.view(np.uint8).reshape(-1)).transposed()
    assert (turned.shape, turned.encoding) == ((3, 2), "F16")
    np.testing.assert_array_equal(turned.array(), values.T)


def test_what_is_taken_is_what_there_is() -> None:
    model = checkpoint(weight("a", 2, 3), weight("b", 3), weight("freq", 1))
    binding = Binding(model)
    assert "a" in binding
    assert "c" not in binding
    assert binding.take("a", (2, 3)) is binding.take("a", (2, 3)) is model.weights["a"]
    binding.take("b", (3,))
    binding.ignore("fr.q")
    binding.finish()


def test_joined_weights_are_cut_and_turned() -> None:
    binding = Binding(checkpoint(weight("a.weight", 2, 3), weight("a.bias", 2), weight("b", 3, 2)))
    binding.cut("a", (2, 3), {"second": 1, "first": 1}, order=np.array([1, 0]), bias=True)
    binding.transpose("b", (3, 2))
    shapes = {"first.weight": (1, 3), "second.weight": (1, 3), "second.bias": (1,), "b": (2, 3)}
    found = [binding.take(*each) for each in shapes.items()]
    arrays = [each.array().tolist() for each in found if each]
    assert arrays == [[[0, 1, 2]], [[3, 4, 5]], [1], [[0, 2, 4], [1, 3, 5]]]
    binding.finish()


def test_a_bias_in_blocks_is_cut_by_its_numbers() -> None:
    block = np.concatenate([np.array([0.5], np.float16).view(np.uint8), np.arange(32, dtype=np.uint8)])
    bias = Weight("a.bias", (32,), gguf_blocks.NAMES[8], block)
    binding = Binding(checkpoint(weight("a.weight", 32, 1), bias))
    binding.cut("a", (32, 1), {"first": 30, "second": 2}, bias=True)
    found = binding.take("second.bias", (2,))
    assert found is not None
    np.testing.assert_array_equal(found.array(), [15, 15.5])


def test_what_is_missing_of_another_shape_or_left_over_is_named() -> None:
    model = checkpoint(weight("a", 2, 3), weight("b", 3))

    def finish(*taken: tuple[str, tuple[int, ...]]) -> None:
        binding = Binding(model)
        for name, shape in taken:
            binding.take(name, shape)
        binding.finish()

    with pytest.raises(ModelFileError, match="lacks weights that the architecture 'llama' has: c, d"):
        finish(("a", (2, 3)), ("c", (1,)), ("d", (1,)))
    with pytest.raises(ModelFileError, match=r"a is \[2, 3\], not \[3, 2\]"):
        finish(("a", (3, 2)), ("b", (3,)))
    with pytest.raises(UnsupportedModelError, match="does not use: b"):
        finish(("a", (2, 3)))
    with pytest.raises(ModelFileError, match=r"w\.0, w\.1, w\.2, w\.3, w\.4 and 4 more"):
        finish(*((f"w.{i}", (1,)) for i in range(9)))


def test_parts_of_what_is_missing_are_not_named() -> None:
    binding = Binding(checkpoint())
    binding.cut("whole", (2, 3), {"part": 2})
    assert binding.take("part.weight", (2, 3)) is None
    with pytest.raises(ModelFileError, match=r"has: whole\.weight \("):
        binding.finish()


def test_a_hostile_number_of_layers_ends_early() -> None:
    binding = Binding(checkpoint())
    taken = (binding.take(f"layers.{layer}", (1,)) for layer in range(10**9))
    with pytest.raises(ModelFileError, match="lacks weights"):
        any(taken)


def test_facts() -> None:
    model = checkpoint(weight("a", 2, 3), weight("b", 3))
    assert (model.num_parameters, model.size_bytes) == (9, 3)
    assert model.digest.hexdigest().startswith("ba7816bf")
    assert "llama" in repr(model)
