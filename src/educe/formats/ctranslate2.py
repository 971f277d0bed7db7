"""CTranslate2 folders: ``model.bin`` with named variables, and lists of words beside it.

The layout of model.bin, all little-endian, a text being u16 length with its final zero byte, then the bytes:
u32 version; text name of the specification; u32 its revision; u32 number of variables; of each: text name, u8
rank, u32 sizes, u8 type, u32 bytes, the bytes (before version 4: u8 bytes of an element, u32 elements); from
version 3 on, u32 number of aliases, of each two texts: name, and name of the variable that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedModelError
from educe.formats.ctranslate2_names import refuse_variants, renamed, sizes
from educe.formats.cursor import Cursor
from educe.formats.folder import Folder, json_object, shown
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Vocabulary, Weight, size_in_bytes

MODEL = "model.bin"
_VERSIONS = range(2, 7)
_SPECIFICATIONS = {"TransformerBase": 8, "TransformerBig": 16, "TransformerSpec": 8}
_MAX_RANK = 8
_MAX_VARIABLES = 1_000_000
_TYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")
_OLD_TYPES = {4: "F32", 2: "I16", 1: "I8"}
_QUANTIZED = ("I8", "I16")
_EPSILON = 1e-5
_SETTINGS = {
    "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
    "add_source_bos": False, "add_source_eos": False,
}  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """What a model.bin holds.

    Attributes:
        specification: The kind of network, such as ``TransformerBase``.
        variables: Its arrays, under CTranslate2's names.
        aliases: Further names, and the variable that each stands for.
    """

    specification: str
    variables: dict[str, Weight]
    aliases: dict[str, str]


def sniff(head: bytes) -> bool:
    """Say whether a file that begins with `head` is a model.bin of a version that Educe reads."""
    length = int.from_bytes(head[4:6], "little")
    name = head[6 : 6 + length]
    version = int.from_bytes(head[:4], "little")
    return version in _VERSIONS and len(name) == length > 1 and name[-1:] == b"\0" and name[:-1].isalnum()


def load(path: Path, limits: Limits) -> Checkpoint:
    """Read a folder with a model.bin; Hugging Face's name of its pre-norm Transformer is ``m2m_100``.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the network is not such a Transformer.
        LimitError: a file is larger than `limits` allow.
    """
    folder = Folder(path, limits)
    file = path / MODEL
    model = read_model(folder.map(MODEL), file)
    heads = _SPECIFICATIONS.get(model.specification)
    if heads is None:
        raise UnsupportedModelError(
            f"is a {model.specification} of CTranslate2, of which Educe reads {', '.join(_SPECIFICATIONS)}",
            path=file,
            remedy="use the Hugging Face folder that it was converted from",
        )
    attributes, arrays = _parted(model, file)
    refuse_variants(attributes, file)
    weights = renamed(arrays, file)
    source, target = _words(folder, "source"), _words(folder, "target")
    settings = _settings(folder, attributes, source, target)
    config = sizes(weights, {"num_heads": heads, **attributes}, file) | settings
    _check_words(config, source, target, path)
    return Checkpoint(
        model_type="m2m_100",
        config=config,
        weights=weights,
        tokenizer=TokenizerFiles(source=source, target=target),
        generation=settings,
        path=path,
        content=folder.ordered_content(),
        stamps=folder.ordered_stamps(),
    )


def read_model(content: np.ndarray, path: Path) -> ModelFile:
    """Return the variables of a model.bin as views of its bytes, u8[n].

    Raises:
        ModelFileError: the file is broken.
        UnsupportedModelError: it is of a version that Educe does not read.
    """
    cursor = Cursor(content.data, path)
    version = cursor.integer("<I")
    if version not in _VERSIONS:
        raise UnsupportedModelError(
            f"is of version {version:,} of CTranslate2's format, of which Educe reads "
            f"{_VERSIONS.start} to {_VERSIONS.stop - 1}",
            path=path,
            remedy="convert the model again",
        )
    specification = _text(cursor)
    cursor.integer("<I")
    variables: dict[str, Weight] = {}
    for _ in range(_count(cursor)):
        variable = _variable(cursor, content, version)
        if variable.name in variables:
            raise cursor.error(f"the variable {shown(variable.name)} stands there twice")
        variables[variable.name] = variable
    aliases = dict(_alias(cursor, variables) for _ in range(_count(cursor) if version >= 3 else 0))
    if cursor.remaining:
        raise cursor.error(f"{cursor.remaining:,} bytes follow the last variable")
    return ModelFile(specification, variables, aliases)


def _count(cursor: Cursor) -> int:
    count = cursor.integer("<I")
    if count > _MAX_VARIABLES:
        raise cursor.error(f"{count:,} variables should follow, which is more than {_MAX_VARIABLES:,}")
    return count


def _text(cursor: Cursor) -> str:
    length = cursor.integer("<H")
    if not length:
        raise cursor.error("a name has no final zero byte")
    text = cursor.text(length)
    if text[-1] != "\0" or "\0" in text[:-1]:
        raise cursor.error(f"the name {shown(text)} does not end with its one zero byte")
    return text[:-1]


def _variable(cursor: Cursor, content: np.ndarray, version: int) -> Weight:
    name, rank = _text(cursor), cursor.integer("<B")
    if rank > _MAX_RANK:
        raise cursor.error(f"the variable {shown(name)} has {rank} dimensions, more than {_MAX_RANK}")
    shape = tuple(cursor.integer("<I") for _ in range(rank))
    kind, amount = cursor.integer("<B"), cursor.integer("<I")
    old, new = _OLD_TYPES.get(kind), _TYPES[kind] if kind < len(_TYPES) else None
    encoding = new if version >= 4 else old
    if encoding is None:
        raise cursor.error(f"the variable {shown(name)} has the type {kind}, which does not exist")
    length = amount if version >= 4 else amount * kind
    if size_in_bytes(shape, encoding) != length:
        raise cursor.error(f"the variable {shown(name)} is {encoding}{list(shape)} in {length:,} bytes")
    start = cursor.position
    cursor.take(length)
    return Weight(name, shape, encoding, content[start : cursor.position])


def _alias(cursor: Cursor, variables: Mapping[str, Weight]) -> tuple[str, str]:
    alias, name = _text(cursor), _text(cursor)
    if name not in variables or alias in variables:
        raise cursor.error(f"{shown(alias)} should stand for {shown(name)}, which is not possible")
    return alias, name


def _parted(model: ModelFile, path: Path) -> tuple[dict[str, float], dict[str, Weight]]:
    """Return the numbers among the variables, and the arrays with their scales, aliases resolved."""
    found = model.variables | {
        alias: model.variables[name].renamed(alias) for alias, name in model.aliases.items()
    }
    attributes = {name: _number(weight) for name, weight in found.items() if not weight.shape}
    arrays = {
        name: _scaled(weight, found.get(f"{model.aliases.get(name, name)}_scale"), path)
        for name, weight in found.items()
        if weight.shape and not name.endswith("_scale")
    }
    return {name: value for name, value in attributes.items() if not name.endswith("_scale")}, arrays


def _number(weight: Weight) -> float:
    value = float(weight.array())
    return int(value) if weight.encoding.startswith("I") else value


def _scaled(weight: Weight, scale: Weight | None, path: Path) -> Weight:
    """Return a quantized weight with what its rows are multiplied by, of which the file has the inverse."""
    if weight.encoding not in _QUANTIZED:
        return weight
    rows = weight.shape[0]
    values = None if scale is None or scale.num_elements not in (1, rows) else scale.array().reshape(-1)
    if values is None or not np.all(np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).tiny)):
        raise ModelFileError(
            f"is {weight.encoding}{list(weight.shape)} and has no usable scale for each row",
            path=path,
            place=f"variable {shown(weight.name)}",
            remedy="convert the model again",
        )
    scales = np.ascontiguousarray(np.broadcast_to(np.float32(1) / values, rows))
    return Weight(weight.name, weight.shape, weight.encoding, weight.data, scales)


def _words(folder: Folder, side: str) -> Vocabulary:
    """Return the words of one language; the unknown word is the last where the file does not have it."""
    for stem in (f"{side}_vocabulary", "shared_vocabulary"):
        for name in (f"{stem}.json", f"{stem}.txt"):
            if folder.has(name):
                content = folder.read(name, "tokenizer_bytes")
                words = _read_words(content, folder.path / name)
                return Vocabulary("words", words if "<unk>" in words else (*words, "<unk>"))
    raise ModelFileError(
        f"the folder has neither {side}_vocabulary.txt nor shared_vocabulary.txt (or .json)",
        path=folder.path,
        remedy="copy the vocabularies from where the model came from into this folder",
    )


def _read_words(content: bytes, path: Path) -> tuple[str, ...]:
    if path.suffix == ".json":
        words = json_object(b'{"words":' + content + b"}", path=path)["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ModelFileError("is no JSON list of words", path=path, remedy="download the file again")
        return tuple(words)
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as fault:
        raise ModelFileError(
            f"is no UTF-8 text at byte {fault.start:,}", path=path, remedy="download the file again"
        ) from None
    lines = lines if lines[-1] else lines[:-1]
    has_returns = all(line.endswith("\r") for line in lines)
    return tuple(line[:-1] for line in lines) if has_returns else tuple(lines)


def _settings(
    folder: Folder, attributes: Mapping[str, float], source: Vocabulary, target: Vocabulary
) -> dict[str, Any]:
    """Return the ids that begin and end a translation, under Hugging Face's names."""
    given = _SETTINGS | folder.read_object("config.json")
    starts_with = "bos_token" if attributes.get("with_target_bos", 1) else "eos_token"
    start = given.get("decoder_start_token", given[starts_with])
    path = folder.path / MODEL
    if given.get("layer_norm_epsilon") not in (None, _EPSILON):
        raise UnsupportedModelError(
            f"has the layer_norm_epsilon {shown(given['layer_norm_epsilon'])}, where Educe reads {_EPSILON}",
            path=folder.path / "config.json",
            remedy="use the Hugging Face folder that it was converted from",
        )
    return {
        "bos_token_id": _id(target, given["bos_token"], path),
        "eos_token_id": _id(target, given["eos_token"], path),
        "pad_token_id": 0,
        "decoder_start_token_id": _id(target, start, path),
        "add_source_bos": bool(attributes.get("with_source_bos", given["add_source_bos"])),
        "add_source_eos": bool(attributes.get("with_source_eos", given["add_source_eos"])),
    }


def _id(vocabulary: Vocabulary, word: Any, path: Path) -> int:
    if word in vocabulary.tokens:
        return vocabulary.tokens.index(word)
    raise ModelFileError(
        f"begins or ends translations with {shown(word)}, which is no word of the target vocabulary",
        path=path,
        remedy="use the vocabulary that came with the model",
    )


def _check_words(config: Mapping[str, Any], source: Vocabulary, target: Vocabulary, path: Path) -> None:
    for name, field, vocabulary in (
        ("source", "vocab_size", source),
        ("target", "decoder_vocab_size", target),
    ):
        if len(vocabulary.tokens) != config[field]:
            raise ModelFileError(
                f"the {name} vocabulary has {len(vocabulary.tokens):,} words, and the model embeds "
                f"{config[field]:,}",
                path=path,
                remedy="use the vocabulary that came with the model",
            )
