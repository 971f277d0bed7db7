"""SentencePiece's model files: as much of the protobuf message as a tokenizer needs.

ModelProto: 1 pieces (1 piece, 2 score, 3 type), 2 trainer (3 model_type, 35 byte_fallback, 40 to 43 ids), 3
normalizer (2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from educe.errors import ModelFileError, UnsupportedModelError
from educe.model.checkpoint import Vocabulary

_UNIGRAM, _BPE = 1, 2
_MODELS = {_UNIGRAM: "t5", _BPE: "llama"}
_SPECIAL_FIELDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
_SPECIAL_DEFAULTS = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
_TREAT_WHITESPACE_AS_SUFFIX = 24
_MAX_PIECES = 4_000_000
_KINDS = range(1, 7)


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, and a whole number or bytes."""

    number: int
    value: int | memoryview


def parse(content: bytes) -> Vocabulary:
    """Return the tables of a ``.model`` file.

    Raises:
        ModelFileError: it is broken.
        UnsupportedModelError: its model is neither BPE nor unigram.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    for field in fields(memoryview(content)):
        if field.number == 1:
            pieces.append(_piece(_message(field), len(pieces)))
        elif field.number == 2:
            trainer |= {inner.number: inner.value for inner in fields(_message(field))}
        elif field.number == 3:
            normalizer |= {inner.number: inner.value for inner in fields(_message(field))}
        if len(pieces) > _MAX_PIECES:
            raise _error(f"has more than {_MAX_PIECES:,} pieces")
    if not pieces:
        raise _error("has no pieces")
    tokens, scores, types = zip(*pieces, strict=True)
    return Vocabulary(
        model=_model(trainer),
        tokens=tokens,
        scores=scores,
        types=types,
        special=_special(trainer, tokens, types),
        options=_options(normalizer),
    )


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message.

    Raises:
        ModelFileError: it ends within one, or has one of a kind that protobuf does not define.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield Field(number, value)
            continue
        if kind == 2:
            size, position = _varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _error(f"has a field of the kind {kind}, which does not exist")
        if size > len(message) - position:
            raise _error(f"has {len(message) - position:,} bytes where {size:,} should follow")
        yield Field(number, message[position : position + size])
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _error("ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _error("has a number of more than 64 bits")


def _message(field: Field) -> memoryview:
    if isinstance(field.value, int):
        raise _error(f"has a number in field {field.number}, where a message is expected")
    return field.value


def _piece(message: memoryview, index: int) -> tuple[str, float, int]:
    found = {field.number: field.value for field in fields(message)}
    text, score, kind = found.get(1, b""), found.get(2, b"\0\0\0\0"), found.get(3, 1)
    if isinstance(text, int) or isinstance(score, int) or len(score) != 4 or kind not in _KINDS:
        raise _error(f"has a piece {index:,} that is none")
    value: float = struct.unpack("<f", score)[0]
    if not math.isfinite(value):
        raise _error(f"has a score for piece {index:,} that is no finite number")
    try:
        return str(text, "utf-8"), value, int(kind)
    except UnicodeDecodeError:
        raise _error(f"has a piece {index:,} that is no UTF-8 text") from None


def _model(trainer: dict[int, Any]) -> str:
    kind = trainer.get(3, _UNIGRAM)
    if kind not in _MODELS or trainer.get(_TREAT_WHITESPACE_AS_SUFFIX):
        raise UnsupportedModelError(
            "is a SentencePiece model of words, of characters, or with spaces after words",
            remedy="Educe reads BPE and unigram models with spaces before words; use a tokenizer.json",
        )
    return _MODELS[kind]


def _special(trainer: dict[int, Any], tokens: tuple[str, ...], types: tuple[int, ...]) -> dict[str, int]:
    """Return the ids of special tokens that the file has; the type of a piece decides what is unknown."""
    special: dict[str, int] = {}
    named = {name: trainer.get(number, _SPECIAL_DEFAULTS[name]) for number, name in _SPECIAL_FIELDS.items()}
    for name, found in named.items():
        if isinstance(found, int) and 0 <= found < len(tokens) and types[found] in (2, 3):
            special[name] = found
    if 2 in types:
        special["unk"] = types.index(2)
    return special


def _options(normalizer: dict[int, Any]) -> dict[str, Any]:
    if not normalizer.get(5, 1):
        raise UnsupportedModelError(
            "is a SentencePiece model that does not write spaces as ▁", remedy="use a tokenizer.json"
        )
    charsmap = normalizer.get(2, b"")
    return {
        "add_space_prefix": bool(normalizer.get(3, 1)),
        "remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        "precompiled_charsmap": b"" if isinstance(charsmap, int) else bytes(charsmap),
    }


def _error(cause: str) -> ModelFileError:
    return ModelFileError(cause, place="SentencePiece model", remedy="download the file again")
