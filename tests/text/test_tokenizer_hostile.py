"""Hostile tokenizers: typed errors, no crash, no hang."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import time
from typing import Any

import pytest

from educe.errors import EduceError, ModelFileError, UnsupportedModelError
from educe.model.checkpoint import TokenizerFiles, Vocabulary
from educe.text import sentencepiece
from educe.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import byte_json, from_json

# Each takes time exponential or cubic in its text.
BOMBS = [
    (r"(a+)+[bc]", "a" * 40 + "d" + "b"),
    (r"(a|a)*[bc]", "a" * 40 + "d" + "b"),
    (r"(\s*)*[bc]", " " * 60 + "d" + "b"),
    (r"\s*\s*\s*\s*[bc]", " " * 2000 + "d" + "b"),
    (r"((a{1,40}){1,40}){1,40}[bc]", "a" * 60 + "d" + "b"),
]


def files(**content: bytes) -> TokenizerFiles:
    return TokenizerFiles(files={name.replace("__", "."): value for name, value in content.items()})


@pytest.mark.parametrize(("pattern", "text"), BOMBS)
@pytest.mark.parametrize("place", ["pre_tokenizer", "normalizer"])
def test_an_expression_that_explodes_ends_in_an_error(pattern: str, text: str, place: str) -> None:
    step: dict[str, Any] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    if place == "pre_tokenizer":
        step = {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
    tokenizer = from_json(byte_json([], [], **{place: step}))
    start = time.process_time()
    with pytest.raises(ModelFileError, match="the tokenizer fails"):
        tokenizer.encode(text)
    assert time.process_time() - start < 20
    assert tokenizer.encode("") == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"model": {}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 1e9}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}',
        b"[" * 100_000,
        b'{"normalizer": ' + b"[" * 100_000,
        b'{"normalizer": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001,
        json.dumps({"pre_tokenizer": [{"Regex": "a" * 20_000}]}).encode(),
        json.dumps({"pre_tokenizer": [{"Regex": str(number)} for number in range(200)]}).encode(),
    ],
)
def test_a_broken_json_is_an_error(content: bytes) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError)):
        from_json(content)


def test_a_json_cut_off_or_altered_anywhere_is_an_error_or_a_tokenizer() -> None:
    content = byte_json(["ab"], [])
    draw = random.Random(3)
    for _ in range(150):
        altered = bytearray(content[: draw.randint(0, len(content))])
        for _ in range(draw.randint(0, 3)):
            altered[draw.randrange(len(altered) or 1) :][:1] = bytes([draw.randrange(256)])
        with contextlib.suppress(EduceError):
            from_json(bytes(altered)).encode("ab é")


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (Vocabulary("llama", ("a", "a"), (0.0, 0.0)), "token 0 and as token 1"),
        (Vocabulary("llama", ("a", "b"), (0.0,)), "1 scores for 2 tokens"),
        (Vocabulary("llama", ("a",), (float("nan"),)), "no finite number"),
        (Vocabulary("llama", ("a",), (0.0,), (1, 1)), "2 types for 1 tokens"),
        (Vocabulary("llama", ()), "has no tokens"),
        (Vocabulary("llama", ("a",), special={"bos": 1}), "the id 1 for bos"),
        (Vocabulary("llama", ("a",), special={"bos": -1}), "the id -1 for bos"),
        (Vocabulary("gpt2", ("a", "b"), merges=("a b",)), "makes no tokenizer"),
        (Vocabulary("gpt2", ("a", "b"), merges=("ab",)), "merge 0, which is no pair"),
        (Vocabulary("gpt2", ("a", "b"), merges=("a b c",)), "merge 0, which is no pair"),
        (Vocabulary("t5", ("a",), (0.0,), special={"unk": 5}), "the id 5 for unk"),
    ],
)
def test_tables_that_do_not_fit_are_an_error(vocabulary: Vocabulary, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        Tokenizer.from_vocabulary(vocabulary)


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary("rwkv", ("a",)), Vocabulary("gpt2", ("a",), options={"pre": "no-such-cut"})],
)
def test_an_unknown_way_to_cut_is_said_so(vocabulary: Vocabulary) -> None:
    with pytest.raises(UnsupportedModelError, match="cuts text"):
        Tokenizer.from_vocabulary(vocabulary)


def test_a_byte_that_is_none_is_text() -> None:
    tokens = ("<unk>", "<0x-1>", "<0x100>", "<0xGG>", "<0x41>", "a")
    tokenizer = Tokenizer.from_vocabulary(
        Vocabulary("llama", tokens, (0.0,) * 6, (2, 6, 6, 6, 6, 1), special={"unk": 0})
    )
    assert [*map(tokenizer.token_bytes, range(1, 5))] == [b"<0x-1>", b"<0x100>", b"<0xGG>", b"A"]
    assert tokenizer.encode("A") != []


def test_merges_that_come_back_to_themselves_end() -> None:
    tokens = ("a", "b", "ab", "ba", "aba", "bab", "abab")
    merges = ("a b", "b a", "ab a", "a ba", "b ab", "ba b", "ab ab", "a b", "aba b")
    tokenizer = Tokenizer.from_vocabulary(Vocabulary("gpt2", tokens, merges=merges))
    assert tokenizer.decode(tokenizer.encode("ab" * 1000)) == "ab" * 1000


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"tekken.json": b"{}"},
        {"vocab.json": b"{}"},
        {"vocab.json": b"[]", "merges.txt": b""},
        {"vocab.json": b'{"a": 5}', "merges.txt": b""},
        {"vocab.json": b'{"a": "x"}', "merges.txt": b""},
        {"vocab.json": b'{"a": 0}', "merges.txt": b"\xff"},
        {"vocab.txt": b""},
        {"vocab.txt": b"\xff"},
        {"vocab.txt": b"a\na\n"},
        {"tokenizer.model": b"IQ== 0\nIg== 1\n"},
        {"sentencepiece.bpe.model": b"", "vocab.json": b"{}"},
    ],
)
def test_a_folder_without_a_sound_tokenizer_is_an_error(content: dict[str, bytes]) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError)):
        Tokenizer.from_files(TokenizerFiles(files=content))


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def message(*parts: tuple[int, bytes | int]) -> bytes:
    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in parts
    )


def piece(text: bytes, score: float, kind: int = 1) -> bytes:
    return message((1, text)) + b"\x15" + struct.pack("<f", score) + message((3, kind))


def sound_model() -> bytes:
    return message(
        (1, piece(b"<unk>", 0, 2)), (1, piece(b"<s>", 0, 3)), (1, piece(b"</s>", 0, 3)),
        (1, piece("▁".encode(), -1)), (1, piece(b"a", -2)), (1, piece("▁a".encode(), -0.5)),
        (2, message((3, 2))), (3, message((3, 1), (4, 1))),
    )  # fmt: skip


def test_a_sentencepiece_model_is_read() -> None:
    vocabulary = sentencepiece.parse(sound_model())
    assert vocabulary.tokens == ("<unk>", "<s>", "</s>", "▁", "a", "▁a")
    assert vocabulary.special == {"unk": 0, "bos": 1, "eos": 2}
    assert Tokenizer.from_files(files(tokenizer__model=sound_model())).encode("a  aa") == [5, 5, 4]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x80" * 20,
        b"\x0b",
        message((1, 5)),
        message((1, piece(b"\xff", 0))),
        message((1, piece(b"a", float("inf")))),
        message((1, piece(b"a", 0, 9))),
        message((1, message((1, 3)))),
        sound_model() + message((1, piece(b"a", 0))),
    ],
)
def test_a_broken_sentencepiece_model_is_an_error(content: bytes) -> None:
    with pytest.raises(ModelFileError):
        Tokenizer.from_files(files(tokenizer__model=content))


@pytest.mark.parametrize("trainer", [message((3, 3)), message((3, 4)), message((3, 2), (24, 1))])
def test_a_sentencepiece_model_of_another_kind_is_said_so(trainer: bytes) -> None:
    with pytest.raises(UnsupportedModelError):
        sentencepiece.parse(message((1, piece(b"a", 0)), (2, trainer)))


def test_a_charsmap_of_noise_is_an_error_or_a_tokenizer() -> None:
    draw = random.Random(5)
    for size in (1, 3, 4, 5, 8, 100, 1000):
        for head in (0, size - 4, 2**31, 2**32 - 1):
            charsmap = struct.pack("<I", max(head, 0)) + draw.randbytes(size)
            content = sound_model() + message((3, message((2, charsmap))))
            with contextlib.suppress(EduceError):
                Tokenizer.from_files(files(tokenizer__model=content)).encode("aé日 \u00a0")


def test_a_sentencepiece_model_cut_off_or_altered_anywhere_is_an_error_or_a_tokenizer() -> None:
    content, draw = sound_model(), random.Random(4)
    cuts = [content[:size] for size in range(len(content))]
    flips = [
        content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :] for place in range(len(content))
    ]
    for altered in cuts + flips:
        with contextlib.suppress(EduceError):
            Tokenizer.from_files(files(tokenizer__model=altered)).encode("a aa")
