"""The files of llama2.c: a header of seven numbers and f32 weights, and a tokenizer beside them.

This is the layout that its export script calls version 0: i32 dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size (negative where the output has weights of its own), seq_len; then the weights, layers stacked; then
two tables of the rotary embedding, which are not needed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError
from educe.formats import meta_llama
from educe.formats.cursor import Cursor
from educe.formats.folder import Folder
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Vocabulary, Weight

HEADER_BYTES = 28
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
_MAX_LAYERS = 10_000
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPECIAL = {"unk": 0, "bos": 1, "eos": 2}


def sniff(head: bytes, size_bytes: int) -> bool:
    """Say whether a file that begins with `head` has the very size that its header announces."""
    params = _params(head[:HEADER_BYTES])
    return bool(params) and _expected_bytes(params) == size_bytes


def load(path: Path, limits: Limits) -> Checkpoint:
    """Read a model file, and the ``tokenizer.bin`` or ``tok512.bin`` (its number of tokens) beside it.

    Raises:
        ModelFileError: a file is broken.
        LimitError: a file is larger than `limits` allow.
    """
    folder = Folder(path.parent, limits)
    content = folder.map(path.name)
    params = _params(content[:HEADER_BYTES].tobytes())
    if not params or _expected_bytes(params) != content.size:
        raise ModelFileError(
            f"has {content.size:,} bytes, which its header does not announce: {params or 'it has none'}",
            path=path,
            remedy="download it again, or export it with --version 0",
        )
    config, weights = meta_llama.converted(params, _weights(content, params), path)
    tokenizer = _tokenizer(folder, config["vocab_size"])
    return Checkpoint(
        model_type="llama",
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        generation={"bos_token_id": _SPECIAL["bos"], "eos_token_id": [_SPECIAL["bos"], _SPECIAL["eos"]]},
        path=path,
        content=folder.ordered_content(),
        stamps=folder.ordered_stamps(),
        notes=() if tokenizer else ("there is no tokenizer.bin beside the model; copy it there to use text",),
    )


def _params(head: bytes) -> dict[str, Any]:
    """Return the header's numbers by Meta's names; nothing if they are no sizes."""
    if len(head) < HEADER_BYTES:
        return {}
    numbers = np.frombuffer(head, "<i4").tolist()
    params = dict(zip(_FIELDS, numbers, strict=True))
    params["is_tied"] = params["vocab_size"] > 0
    params["vocab_size"] = abs(params["vocab_size"])
    heads, kv_heads, dim = params["n_heads"], params["n_kv_heads"], params["dim"]
    if min(params[name] for name in _FIELDS) <= 0 or params["n_layers"] > _MAX_LAYERS:
        return {}
    return params if dim % (2 * heads) == 0 and heads % kv_heads == 0 else {}


def _shapes(params: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes in the order of the file; a name with a * is that of all layers, stacked."""
    dim, hidden, layers = params["dim"], params["hidden_dim"], params["n_layers"]
    kv_dim = dim // params["n_heads"] * params["n_kv_heads"]
    rotary = (params["max_seq_len"], dim // params["n_heads"] // 2)
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("tok_embeddings.weight", (params["vocab_size"], dim)),
        ("layers.*.attention_norm.weight", (layers, dim)),
        ("layers.*.attention.wq.weight", (layers, dim, dim)),
        ("layers.*.attention.wk.weight", (layers, kv_dim, dim)),
        ("layers.*.attention.wv.weight", (layers, kv_dim, dim)),
        ("layers.*.attention.wo.weight", (layers, dim, dim)),
        ("layers.*.ffn_norm.weight", (layers, dim)),
        ("layers.*.feed_forward.w1.weight", (layers, hidden, dim)),
        ("layers.*.feed_forward.w2.weight", (layers, dim, hidden)),
        ("layers.*.feed_forward.w3.weight", (layers, hidden, dim)),
        ("norm.weight", (dim,)),
        ("", rotary),
        ("", rotary),
    ]
    return shapes if params["is_tied"] else [*shapes, ("output.weight", (params["vocab_size"], dim))]


def _expected_bytes(params: dict[str, Any]) -> int:
    return HEADER_BYTES + 4 * sum(math.prod(shape) for _, shape in _shapes(params))


def _weights(content: np.ndarray, params: dict[str, Any]) -> dict[str, Weight]:
    weights: dict[str, Weight] = {}
    position = HEADER_BYTES
    for name, shape in _shapes(params):
        length = 4 * math.prod(shape)
        stacked = Weight(name, shape, "F32", content[position : position + length])
        position += length
        if "*" not in name:
            weights[name] = stacked
            continue
        for layer in range(params["n_layers"]):
            part = stacked.cut(layer, layer + 1)
            own = name.replace("*", str(layer))
            weights[own] = Weight(own, shape[1:], "F32", part.data)
    weights.pop("")
    return weights


def _tokenizer(folder: Folder, vocab_size: int) -> TokenizerFiles | None:
    for name in ("tokenizer.bin", f"tok{vocab_size}.bin"):
        if folder.has(name):
            content = folder.read(name, "tokenizer_bytes")
            return TokenizerFiles(source=read_vocabulary(content, vocab_size, folder.path / name))
    return None


def read_vocabulary(content: bytes, vocab_size: int, path: Path) -> Vocabulary:
    """Return a tokenizer's tables in SentencePiece's own spelling: ``▁`` for a space.

    The layout: i32 the longest length, then of each token f32 score, i32 length, UTF-8.

    Raises:
        ModelFileError: the file has not just `vocab_size` tokens.
    """
    cursor = Cursor(memoryview(content), path)
    longest = cursor.integer("<i")
    tokens, scores = [], []
    for _ in range(vocab_size):
        scores.append(cursor.real())
        length = cursor.integer("<i")
        if not 0 <= length <= longest:
            raise cursor.error(f"a token has the length {length:,}, where the longest has {longest:,}")
        tokens.append(cursor.text(length))
    if cursor.remaining:
        raise cursor.error(f"{cursor.remaining:,} bytes follow the last of {vocab_size:,} tokens")
    if not all(map(math.isfinite, scores)):
        raise cursor.error("a score is not finite")
    return Vocabulary(
        model="llama",
        tokens=tuple(map(_sentencepiece, tokens)),
        scores=tuple(scores),
        types=tuple(_kind(number, token) for number, token in enumerate(tokens)),
        special={name: number for name, number in _SPECIAL.items() if number < vocab_size},
        options={"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True},
    )


def _sentencepiece(token: str) -> str:
    # The control tokens lie between line breaks, which llama2.c prints.
    return {"\n<s>\n": "<s>", "\n</s>\n": "</s>"}.get(token, token.replace(" ", "▁"))


def _kind(number: int, token: str) -> int:
    if number in (_SPECIAL["bos"], _SPECIAL["eos"]):
        return _CONTROL
    if number == _SPECIAL["unk"]:
        return _UNKNOWN
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return _BYTE if is_byte else _NORMAL
