"""``tokenizer.json``, the file of Hugging Face's library: checked, and read with that library.

The file may hold regular expressions. Those that are known to take linear time run here; with any other,
texts are cut in a `Worker`, which stops what takes too long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from educe.errors import ModelFileError, UnsupportedModelError
from educe.text import pieces
from educe.text.faults import as_error
from educe.text.pieces import WORD_START, Spelling
from educe.text.pretokenizers import LINEAR

if TYPE_CHECKING:
    import tokenizers

GUARD = "\ufdd0\ufdd1"
"""Two characters that Unicode keeps out of texts; they stand in what must not be found as a special token."""

_MAX_PATTERN = 10_000
_MAX_PATTERNS = 100


class Outline(msgspec.Struct):
    """A ``tokenizer.json`` without its vocabulary."""

    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


def outline(content: bytes) -> Outline:
    """Return the small fields of a file.

    Raises:
        ModelFileError: it is no such JSON.
    """
    try:
        return msgspec.json.decode(content, type=Outline)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as fault:
        raise _error(f"is broken: {str(fault)[:200]}") from None


def unknown_patterns(found: Outline) -> list[str]:
    """Return the regular expressions that are not known to take linear time.

    Raises:
        ModelFileError: there are too many, or one is too long.
    """
    patterns = list(_patterns([found.normalizer, found.pre_tokenizer, found.decoder]))
    if len(patterns) > _MAX_PATTERNS or any(len(pattern) > _MAX_PATTERN for pattern in patterns):
        raise _error(
            f"has more than {_MAX_PATTERNS} regular expressions, or one of over {_MAX_PATTERN:,} characters"
        )
    return [pattern for pattern in patterns if pattern not in LINEAR]


def _patterns(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [inner for name, inner in value.items() if name != "Regex"]
            if isinstance(value.get("Regex"), str):
                yield value["Regex"]
        elif isinstance(value, list):
            waiting += value


def read(content: bytes | str) -> tokenizers.Tokenizer:
    """Return the library's tokenizer of a file, without padding and truncation, the guard removed from texts.

    Raises:
        ModelFileError: the library refuses the file.
    """
    from tokenizers import Tokenizer

    with as_error(lambda cause: _error(f"is broken: {cause}")):
        core = Tokenizer.from_str(content if isinstance(content, str) else content.decode())
    core.no_padding()
    core.no_truncation()
    # Special tokens are found before the normalizer runs, and so before the guard is removed.
    special = [token for token in core.get_added_tokens_decoder().values() if token.special]
    core.add_special_tokens([_found_first(token) for token in special if token.normalized])
    return guarded(core)


def _found_first(token: tokenizers.AddedToken) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=True,
    )


def guarded(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return `core` itself, which now removes the guard from a text after it has found the special tokens.

    A model that looks for whole tokens in a text would find the special ones again; for it, the text is cut
    where the guard stood.
    """
    from tokenizers import models, normalizers, pre_tokenizers

    if isinstance(core.model, (models.Unigram, models.WordLevel)):
        cuts = [] if core.pre_tokenizer is None else [core.pre_tokenizer]
        core.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.Split(GUARD, "removed")])
        return core
    own = [] if core.normalizer is None else [core.normalizer]
    core.normalizer = normalizers.Sequence([normalizers.Replace(GUARD, ""), *own])
    return core


def without_cutting(content: bytes) -> str:
    """Return a file whose tokenizer knows its tokens and cuts nothing, so that no expression is in use."""
    found = json.loads(content)
    return json.dumps(found | {"normalizer": None, "pre_tokenizer": None, "decoder": None})


def cutter(content: str) -> Callable[[list[Any]], dict[str, Any]]:
    """Return what cuts a text with all of a file's expressions; only a worker calls it."""
    core = read(content)

    def cut(request: list[Any]) -> dict[str, Any]:
        text, add_special = request
        try:
            with as_error(_error):
                return {"ids": core.encode(text, add_special_tokens=add_special).ids}
        except ModelFileError as fault:
            return {"fault": fault.cause}

    return cut


def spelling(found: Outline) -> tuple[Spelling, bool]:
    """Return how a file's tokens are spelled, and whether a space before the first is an addition.

    Raises:
        UnsupportedModelError: its decoder is of a kind that is not known.
    """
    steps = list(_steps(found.decoder, "decoders"))
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return pieces.byte_level, False
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return pieces.sentencepiece, any(map(_drops_space, steps))
    if "WordPiece" in kinds:
        return pieces.word_piece, True
    if "BPEDecoder" in kinds:
        suffix = next(step.get("suffix") for step in steps if step.get("type") == "BPEDecoder")
        return pieces.word_end(str(suffix)), False
    if not steps:
        return pieces.word, True
    raise UnsupportedModelError(
        f"has a decoder of the kinds {ascii(sorted(map(str, kinds)))[:100]}",
        remedy="Educe knows ByteLevel, Metaspace, ByteFallback, Replace, WordPiece and BPEDecoder",
    )


def _steps(component: Any, nested: str) -> Iterator[dict[str, Any]]:
    if isinstance(component, dict):
        inner = component.get(nested) if component.get("type") == "Sequence" else [component]
        yield from (step for step in inner or () if isinstance(step, dict))


def _drops_space(step: dict[str, Any]) -> bool:
    if step.get("type") == "Strip":
        return step.get("content") in (" ", WORD_START) and step.get("start") == 1
    added = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    return step.get("type") == "Metaspace" and added != "never"


def _error(cause: str) -> ModelFileError:
    return ModelFileError(cause, place="tokenizer.json", remedy="download the file again")
