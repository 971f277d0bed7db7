"""Which of a folder's files is the tokenizer, and what the others say of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedModelError
from educe.model.checkpoint import TokenizerFiles, Vocabulary
from educe.text import sentencepiece, tokenizer_json, vocabularies
from educe.text.isolation import Worker
from educe.text.vocabularies import Parts

_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
_FAIRSEQ = "sentencepiece.bpe.model"
# With these, vocab.json gives the model's numbers: M2M100, and Marian's source language.
_NUMBERED = (_FAIRSEQ, "source.spm")
# Without vocab.json, the models of these tokenizers have fairseq's numbers: its special tokens, the pieces
# but SentencePiece's own three, the languages, the mask.
_FAIRSEQ_CLASSES = ("Nllb", "MBart", "XLMRoberta")
_FAIRSEQ_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_SENTENCEPIECE_SPECIAL = ("<unk>", "<s>", "</s>")
# How Marian's vocabularies write the language to be written.
_LANGUAGE = re.compile(">>.+<<")
# A file of the largest size that is allowed takes a few seconds.
_START_SECONDS = 20.0
_NAMES = ("bos", "eos", "pad", "unk", "cls", "sep")
_BERT = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}


def parts(files: TokenizerFiles) -> tuple[Parts, Worker | None]:
    """Return the parts of the tokenizer in `files`, and the worker that cuts its texts if it needs one.

    Raises:
        ModelFileError: the files are broken, or none of them is a tokenizer.
        UnsupportedModelError: the tokenizer is of a kind that is not known.
    """
    found = files.files
    if "tokenizer.json" in found:
        return _of_json(found)
    if files.source is not None:
        return of_tables(files.source), None
    if "vocab.json" in found and (model := next(filter(found.__contains__, _NUMBERED), None)):
        return _numbered(found, model, _ids(found), _besides(_settings(found))), None
    if _FAIRSEQ in found and not any(map(found.__contains__, _SENTENCEPIECE)):
        return _fairseq(found), None
    return of_tables(_vocabulary(found)), None


def of_tables(vocabulary: Vocabulary) -> Parts:
    """Return the parts of a tokenizer of tables."""
    built = vocabularies.build(vocabulary)
    tokenizer_json.guarded(built.core)
    return built


def _of_json(files: Mapping[str, bytes]) -> tuple[Parts, Worker | None]:
    content = files["tokenizer.json"]
    outline = tokenizer_json.outline(content)
    spelling, drops_space = tokenizer_json.spelling(outline)
    worker = None
    if tokenizer_json.unknown_patterns(outline):
        maker = "educe.text.tokenizer_json:cutter"
        worker = Worker(maker, content.decode(), start_seconds=_START_SECONDS)
        content = tokenizer_json.without_cutting(content).encode()
    core = tokenizer_json.read(content)
    ids = core.get_vocab(with_added_tokens=True)
    distinct = sorted(set(ids.values()))
    if len(distinct) < len(ids):
        raise _error("tokenizer.json", "gives one id to two tokens")
    special = _named(files, ids)
    ends = {special[name] for name in ("eos",) if name in special}
    known = {ids[token] for token in vocabularies.END_TOKENS if token in ids}
    made = Parts(
        core,
        spelling,
        drops_space,
        ids=np.array(distinct, np.int64),
        bos=special.get("bos"),
        eos=frozenset(ends | known),
        pad=special.get("pad"),
    )
    return made, worker


def _named(files: Mapping[str, bytes], ids: Mapping[str, int]) -> dict[str, int]:
    """Return the ids of the special tokens that the tokenizer's settings name."""
    settings = _settings(files)
    named: dict[str, int] = {}
    for name in _NAMES:
        token = _content(settings.get(f"{name}_token"))
        if token in ids:
            named[name] = ids[token]
    return named


def _content(token: object) -> str:
    """Return the text of a special token, which settings give as such or with its properties."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _vocabulary(files: Mapping[str, bytes]) -> Vocabulary:
    if "vocab.json" in files and "merges.txt" in files:
        return _gpt2(files)
    if "vocab.txt" in files:
        return _bert(files)
    for name in _SENTENCEPIECE:
        if name in files:
            return _sentencepiece(files, name)
    raise UnsupportedModelError(
        f"has a tokenizer in {', '.join(sorted(files)) or 'no file'}, which Educe does not read",
        remedy="put the model's tokenizer.json into the folder",
    )


def _gpt2(files: Mapping[str, bytes]) -> Vocabulary:
    ids = _ids(files)
    lines = _text(files, "merges.txt").split("\n")
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    special = _named(files, ids)
    if "<|endoftext|>" in ids:
        special = {"bos": ids["<|endoftext|>"], "eos": ids["<|endoftext|>"]} | special
    settings = _object(files, "tokenizer_config.json")
    options = {"add_bos_token": settings.get("add_bos_token") is True}
    return Vocabulary("gpt2", tuple(ids), merges=tuple(merges), special=special, options=options)


def _ids(files: Mapping[str, bytes]) -> dict[str, int]:
    """Return the id of each token of vocab.json, in their order."""
    ids = _object(files, "vocab.json")
    tokens = sorted(ids, key=lambda token: ids[token] if type(ids[token]) is int else -1)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise _error("vocab.json", f"has {len(tokens):,} tokens whose ids are not 0 to {len(tokens) - 1:,}")
    return {token: index for index, token in enumerate(tokens)}


def _fairseq(files: Mapping[str, bytes]) -> Parts:
    """Return a tokenizer of SentencePiece whose pieces fairseq has numbered."""
    settings = _settings(files)
    kind = str(settings.get("tokenizer_class", ""))
    languages, mask = _besides(settings), _content(settings.get("mask_token"))
    is_encoder = kind.startswith("XLMRoberta")
    pieces = sentencepiece.parse(files[_FAIRSEQ]).tokens
    is_known = kind.startswith(_FAIRSEQ_CLASSES) and pieces[:3] == _SENTENCEPIECE_SPECIAL
    if not is_known or not (languages or is_encoder):
        raise UnsupportedModelError(
            f"has a tokenizer in {_FAIRSEQ} whose numbers nothing tells, of the class {ascii(kind)[:100]}",
            remedy="make tokenizer.json with the transformers library: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    tokens = dict.fromkeys([*_FAIRSEQ_SPECIAL, *pieces[3:]])
    ids = {token: index for index, token in enumerate(tokens)}
    built = _numbered(files, _FAIRSEQ, ids, [*languages, *filter(None, [mask])])
    return dataclasses.replace(built, prefix=(0,)) if is_encoder else built


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    return _object(files, "special_tokens_map.json") | _object(files, "tokenizer_config.json")


def _besides(settings: Mapping[str, Any]) -> list[str]:
    """Return the special tokens that the settings list besides those that they name."""
    listed = settings.get("additional_special_tokens", settings.get("extra_special_tokens"))
    return [_content(token) for token in listed if _content(token)] if isinstance(listed, list) else []


def _numbered(files: Mapping[str, bytes], model: str, ids: dict[str, int], listed: Iterable[str]) -> Parts:
    """Return a tokenizer of SentencePiece whose tokens have ids of the model's own; a text ends with eos.

    Special tokens that are listed besides, those of languages, have the numbers after.
    """
    from tokenizers import AddedToken

    for token in listed:
        ids.setdefault(token, len(ids))
    special = {name: ids[f"<{name}>"] for name in ("unk", "pad") if f"<{name}>" in ids}
    special |= {"eos": ids["</s>"]} if "</s>" in ids else {}
    special |= _named(files, ids)
    if not {"unk", "eos"} <= special.keys():
        raise _error("vocab.json", "has no token that ends a text, or none for what is unknown")
    built = of_tables(sentencepiece.parse(files[model]))
    names = {token for token, index in ids.items() if index in special.values() or _LANGUAGE.fullmatch(token)}
    added = [AddedToken(name, normalized=False) for name in sorted(names.union(listed))]
    built.core.add_special_tokens(added)
    return dataclasses.replace(
        built,
        ids=np.arange(len(ids)),
        prefix=(),
        suffix=(special["eos"],),
        bos=special.get("bos"),
        eos=frozenset({special["eos"]}),
        pad=special.get("pad"),
        numbering=ids,
        unknown=special["unk"],
    )


def _bert(files: Mapping[str, bytes]) -> Vocabulary:
    lines = _text(files, "vocab.txt").split("\n")
    tokens = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    ids = {token: index for index, token in enumerate(tokens)}
    special = {name: ids[token] for name, token in _BERT.items() if token in ids} | _named(files, ids)
    lowercase = _object(files, "tokenizer_config.json").get("do_lower_case", True)
    return Vocabulary("bert", tuple(tokens), special=special, options={"lowercase": lowercase is not False})


def _sentencepiece(files: Mapping[str, bytes], name: str) -> Vocabulary:
    vocabulary = sentencepiece.parse(files[name])
    settings = _object(files, "tokenizer_config.json")
    is_t5 = str(settings.get("tokenizer_class", "")).startswith(("T5", "MT5"))
    options = {
        **vocabulary.options,
        "add_bos_token": settings.get("add_bos_token") is True,
        "add_eos_token": settings.get("add_eos_token", is_t5) is True,
    }
    return dataclasses.replace(vocabulary, options=options)


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is no such file."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as fault:
        raise _error(name, f"is broken JSON: {str(fault)[:200]}") from None
    if not isinstance(found, dict):
        raise _error(name, f"is a JSON {type(found).__name__}, not an object")
    return found


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as fault:
        raise _error(name, f"is no UTF-8 text at byte {fault.start:,}") from None


def _error(name: str, cause: str) -> ModelFileError:
    return ModelFileError(cause, place=name, remedy="download the file again")
