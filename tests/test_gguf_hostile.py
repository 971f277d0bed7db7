"""GGUF files that are broken or lie: a typed error each, at once and in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from educe.errors import EduceError, LimitError, ModelFileError, UnsupportedFormatError
from educe.formats import gguf, gguf_file
from educe.limits import DEFAULT_LIMITS, Limits
from tests.gguf_models import TOKENS, TYPES, write

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
EXTREMES = (0, 1, 2, 7, 31, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 33, 2**64 - 1)
MOST_SECONDS, MOST_BYTES = 20.0, 8 * 2**20


class Raw:
    """A file written field by field, which remembers where its integers are."""

    def __init__(self, version: int = 3) -> None:
        self.content = bytearray(b"GGUF")
        self.integers: list[tuple[int, int]] = []
        self.integer(version, 4)

    def integer(self, value: int, size: int = 8) -> Raw:
        self.integers.append((len(self.content), size))
        self.content += value.to_bytes(size, "little")
        return self

    def text(self, text: str | bytes) -> Raw:
        content = text.encode() if isinstance(text, str) else text
        self.integer(len(content))
        self.content += content
        return self

    def pair(self, key: str, kind: int, *rest: object) -> Raw:
        return self.text(key).value(kind, *rest)

    def value(self, kind: int, *rest: object) -> Raw:
        """Write a value's type, then bytes as they are, texts with their length, numbers as 8 bytes."""
        self.integer(kind, 4)
        for part in rest:
            if isinstance(part, bytes):
                self.content += part
            elif isinstance(part, str):
                self.text(part)
            elif isinstance(part, int):
                self.integer(part)
        return self

    def array(self, key: str, kind: int, count: int, content: bytes = b"") -> Raw:
        self.pair(key, ARRAY).integer(kind, 4).integer(count)
        self.content += content
        return self

    def texts(self, key: str, texts: list[str]) -> Raw:
        self.array(key, STRING, len(texts))
        for text in texts:
            self.text(text)
        return self

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Raw:
        self.text(name).integer(len(shape), 4)
        for size in shape:
            self.integer(size)
        return self.integer(kind, 4).integer(offset)

    def data(self, size: int, alignment: int = 32) -> bytes:
        return bytes(self.content) + bytes(-len(self.content) % alignment) + bytes(size)


def raw(pairs: int = 0, tensors: int = 0, version: int = 3) -> Raw:
    return Raw(version).integer(tensors).integer(pairs)


def whole() -> Raw:
    """A sound file with every kind of value."""
    file = raw(pairs=23, tensors=3)
    file.pair("general.architecture", STRING, "llama").pair("general.alignment", U32, b"\x40\0\0\0")
    for name, number in (
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
    ):
        file.pair(f"llama.{name}", U64, number)
    file.pair("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5))
    file.pair("a.u8", U8, b"\xff").pair("a.i8", I8, b"\xff").pair("a.u16", U16, b"\1\2").pair(
        "a.i16", I16, b"\1\2"
    )
    file.pair("a.i32", I32, b"\xff" * 4).pair("a.i64", I64, b"\xff" * 8).pair(
        "a.f64", F64, struct.pack("<d", 0.1)
    )
    file.pair("a.bool", BOOL, b"\1")
    file.pair("a.nested", ARRAY).integer(ARRAY, 4).integer(2)
    file.integer(U8, 4).integer(2).content += b"\1\2"
    file.integer(STRING, 4).integer(1).text("x")
    file.pair("tokenizer.ggml.model", STRING, "llama").texts("tokenizer.ggml.tokens", TOKENS)
    file.array("tokenizer.ggml.scores", F32, len(TOKENS), bytes(4 * len(TOKENS)))
    file.array("tokenizer.ggml.token_type", I32, len(TOKENS), np.array(TYPES, "<i4").tobytes())
    file.pair("tokenizer.ggml.bos_token_id", U32, b"\1\0\0\0").pair(
        "tokenizer.chat_template", STRING, "{{x}}"
    )
    file.tensor("token_embd.weight", (32, 8), 0, 0)
    file.tensor("blk.0.attn_q.weight", (32, 32), 2, 1024)
    file.tensor("blk.0.attn_norm.weight", (32,), 30, 1600 + 64)
    return file


WHOLE = whole()
CONTENT = WHOLE.data(1600 + 64 + 64, alignment=64)
HEADER = len(WHOLE.content)


def load(path: Path, content: bytes, limits: Limits = DEFAULT_LIMITS) -> None:
    """Load a file and decode its weights."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    for weight in gguf.load(path, limits).weights.values():
        assert weight.array().shape == weight.shape


def load_or_error(path: Path, content: bytes) -> EduceError | None:
    """Load a file, and return the typed error if it is refused, as it must be in little time and memory."""
    start = time.perf_counter()
    error = None
    try:
        load(path, content)
    except EduceError as caught:
        error = caught
        assert isinstance(error, (ModelFileError, UnsupportedFormatError, LimitError)), error
        assert error.path == str(path)
        assert error.remedy, error
        assert len(str(error)) < 600
    assert time.perf_counter() - start < MOST_SECONDS
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_a_sound_file_of_every_kind_of_value(path: Path) -> None:
    assert load_or_error(path, CONTENT) is None
    found = gguf_file.read(path, DEFAULT_LIMITS)
    metadata = found.metadata
    assert [metadata[f"a.{kind}"] for kind in ("u8", "i8", "u16", "i16", "i32", "i64", "f64", "bool")] == [
        255,
        -1,
        513,
        513,
        -1,
        -1,
        0.1,
        True,
    ]
    numbers, texts = metadata["a.nested"]
    assert (numbers.tolist(), texts) == ([1, 2], ["x"])
    assert [(weight.shape, weight.encoding) for weight in found.tensors.values()] == [
        ((8, 32), "F32"),
        ((32, 32), "Q4_0"),
        ((32,), "BF16"),
    ]


def test_version_two_is_read_and_others_are_not(path: Path) -> None:
    content = bytearray(CONTENT)
    content[4] = 2
    load(path, bytes(content))
    for version, match in ((1, "version 1, where Educe reads 2 and 3"), (4, "version 4"), (0, "version 0")):
        content[4] = version
        with pytest.raises(UnsupportedFormatError, match=match):
            load(path, bytes(content))


def test_big_endian_files_are_refused_by_name(path: Path) -> None:
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedFormatError, match="big-endian"):
        gguf.load(path)


def test_truncation_at_every_byte(path: Path) -> None:
    for size in range(len(CONTENT)):
        assert load_or_error(path, CONTENT[:size]) is not None, size


def test_every_integer_at_its_extremes(path: Path) -> None:
    assert len(WHOLE.integers) > 80
    for offset, size in WHOLE.integers:
        for extreme in EXTREMES:
            content = bytearray(CONTENT)
            content[offset : offset + size] = (extreme % 256**size).to_bytes(size, "little")
            load_or_error(path, bytes(content))


@settings(max_examples=300, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_bytes(path: Path, data: st.DataObject) -> None:
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 6))):
        offset = data.draw(st.integers(0, HEADER - 1))
        some = data.draw(st.binary(min_size=1, max_size=8))
        content[offset : offset + len(some)] = some
    load_or_error(path, bytes(content))


@settings(max_examples=100, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_random_files_that_begin_well(path: Path, rest: bytes) -> None:
    load_or_error(path, b"GGUF\3\0\0\0" + rest)


HUGE = 2**64 - 1

LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "four bytes": (lambda: b"GGUF", "byte 4: 4 bytes should follow, and 0 do"),
    "no bytes": (lambda: b"", "byte 0: 4 bytes should follow, and 0 do"),
    "49 bytes": (
        lambda: raw(pairs=1).pair("a", ARRAY).integer(U8, 4).integer(HUGE).data(0)[:49],
        r"'a', byte \d+: has 18,446,744,073,709,551,615 numbers, but the rest of the file holds at most",
    ),
    "pairs": (lambda: raw(pairs=HUGE).data(64), "18,446,744,073,709,551,615 metadata pairs"),
    "tensors": (lambda: raw(tensors=HUGE).data(64), "18,446,744,073,709,551,615 tensors"),
    "texts": (lambda: raw(pairs=1).array("a", STRING, HUGE).data(64), "array elements"),
    "arrays": (lambda: raw(pairs=1).array("a", ARRAY, 2**61).data(64), "array elements"),
    "numbers that wrap": (lambda: raw(pairs=1).array("a", F64, 2**61 + 1).data(64), "numbers, but"),
    "length of a key": (lambda: raw(pairs=1).integer(HUGE).data(64), "name of 18,446,744,073,709,551,615"),
    "length of a text": (lambda: raw(pairs=1).pair("a", STRING, HUGE).data(64), "bytes should follow"),
    "length in an array": (
        lambda: raw(pairs=1).array("a", STRING, 1, b"\xff" * 8).data(64),
        "18,446,744,073,709,551,6",
    ),
    "deep arrays": (
        lambda: raw(pairs=1).array("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 50).data(64),
        "more than 4 deep",
    ),
    "many inner arrays": (
        lambda: raw(pairs=1).array("a", ARRAY, 10**5, struct.pack("<IQ", U8, 0) * 10**5).data(0),
        "too many texts and arrays: more than 1,048,576",
    ),
    "a type of values": (lambda: raw(pairs=1).pair("a", 13).data(64), "value type 13"),
    "a type of elements": (lambda: raw(pairs=1).array("a", 99, 1).data(64), "value type 99"),
    "a truth value": (lambda: raw(pairs=1).pair("a", BOOL, b"\2").data(64), "truth value of 2"),
    "a key twice": (
        lambda: raw(pairs=2).pair("a", U8, b"\0").pair("a", U8, b"\0").data(64),
        "key 'a', which another has",
    ),
    "an empty key": (lambda: raw(pairs=1).pair("", U8, b"\0").data(64), "ASCII"),
    "a key beyond ASCII": (lambda: raw(pairs=1).pair("ä", U8, b"\0").data(64), "ASCII"),
    "a text beyond UTF-8": (
        lambda: raw(pairs=1).pair("a", STRING, 2, b"\xff\xfe").data(64),
        "UTF-8",
    ),
    "an element beyond UTF-8": (
        lambda: raw(pairs=1).array("a", STRING, 1, struct.pack("<Q", 1) + b"\xff").data(64),
        "element 0 that is no UTF-8",
    ),
    "no dimensions": (lambda: raw(tensors=1).tensor("t", (), 0, 0).data(64), "has 0 dimensions"),
    "many dimensions": (lambda: raw(tensors=1).tensor("t", (1,) * 5, 0, 0).data(64), "has 5 dimensions"),
    "a dimension of 0": (
        lambda: raw(tensors=1).tensor("t", (4, 0), 0, 0).data(64),
        "a dimension of 0",
    ),
    "dimensions that wrap": (
        lambda: raw(tensors=1).tensor("t", (2**32, 2**32), 0, 0).data(64),
        "'t': takes 73,786,976,294,838,206,464 bytes",
    ),
    "half a block": (lambda: raw(tensors=1).tensor("t", (33, 32), 2, 0).data(999), "rows of 33 elements"),
    "an offset that is not aligned": (
        lambda: raw(tensors=1).tensor("t", (1,), 0, 8).data(64),
        "offset 8, which is no multiple of 32",
    ),
    "an offset past the end": (
        lambda: raw(tensors=1).tensor("t", (1,), 0, 2**40).data(64),
        "but the file ends at",
    ),
    "an offset that wraps": (
        lambda: raw(tensors=1).tensor("t", (8,), 0, 2**64 - 32).data(64),
        "but the file ends at",
    ),
    "tensors that overlap": (
        lambda: raw(tensors=2).tensor("t", (64,), 0, 0).tensor("u", (64,), 0, 224).data(999),
        "'u': begins at the offset 224, inside tensor 't', which ends at 256",
    ),
    "tensors in one place": (
        lambda: raw(tensors=2).tensor("t", (1,), 0, 0).tensor("u", (1,), 0, 0).data(64),
        "inside tensor",
    ),
    "a name twice": (
        lambda: raw(tensors=2).tensor("t", (1,), 0, 0).tensor("t", (1,), 0, 32).data(64),
        "name 't', which is empty or another's",
    ),
    "an empty name": (lambda: raw(tensors=1).tensor("", (1,), 0, 0).data(64), "name '', which is empty"),
    "a long name": (lambda: raw(tensors=1).tensor("t" * 65, (1,), 0, 0).data(64), "name of 65 bytes"),
    "a type of tensors": (lambda: raw(tensors=1).tensor("t", (1,), 99, 0).data(64), "the type 99"),
    "a type that was removed": (lambda: raw(tensors=1).tensor("t", (32,), 4, 0).data(64), "the type 4"),
    "alignment of text": (
        lambda: raw(pairs=1).pair("general.alignment", STRING, "32").data(64),
        "general.alignment': is '32', where a power of two",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(name: str, path: Path) -> None:
    build, match = LIES[name]
    path.write_bytes(build())
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match=match) as caught:
        gguf.load(path)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.1
    assert peak < MOST_BYTES
    assert caught.value.path == str(path)
    assert caught.value.place
    assert caught.value.remedy


@pytest.mark.parametrize("alignment", [0, 1, 3, 33, 2**32 - 1])
def test_alignments_that_are_no_powers_of_two(alignment: int, path: Path) -> None:
    file = raw(pairs=1).pair("general.alignment", U32, struct.pack("<I", alignment))
    with pytest.raises(ModelFileError, match=rf"alignment': is {alignment}, where a power of two from 8 on"):
        load(path, file.data(64))


def test_a_count_that_the_file_could_hold_is_refused_before_it_is_read(path: Path) -> None:
    with path.open("wb") as file:
        file.write(raw(tensors=10**6).content)
        file.truncate(2**30)
    with pytest.raises(ModelFileError, match="1,000,000 tensors, where at most 32,768 are read"):
        gguf.load(path)
    with path.open("wb") as file:
        file.write(raw(pairs=1).array("a", STRING, 10**7).content)
        file.truncate(2**30)
    with pytest.raises(ModelFileError, match="too many texts and arrays: more than 1,048,576"):
        gguf.load(path)


def test_metadata_and_files_beyond_the_limits_are_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.write(raw(pairs=1).array("a", U8, 2**30 - 64).content)
        file.truncate(2**30)
    with pytest.raises(LimitError, match="the limit tokenizer_bytes"):
        gguf.load(path)
    with path.open("wb") as file:
        file.write(raw(pairs=1).array("a", STRING, 1, struct.pack("<Q", 2**29)).content)
        file.truncate(2**30)
    with pytest.raises(LimitError, match="the limit tokenizer_bytes"):
        gguf.load(path)
    with pytest.raises(LimitError, match="the limit external_bytes"):
        gguf.load(path, Limits(external_bytes=1000))


def test_an_encoding_that_is_not_read_is_named(path: Path) -> None:
    with pytest.raises(
        UnsupportedFormatError, match=r"'t'.*written as IQ2_XXS.*quantise the model to one of"
    ):
        load(path, raw(tensors=1).tensor("t", (256,), 16, 0).data(99))


def test_no_architecture_is_an_error(path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"'general\.architecture': is missing, where a text"):
        load(path, raw().data(0))


def test_many_layers_of_experts_are_refused(path: Path) -> None:
    header = {
        "context_length": 8,
        "embedding_length": 8,
        "block_count": 40,
        "feed_forward_length": 8,
        "attention.head_count": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_count": 4096,
        "expert_used_count": 2,
    }
    stacks = {f"blk.{i}.ffn_up_exps.weight": np.zeros((4096, 1, 1), np.int8) for i in range(40)}
    with pytest.raises(ModelFileError, match="one weight of too many"):
        gguf.load(write(path, "llama", header, stacks))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(ModelFileError):
            gguf.load(wrong)
