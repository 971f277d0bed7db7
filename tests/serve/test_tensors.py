"""Tensors of the Open Inference Protocol, in JSON and as bytes: they come back, and lies are refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from educe.model import MapType, SequenceType, TensorType
from educe.model.signature import NUMPY_TYPES
from educe.serve import tensors
from educe.serve.faults import BadRequest, Unprocessable
from educe.serve.grpc.contents import bytes_to_read
from educe.serve.http import v2_types as types
from educe.serve.http.exchange import encode
from educe.serve.http.v2_tensors import read_inputs, texts_behind_bytes, write_outputs

NUMBERS = [name for name in tensors.DATATYPES if name != "BYTES"]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
INPUT = msgspec.json.Decoder(list[types.InferInput])


def elements_of(datatype: str) -> Any:
    dtype = NUMPY_TYPES[tensors.DATATYPES[datatype]]
    if datatype == "BF16":
        bits = arrays.arrays(np.uint16, SHAPES)
        return bits.map(lambda each: each.view(ml_dtypes.bfloat16))
    if datatype == "BYTES":
        return arrays.arrays(object, SHAPES, elements=st.binary(max_size=9), fill=st.nothing())
    return arrays.arrays(dtype, SHAPES)


ANY = st.sampled_from(list(tensors.DATATYPES)).flatmap(
    lambda name: st.tuples(st.just(name), elements_of(name))
)


def read(entries: Any, behind: bytes = b"") -> dict[str, np.ndarray]:
    return read_inputs(INPUT.decode(json.dumps(entries)), memoryview(behind))


def entry(datatype: str, shape: list[int], data: Any = None, **parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape, "parameters": parameters}
    return found if data is None else {**found, "data": data}


@given(ANY)
def test_bytes_come_back(tensor: tuple[str, np.ndarray]) -> None:
    datatype, array = tensor
    raw = tensors.to_bytes(array)
    found = tensors.from_bytes(raw, datatype, list(array.shape), "x")
    assert tensors.datatype_of(found) == datatype
    assert found.shape == array.shape
    if datatype == "BYTES":
        assert found.tolist() == array.tolist()
    else:
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


@given(st.lists(ANY, max_size=4))
def test_binary_answers_are_read_as_requests(given_tensors: list[tuple[str, np.ndarray]]) -> None:
    outputs = {f"out{number}": array for number, (_, array) in enumerate(given_tensors)}
    found, parts = write_outputs(outputs, [], True)
    header = encode(found)
    feeds = read_inputs(INPUT.decode(header), memoryview(b"".join(map(bytes, parts))))
    assert feeds.keys() == outputs.keys()
    for name, array in outputs.items():
        assert feeds[name].shape == array.shape
        if array.dtype == object:
            assert feeds[name].tolist() == array.tolist()
        else:
            assert feeds[name].tobytes() == array.tobytes()


def is_said_in_json(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu" or bool(np.isfinite(array.astype(np.float64)).all())


@given(st.sampled_from(NUMBERS).flatmap(elements_of).filter(is_said_in_json))
def test_numbers_in_json_come_back_nested_or_flat(array: np.ndarray) -> None:
    (found,), parts = write_outputs({"x": array}, [], False)
    assert parts == []
    said = msgspec.to_builtins(found)
    for data in (said["data"], array.tolist() if array.dtype.kind != "V" and array.ndim else said["data"]):
        (again,) = read([{**said, "data": data}]).values()
        assert again.dtype == array.dtype
        assert again.shape == array.shape
        assert again.tobytes() == array.tobytes()


@given(arrays.arrays(object, SHAPES, elements=st.text(st.characters(codec="utf-8"), max_size=5)))
def test_texts_in_json_come_back(array: np.ndarray) -> None:
    (found,), _ = write_outputs({"x": array}, [], False)
    (again,) = read([msgspec.to_builtins(found)]).values()
    assert again.tolist() == array.tolist()
    assert again.shape == array.shape


def test_what_is_no_number_of_json_is_null() -> None:
    array = np.array([np.nan, np.inf, 1], np.float32)
    (found,), _ = write_outputs({"x": array}, [], False)
    assert found.data == [None, None, 1.0]


@pytest.mark.parametrize(
    "hostile",
    [
        entry("FP32", [2], [1]),
        entry("FP32", [1], [1, 2]),
        entry("FP32", [-1], [1]),
        entry("FP32", [-1, -1], [1]),
        entry("FP32", [2**62, 2**62], [1]),
        entry("FP32", [2**40], [1]),
        entry("FP32", [0, 2**62, 2**62], [1]),
        entry("FP32", [0, 2**62], []),
        entry("FP64", [2**61, 0], []),
        entry("FP32", [2**64, 0], []),
        entry("FP32", [1] * 65, [1]),
        entry("FP32", [2], [1, None]),
        entry("FP32", [2], ["1", "2"]),
        entry("FP32", [2], [1, "2"]),
        entry("FP32", [2], [True, 1]),
        entry("FP32", [2], [True, False]),
        entry("FP32", [3], [[1, 2], [3]]),
        entry("FP32", [2], [{}, {}]),
        entry("FP32", [1], [{"a": 1}]),
        entry("FP32", [1], [10**400]),
        entry("FP32", [1], [1e39]),
        entry("FP16", [1], [70000]),
        entry("FP32", [1], [[[[[[1], []]]]]]),
        entry("BOOL", [2], [0, 1]),
        entry("BOOL", [1], ["true"]),
        entry("INT32", [1], [1.5]),
        entry("INT32", [1], [2**31]),
        entry("INT8", [1], [-129]),
        entry("UINT8", [1], [-1]),
        entry("UINT64", [1], [2**64]),
        entry("INT64", [1], [2**63]),
        entry("INT64", [1], ["1"]),
        entry("INT64", [2], [1, True]),
        entry("BYTES", [1], [1]),
        entry("BYTES", [1], [None]),
        entry("BYTES", [2], ["a"]),
        entry("BYTES", [1], [[["a"]]]),
        entry("BYTES", [2], [["a"], "b", []]),
        entry("FP8", [1], [1]),
        entry("fp32", [1], [1]),
        entry("", [1], [1]),
        entry("FP32", [1]),
        entry("FP32", [1], [1], binary_data_size=4),
        entry("FP32", [1], binary_data_size=-1),
        entry("FP32", [1], binary_data_size=4.0),
        entry("FP32", [1], binary_data_size=True),
        entry("FP32", [1], binary_data_size="4"),
        entry("FP32", [1], shared_memory_region="r"),
        entry("FP32", [1], [1], color="red"),
    ],
    ids=json.dumps,
)
def test_a_tensor_that_is_none_is_refused(hostile: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        read([hostile], b"")
    assert caught.value.place is not None
    assert caught.value.place.startswith("inputs[0]")
    assert len(str(caught.value)) < 400


def test_deep_lists_are_refused() -> None:
    deep: Any = [1]
    for _ in range(200):
        deep = [deep]
    for datatype in ("FP32", "BYTES"):
        with pytest.raises(BadRequest):
            read([entry(datatype, [1], deep)])


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match="twice"):
        read([entry("FP32", [1], [1]), entry("FP32", [1], [1])])


def binary(datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return entry(datatype, shape, binary_data_size=size)


@pytest.mark.parametrize(
    ("hostile", "behind"),
    [
        (binary("FP32", [1], 4), b"abc"),
        (binary("FP32", [1], 4), b"abcde"),
        (binary("FP32", [2], 4), b"abcd"),
        (binary("FP32", [1], 3), b"abc"),
        (binary("FP32", [1], 2**40), b"abcd"),
        (binary("FP32", [2**61], 4), b"abcd"),
        (binary("FP32", [], 0), b""),
        (binary("BYTES", [1], 0), b""),
        (binary("BYTES", [1], 3), b"\1\0\0"),
        (binary("BYTES", [1], 4), b"\1\0\0\0"),
        (binary("BYTES", [1], 4), b"\xff\xff\xff\xff"),
        (binary("BYTES", [1], 6), b"\1\0\0\0ab"),
        (binary("BYTES", [2], 5), b"\1\0\0\0a"),
        (binary("BYTES", [2**61], 4), b"\0\0\0\0"),
        (binary("BYTES", [0], 4), b"\0\0\0\0"),
    ],
)
def test_bytes_that_lie_are_refused(hostile: dict[str, Any], behind: bytes) -> None:
    with pytest.raises(BadRequest):
        read([hostile], behind)


@given(
    st.sampled_from(list(tensors.DATATYPES)),
    st.binary(max_size=40),
    st.lists(st.integers(-2, 2**63), max_size=3),
)
def test_any_bytes_are_read_or_refused(datatype: str, raw: bytes, shape: list[int]) -> None:
    try:
        found = tensors.from_bytes(raw, datatype, shape, "x")
    except BadRequest:
        return
    assert list(found.shape) == shape


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(
    st.sampled_from(list(tensors.DATATYPES)),
    st.lists(JSON, max_size=4),
    st.lists(st.integers(-1, 3), max_size=3),
)
def test_any_data_is_read_or_refused(datatype: str, data: list[Any], shape: list[int]) -> None:
    given_input = types.InferInput("x", shape, datatype, data=data)
    try:
        (found,) = read_inputs([given_input], memoryview(b"")).values()
    except BadRequest:
        return
    assert list(found.shape) == shape
    assert tensors.datatype_of(found) == datatype


def test_outputs_are_those_that_are_wanted() -> None:
    outputs = {"a": np.zeros(1, np.float32), "b": np.ones(2, np.int8), "c": np.array(["x"], object)}
    wanted = [types.WantedOutput("b", {"binary_data": True}), types.WantedOutput("a")]
    found, parts = write_outputs(outputs, wanted, False)
    assert [each.name for each in found] == ["b", "a"]
    assert list(map(bytes, parts)) == [b"\1\1"]
    for hostile in (
        [types.WantedOutput("d")],
        [types.WantedOutput("a"), types.WantedOutput("a")],
        [types.WantedOutput("a", {"classification": 3})],
        [types.WantedOutput("a", {"binary_data": 1})],
    ):
        with pytest.raises(BadRequest):
            write_outputs(outputs, hostile, False)


def test_more_inputs_or_outputs_than_are_looked_at_are_refused() -> None:
    most = tensors.MOST_NAMED
    inputs = [types.InferInput(str(number), [0], "FP32", data=[]) for number in range(most + 1)]
    assert len(read_inputs(inputs[:most], memoryview(b""))) == most
    with pytest.raises(BadRequest, match="inputs: there are 1,025"):
        read_inputs(inputs, memoryview(b""))
    outputs = {str(number): np.zeros(1, np.int8) for number in range(most + 1)}
    wanted = [types.WantedOutput(name) for name in outputs]
    assert len(write_outputs(outputs, wanted[:most], False)[0]) == most
    with pytest.raises(BadRequest, match="outputs: there are 1,025"):
        write_outputs(outputs, wanted, False)


def test_what_the_protocol_lacks_is_said() -> None:
    for output in ([{"a": 1.0}], np.zeros(1, np.complex64), np.zeros(1, ml_dtypes.float8_e4m3fn)):
        with pytest.raises(Unprocessable):
            tensors.datatype_of(output)
    for kind in (
        SequenceType(TensorType("f32", None)),
        MapType("i64", TensorType("f32", ())),
        TensorType("c64", ()),
    ):
        with pytest.raises(Unprocessable):
            tensors.describe(kind)
    assert tensors.describe(TensorType("bf16", ("N", None, 3))) == ("BF16", [-1, -1, 3])


def test_texts_that_are_claimed_and_not_there_take_no_room() -> None:
    def claimed(*sizes: Any) -> int:
        inputs = [types.InferInput(str(size), [10**6], "BYTES", {"binary_data_size": size}) for size in sizes]
        return texts_behind_bytes(inputs, 4000)

    assert [claimed(size) for size in (-(10**18), 10**18, True, "4000", 4001)] == [0] * 5
    assert claimed(4000) == claimed(4000, 4000) == claimed(2000, 2000) > 40_000


def test_the_bytes_to_read_are_never_less_than_none() -> None:
    request = SimpleNamespace(
        raw_input_contents=[],
        inputs=[
            SimpleNamespace(shape=[-(2**40)], datatype="FP32"),
            SimpleNamespace(shape=[10], datatype="FP32"),
        ],
    )
    assert bytes_to_read(request) == 80
