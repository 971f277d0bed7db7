"""Safetensors files: what the tests write is read back, and every lie about sizes is refused."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from educe.errors import EduceError, LimitError, ModelFileError, UnsupportedFormatError
from educe.formats import safetensors
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Weight

PATH = Path("model.safetensors")
ARRAYS = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "I64": np.int64, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
EXTREMES = [0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**4000, 4, 10, 1.5, True]


def written(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def file_of(arrays: dict[str, np.ndarray]) -> bytes:
    """Write arrays, named by their types and a dot."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        extent = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": name.split(".")[0], "shape": list(array.shape), "data_offsets": extent}
        data += array.tobytes()
    return written(header, data)


def read(content: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, Weight]:
    return safetensors.read(np.frombuffer(content, np.uint8), PATH, limits)


def refused(content: bytes) -> EduceError:
    """Return the error that reading raises, at once and without much memory."""
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises((ModelFileError, UnsupportedFormatError)) as caught:
        read(content)
    assert time.perf_counter() - start < 20
    assert tracemalloc.get_traced_memory()[1] < 2**20 + 20 * len(content)
    tracemalloc.stop()
    assert caught.value.path == str(PATH)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("spaces", [0, 1, 2, 3])
def test_every_type_is_read_as_it_was_written(rng: np.random.Generator, spaces: int) -> None:
    arrays = {f"{t}.w": rng.integers(0, 2, (3, 5)).astype(dtype) for t, dtype in ARRAYS.items()}
    arrays |= {"F32.scalar": np.float32(7).reshape(()), "F16.none": np.empty((0, 4), np.float16)}
    content = file_of(arrays)
    length = int.from_bytes(content[:8], "little")
    weights = read(written(content[8 : 8 + length] + b" " * spaces, content[8 + length :]))
    assert weights.keys() == arrays.keys()
    for name, array in arrays.items():
        assert weights[name].shape == array.shape
        np.testing.assert_array_equal(weights[name].array(), array.astype(np.float32))


def test_weights_are_views_of_the_file() -> None:
    entries = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    content = np.frombuffer(written(entries.ljust(120), b"\0" * 8), np.uint8)
    weight = safetensors.read(content, PATH, DEFAULT_LIMITS)["w"]
    assert np.shares_memory(weight.array(), content)
    assert not weight.array().flags.writeable


def test_every_truncation_is_refused() -> None:
    content = file_of({"F32.a": np.ones((2, 3), np.float32), "F16.b": np.ones(3, np.float16)})
    for length in range(len(content)):
        refused(content[:length])
    refused(content + b"\0")


@pytest.mark.parametrize("value", EXTREMES, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("place", ["shape", "begin", "end"])
def test_every_integer_at_its_extremes(place: str, value: Any) -> None:
    sizes = {"shape": 2, "begin": 3, "end": 11} | {place: value}
    extent = [sizes["begin"], sizes["end"]]
    header = {"a": entry(0, 3), "b": {"dtype": "F32", "shape": [sizes["shape"]], "data_offsets": extent}}
    refused(written(header, b"\0" * 11))


def test_sizes_that_wrap_around_are_refused() -> None:
    for shape in ([2**62, 4], [2**32, 2**32], [2**63 - 1, 2**63 - 1, 2]):
        refused(written({"a": entry(0, 8, dtype="F32", shape=shape)}, b"\0" * 8))
    refused(written({"a": entry(0, 8, shape=[0, 2**62])}, b"\0" * 8))


@pytest.mark.parametrize("length", [0, 1, 2**31 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_header_length_at_its_extremes(length: int) -> None:
    refused(length.to_bytes(8, "little") + b"{}" + b"\0" * 8)


def entry(begin: int, end: int, **others: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]} | others


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        ({"a": entry(0, 5), "b": entry(3, 8)}, "overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "overlaps"),
        ({"a": entry(0, 3), "b": entry(5, 8)}, "gap"),
        ({"a": entry(2, 8)}, "gap"),
        ({"a": entry(0, 7)}, "of which its header names 7"),
        ({}, "of which its header names 0"),
        ({"a": entry(0, 8, dtype="F4")}, "type 'F4'"),
        ({"a": entry(0, 8, dtype="Q4_0")}, "type 'Q4_0'"),
        ({"a": entry(0, 8, dtype=["U8"])}, "type"),
        ({"a": entry(0, 8, shape=[1] * 33 + [8])}, "shape"),
        ({"a": entry(0, 8, shape="8")}, "shape"),
        ({"a": entry(0, 8, shape=[2**62] * 32)}, "takes"),
        ({"a": entry(0, 8, data_offsets=[0, 4, 8])}, "extent"),
        ({"a": entry(0, 8, data_offsets=[8, 0])}, "extent"),
        ({"a": entry(0, 8, more=1)}, "is described by"),
        ({"a": 5}, "is described by"),
        ({"a\ud800\x1b" * 1000: 5}, "is described by"),
        (b"[]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b"\xff\xfe", "broken JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "broken JSON"),
        (b'{"a": {"dtype": "U8", "dtype": "I8"}}', "'dtype' stands there twice"),
    ],
    ids=lambda case: str(case)[:40],
)  # fmt: skip
def test_lies_are_named(header: Any, cause: str) -> None:
    assert cause in str(refused(written(header, b"\0" * 8)))


def test_duplicate_weights_are_named() -> None:
    one = b'"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}'
    assert "'a' stands there twice" in str(refused(written(b"{" + one + b"," + one + b"}", b"\0" * 8)))


def test_a_large_header_is_refused_before_it_is_read() -> None:
    with pytest.raises(LimitError, match="header_bytes"):
        read(written(b"{" + b" " * 100 + b"}", b""), Limits(header_bytes=50))


def test_twenty_thousand_weights_do_not_take_long() -> None:
    content = written({f"w{n}": entry(n, n + 1) for n in range(20_000)}, bytes(20_000))
    start = time.perf_counter()
    assert len(read(content)) == 20_000
    assert time.perf_counter() - start < 20


def test_altered_bytes_are_read_or_refused(rng: np.random.Generator) -> None:
    arrays = {"F32.a": np.ones((2, 3), np.float32), "F16.b": np.ones(3, np.float16)}
    content = np.frombuffer(file_of(arrays), np.uint8)
    for _ in range(2000):
        altered = content.copy()
        places = rng.integers(0, len(content), rng.integers(1, 4))
        altered[places] = rng.integers(0, 256, len(places))
        try:
            for weight in read(altered.tobytes()).values():
                weight.array()
        except EduceError:
            pass
