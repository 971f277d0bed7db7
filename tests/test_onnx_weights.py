"""Reading an ONNX file once: weights apart, the same message and the same bytes."""

from __future__ import annotations

import hashlib
import io
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import educe
from educe import pages
from educe.errors import ModelFileError
from educe.formats.onnx_weights import LARGE_BYTES, Content, read
from educe.model.digest import Digest
from tests.conftest import ROOT

LARGE = np.arange(LARGE_BYTES // 4, dtype=np.float32)


def read_bytes(content: bytes) -> Content:
    return read(io.BytesIO(content), len(content))


def whole(content: Content) -> bytes:
    return b"".join(bytes(part) for part in content.parts)


def with_weights(*arrays: np.ndarray) -> onnx.ModelProto:
    """A model that adds up its weights."""
    names = [f"w{number}" for number in range(len(arrays))]
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", *names], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def field(number: int, content: bytes, wire: int = 2) -> bytes:
    """One field of a message with a length of five bytes, as some writers leave room for it."""
    size = len(content)
    length = bytes(size >> 7 * place & 0x7F | (0x80 if place < 4 else 0) for place in range(5))
    return bytes([number << 3 | wire]) + length + content


@pytest.mark.parametrize(
    "path", sorted((ROOT / "zoo").glob("*/model.onnx")), ids=lambda path: path.parent.name
)
def test_what_is_read_is_what_protobuf_reads(path) -> None:
    content = path.read_bytes()
    found = read_bytes(content)
    assert whole(found) == content
    expected, proto = onnx.ModelProto.FromString(content), onnx.ModelProto.FromString(found.message)
    for number, data in found.weights.items():
        assert not proto.graph.initializer[number].raw_data
        proto.graph.initializer[number].raw_data = data.tobytes()
    assert proto == expected
    large = [n for n, t in enumerate(expected.graph.initializer) if len(t.raw_data) >= LARGE_BYTES]
    assert list(found.weights) == large


def test_weights_are_arrays_of_their_own_and_run() -> None:
    proto = with_weights(LARGE, LARGE[:1], LARGE[::-1].copy())
    model = educe.load(proto)
    content = proto.SerializeToString()
    assert model.sha256 == hashlib.sha256(content).hexdigest()
    assert model.size_bytes == len(content)
    array = model.graph.graph.initializers["w2"].const_value.numpy()
    assert array.ctypes.data % pages.ALIGNMENT == 0
    np.testing.assert_array_equal(array, LARGE[::-1])


def test_unusual_encodings_mean_what_they_mean_to_protobuf() -> None:
    tensor = numpy_helper.from_array(LARGE, "w0").SerializeToString()
    proto = with_weights()
    head, graph = (
        proto.SerializeToString(),
        field(5, tensor) + field(5, numpy_helper.from_array(LARGE[:3], "w1").SerializeToString()),
    )
    for content in (head + field(7, graph), field(7, graph) + head, head + field(7, b"") + field(7, graph)):
        found = read_bytes(content)
        assert list(found.weights) == [0]
        merged = onnx.ModelProto.FromString(found.message)
        merged.graph.initializer[0].raw_data = found.weights[0].tobytes()
        assert merged == onnx.ModelProto.FromString(content)
        assert whole(found) == content


def test_data_given_twice_is_left_to_protobuf() -> None:
    tensor = numpy_helper.from_array(LARGE, "w0").SerializeToString() + field(9, bytes(8))
    content = field(7, field(5, tensor))
    found = read_bytes(content)
    assert (found.message, found.weights) == (content, {})


def test_every_cut_is_refused() -> None:
    content = with_weights(LARGE, LARGE[:5]).SerializeToString()
    for size in (*range(1, 400), len(content) // 2, len(content) - 40, len(content) - 1):
        with pytest.raises(ModelFileError):
            educe.load(content[:size])


def test_lengths_that_lie_are_refused() -> None:
    inner = field(9, LARGE.tobytes())
    for content in (
        field(7, field(5, inner)[:-4]),
        field(7, field(5, inner[:1] + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + inner[6:])),
        field(7, field(5, b"\x4b" + inner)),
        b"\xff" * 12 + field(7, field(5, inner)),
    ):
        found = read_bytes(content)
        assert (found.message, found.weights) == (content, {})


def test_data_of_another_size_than_its_shape_is_refused() -> None:
    proto = with_weights(LARGE)
    proto.graph.initializer[0].dims[0] += 1
    with pytest.raises(ModelFileError, match=r"'w0': holds 16,384 bytes, where FLOAT\[4097\] takes"):
        educe.load(proto)


def test_a_weight_that_is_defined_twice_is_refused() -> None:
    proto = with_weights(LARGE, LARGE)
    proto.graph.initializer[1].name = "w0"
    with pytest.raises(ModelFileError, match="initializer 'w0': is defined twice"):
        educe.load(proto)


def test_the_digest_of_much_content_is_that_of_its_parts() -> None:
    parts = [b"head", LARGE.data, os.urandom(3_000_000), b""]
    expected = hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()
    assert Digest(parts).hexdigest() == expected
    assert Digest([bytes(part) for part in parts]).hexdigest() == expected
    assert Digest([b"few"]).hexdigest() == hashlib.sha256(b"few").hexdigest()


def test_a_forked_child_has_the_digest_too() -> None:
    content = os.urandom(30_000_000)
    digest = Digest([content])
    child = os.fork()
    if not child:
        os._exit(digest.hexdigest() != hashlib.sha256(content).hexdigest())
    assert os.waitpid(child, 0)[1] == 0
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("shape", [(), 0, 5, (3, 0), (7, 11), (1024, 1025)])
def test_arrays_start_on_cache_lines(shape) -> None:
    array = pages.empty(shape, np.float32)
    assert array.shape == np.empty(shape).shape
    assert not array.size or array.ctypes.data % pages.ALIGNMENT == 0
    assert array.flags.c_contiguous
    array[...] = 1
    assert array.sum() == array.size


def test_more_memory_than_there_is_is_an_error() -> None:
    for size in (2**60, 2**63, 2**80):
        with pytest.raises(MemoryError, match="bytes"):
            pages.empty(size, np.uint8)
