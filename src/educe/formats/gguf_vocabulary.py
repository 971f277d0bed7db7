"""The tokenizer that GGUF's metadata holds: its tables, checked against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedFormatError
from educe.formats.folder import shown
from educe.formats.gguf_keys import text, wrong_value
from educe.model.checkpoint import TokenizerFiles, Vocabulary

_PREFIX = "tokenizer.ggml."
_MODELS = ("llama", "gpt2", "bert", "t5")
_NONE = ("none", "no_vocab")
_TABLES = ("model", "tokens", "scores", "token_type", "merges")
_SPECIAL = re.compile(r"([a-z_]+)_token_id")
_SPECIAL_NAMES = {"unknown": "unk", "seperator": "sep", "separator": "sep", "padding": "pad"}
_CONTROL, _BYTE = 3, 6
_KINDS = range(1, 7)
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WORD_START = "\u2581"


def tokenizer(metadata: Mapping[str, Any]) -> TokenizerFiles | None:
    """Return the raw material of the tokenizer, or None if the file has none.

    Raises:
        ModelFileError: the tables do not fit each other.
        UnsupportedFormatError: the tokenizer is of a kind that Educe does not read.
    """
    key = "tokenizer.huggingface.json"
    files = {"tokenizer.json": text(metadata, key).encode()} if key in metadata else {}
    vocabulary = _vocabulary(metadata)
    if vocabulary is None and not files:
        return None
    key = "tokenizer.chat_template"
    template = text(metadata, key) if key in metadata else None
    return TokenizerFiles(files=files, source=vocabulary, chat_template=template)


def _vocabulary(metadata: Mapping[str, Any]) -> Vocabulary | None:
    if metadata.get(_PREFIX + "model", "none") in _NONE:
        return None
    model = text(metadata, _PREFIX + "model")
    if model not in _MODELS:
        raise UnsupportedFormatError(
            f"has a tokenizer of the kind {shown(model)}",
            place=f"metadata {_PREFIX + 'model'!r}",
            remedy=f"Educe reads {', '.join(_MODELS)}",
        )
    tokens = _tokens(metadata)
    types = _types(metadata, tokens)
    return Vocabulary(
        model=model,
        tokens=_word_pieces(tokens, types) if model == "bert" else tuple(tokens),
        scores=_scores(metadata, tokens, required=model in ("llama", "t5")),
        types=types,
        merges=_merges(metadata, tokens) if model == "gpt2" else (),
        special=_special(metadata, len(tokens)),
        options=_options(metadata),
    )


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    key = _PREFIX + "tokens"
    tokens = _texts(metadata, key)
    if not tokens:
        raise wrong_value(key, None, "an array of texts")
    if len(set(tokens)) < len(tokens):
        seen: dict[str, int] = {}
        for index, token in enumerate(tokens):
            if seen.setdefault(token, index) != index:
                raise _error(key, f"has {shown(token)} as token {seen[token]:,} and as token {index:,}")
    return tokens


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(type(item) is str for item in value):
        raise wrong_value(key, value, "an array of texts")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, kinds: str, count: int) -> np.ndarray:
    value = metadata[key]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise wrong_value(key, value, "an array of numbers")
    if len(value) != count:
        raise _error(key, f"has {len(value):,} elements for {count:,} tokens")
    return value


def _scores(metadata: Mapping[str, Any], tokens: Sequence[str], *, required: bool) -> tuple[float, ...]:
    key = _PREFIX + "scores"
    if key not in metadata:
        if required:
            raise wrong_value(key, None, "an array of numbers")
        return ()
    scores = _numbers(metadata, key, "f", len(tokens))
    if not np.isfinite(scores).all():
        raise _error(key, "has a score that is no finite number")
    return tuple(scores.tolist())


def _types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tuple[int, ...]:
    key = _PREFIX + "token_type"
    if key not in metadata:
        return ()
    types = _numbers(metadata, key, "iu", len(tokens)).tolist()
    for index, kind in enumerate(types):
        if kind not in _KINDS:
            raise _error(key, f"has the kind {kind:,} for token {index:,}, where 1 to 6 are defined")
        if kind == _BYTE and not _BYTE_TOKEN.fullmatch(tokens[index]):
            raise _error(
                key, f"calls token {index:,} a byte, which is no <0x00> to <0xFF>: {shown(tokens[index])}"
            )
    return tuple(types)


def _merges(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tuple[str, ...]:
    key = _PREFIX + "merges"
    merges = _texts(metadata, key)
    known = set(tokens)
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise _error(key, f"has merge {rank:,}, which joins no two tokens to a third: {shown(merge)}")
    return tuple(merges)


def _special(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    special: dict[str, int] = {}
    for key, value in metadata.items():
        found = _SPECIAL.fullmatch(key.removeprefix(_PREFIX)) if key.startswith(_PREFIX) else None
        if found:
            if type(value) is not int or not 0 <= value < count:
                raise wrong_value(key, value, f"the id of one of {count:,} tokens")
            special[_SPECIAL_NAMES.get(found[1], found[1])] = value
    return special


def _options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rest of the tokenizer's keys; arrays of bytes as bytes."""
    options: dict[str, Any] = {}
    for key, value in metadata.items():
        name = key.removeprefix(_PREFIX)
        if key.startswith(_PREFIX) and name not in _TABLES and not _SPECIAL.fullmatch(name):
            options[name] = value.tobytes() if isinstance(value, np.ndarray) else value
    return options


def _word_pieces(tokens: Sequence[str], types: Sequence[int]) -> tuple[str, ...]:
    """Return WordPiece's own spelling: GGUF marks the beginnings of words instead of what continues them."""
    if not any(token.startswith(_WORD_START) for token in tokens):
        return tuple(tokens)
    return tuple(_word_piece(token) for token in tokens)


def _word_piece(token: str) -> str:
    if token.startswith(_WORD_START):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else f"##{token}"


def _error(key: str, cause: str) -> ModelFileError:
    return ModelFileError(cause, place=f"metadata {key!r}", remedy="download or convert the file again")
