"""From a vocabulary's tables to a working tokenizer, for each of the ways to cut a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedModelError
from educe.model.checkpoint import Vocabulary
from educe.text import pieces, pretokenizers
from educe.text.faults import as_error
from educe.text.pieces import WORD_START, Spelling

if TYPE_CHECKING:
    import tokenizers

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_MERGED = (1, _USER_DEFINED)
_ENDS = ("eos", "eot", "eom")
# GGUF files often name one end alone; these end an answer wherever a vocabulary has them as control tokens.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
# With these pre-tokenizers a piece that is a token is taken whole, whatever the merges make of it, and files
# that do not say so mean that texts begin with bos.
_WHOLE_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a tokenizer is made of.

    Attributes:
        core: Cuts text; its own special tokens are those that it finds in text.
        spelling: The bytes of a token.
        drops_space: Whether a space before the first token is the tokenizer's own addition.
        ids: The ids that tokens have, ascending, i64[n].
        prefix: The ids before every text.
        suffix: The ids after it.
        bos: The id that begins a text, if there is one.
        eos: The ids of which each ends a text.
        pad: The id that fills, if there is one.
        alphabet: The only characters that texts may have; None if there is a way to write all.
        numbering: The model's id of each token, where `core` has others; all fields here are the model's.
        unknown: With a numbering, the id of what it lacks.
    """

    core: tokenizers.Tokenizer
    spelling: Spelling
    drops_space: bool
    ids: np.ndarray
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    bos: int | None = None
    eos: frozenset[int] = field(default_factory=frozenset)
    pad: int | None = None
    alphabet: frozenset[str] | None = None
    numbering: Mapping[str, int] | None = None
    unknown: int = 0


def build(vocabulary: Vocabulary) -> Parts:
    """Return the parts of a tokenizer for `vocabulary`.

    Raises:
        ModelFileError: the tables do not fit each other.
        UnsupportedModelError: the way to cut text is not known.
    """
    _check(vocabulary)
    makers = {
        "gpt2": _gpt2,
        "llama": _llama,
        "t5": _unigram,
        "bert": _word_pieces,
        "words": _words,
        "characters": _characters,
    }
    if vocabulary.model not in makers:
        raise UnsupportedModelError(
            f"cuts text in the way {ascii(vocabulary.model)[:100]}", remedy=f"Educe knows {', '.join(makers)}"
        )
    with as_error(lambda cause: _error(f"makes no tokenizer: {cause}")):
        core, spelling = makers[vocabulary.model](vocabulary)
    prefix, suffix = _around(vocabulary)
    return Parts(
        core=core,
        spelling=spelling,
        drops_space=vocabulary.model in ("bert", "words") or _has_space_prefix(vocabulary),
        ids=np.arange(len(vocabulary.tokens)),
        prefix=prefix,
        suffix=suffix,
        bos=vocabulary.special.get("bos"),
        eos=_ends(vocabulary),
        pad=vocabulary.special.get("pad"),
        alphabet=frozenset(vocabulary.tokens) if vocabulary.model == "characters" else None,
    )


def _check(vocabulary: Vocabulary) -> None:
    count = len(vocabulary.tokens)
    seen: dict[str, int] = {}
    for index, token in enumerate(vocabulary.tokens):
        if seen.setdefault(token, index) != index:
            raise _error(f"has {ascii(token)[:100]} as token {seen[token]:,} and as token {index:,}")
    for name, table in (("scores", vocabulary.scores), ("types", vocabulary.types)):
        if table and len(table) != count:
            raise _error(f"has {len(table):,} {name} for {count:,} tokens")
    if not count or not all(map(math.isfinite, vocabulary.scores)):
        raise _error("has a score that is no finite number" if count else "has no tokens")
    for name, found in vocabulary.special.items():
        if not 0 <= found < count:
            raise _error(f"has the id {found:,} for {name}, and {count:,} tokens")


def _gpt2(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, Spelling]:
    from tokenizers import Tokenizer, models

    name = vocabulary.options.get("pre", "gpt-2")
    pairs = _pairs(vocabulary.merges)
    core = Tokenizer(models.BPE(_ids(vocabulary), pairs, ignore_merges=name in _WHOLE_FIRST))
    core.pre_tokenizer = pretokenizers.by_name(name)
    _add_tokens(core, vocabulary)
    return core, pieces.byte_level


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise _error(f"has merge {rank:,}, which is no pair: {ascii(merge)[:100]}")
        pairs.append((left, right))
    return pairs


def _llama(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, Spelling]:
    from tokenizers import Tokenizer, models

    unknown = _unknown(vocabulary)
    model = models.BPE(
        _ids(vocabulary),
        _merges_by_score(vocabulary),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        byte_fallback=_BYTE in vocabulary.types,
        fuse_unk=True,
    )
    core = Tokenizer(model)
    core.normalizer = _normalizer(vocabulary.options)
    _add_tokens(core, vocabulary)
    return core, pieces.sentencepiece


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the pairs that make a token, those of the best token first, as SentencePiece merges them."""
    merged = {token for index, token in enumerate(vocabulary.tokens) if _kind(vocabulary, index) in _MERGED}
    scores = vocabulary.scores or (0.0,) * len(vocabulary.tokens)
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return [
        (token[:cut], token[cut:])
        for token in (vocabulary.tokens[index] for index in order)
        if token in merged
        for cut in range(1, len(token))
        if token[:cut] in merged and token[cut:] in merged
    ]


def _unigram(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, Spelling]:
    from tokenizers import Tokenizer, models

    scores = vocabulary.scores or (0.0,) * len(vocabulary.tokens)
    model = models.Unigram(
        list(zip(vocabulary.tokens, scores, strict=True)),
        _unknown(vocabulary),
        _BYTE in vocabulary.types,
    )
    core = Tokenizer(model)
    core.normalizer = _normalizer(vocabulary.options)
    _add_tokens(core, vocabulary)
    return core, pieces.sentencepiece


def _normalizer(options: Mapping[str, Any]) -> tokenizers.normalizers.Normalizer:
    from tokenizers import Regex, normalizers

    steps: list[normalizers.Normalizer] = []
    if options.get("precompiled_charsmap"):
        steps.append(normalizers.Precompiled(options["precompiled_charsmap"]))
    if options.get("remove_extra_whitespaces"):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if options.get("add_space_prefix", True):
        steps.append(normalizers.Prepend(WORD_START))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", WORD_START)])


def _word_pieces(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, Spelling]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    unknown = vocabulary.tokens[vocabulary.special["unk"]] if "unk" in vocabulary.special else "[UNK]"
    core = Tokenizer(models.WordPiece(_ids(vocabulary), unk_token=unknown))
    core.normalizer = normalizers.BertNormalizer(lowercase=vocabulary.options.get("lowercase", True))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_tokens(core, vocabulary)
    return core, pieces.word_piece


def _words(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, Spelling]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    unknown = vocabulary.tokens[vocabulary.special["unk"]] if "unk" in vocabulary.special else "<unk>"
    core = Tokenizer(models.WordLevel(_ids(vocabulary), unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _add_tokens(core, vocabulary)
    return core, pieces.word


def _characters(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, Spelling]:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE(_ids(vocabulary), [])), pieces.character


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {token: index for index, token in enumerate(vocabulary.tokens)}


def _kind(vocabulary: Vocabulary, index: int) -> int:
    return vocabulary.types[index] if vocabulary.types else 1


def _add_tokens(core: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Have control tokens and those that users defined found in text before it is cut."""
    from tokenizers import AddedToken

    special = set(vocabulary.special.values()) | set(_of_kind(vocabulary, _CONTROL))
    names = [vocabulary.tokens[index] for index in sorted(special)]
    core.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    defined = {vocabulary.tokens[index] for index in _of_kind(vocabulary, _USER_DEFINED)} - set(names)
    if _has_space_prefix(vocabulary):
        # The library would put the prefix before the token too; such tokens are found by merging.
        defined = {token for token in defined if WORD_START not in token}
    core.add_tokens(
        [AddedToken(token, special=False, normalized=WORD_START in token) for token in sorted(defined)]
    )


def _of_kind(vocabulary: Vocabulary, kind: int) -> Iterable[int]:
    return (index for index, found in enumerate(vocabulary.types) if found == kind)


def _unknown(vocabulary: Vocabulary) -> int | None:
    return vocabulary.special.get("unk", next(iter(_of_kind(vocabulary, _UNKNOWN)), None))


def _has_space_prefix(vocabulary: Vocabulary) -> bool:
    return vocabulary.model in ("llama", "t5") and bool(vocabulary.options.get("add_space_prefix", True))


def _around(vocabulary: Vocabulary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after every text."""
    special, options = vocabulary.special, vocabulary.options
    if vocabulary.model == "bert":
        begin, end = special.get("cls", special.get("bos")), special.get("sep", special.get("eos"))
        return _some(begin), _some(end)
    is_begun = vocabulary.model == "llama" or options.get("pre") in _WHOLE_FIRST
    begins = options.get("add_bos_token", is_begun)
    ends = options.get("add_eos_token", vocabulary.model == "t5")
    return (
        _some(special.get("bos") if begins else None),
        _some(special.get("eos") if ends else None),
    )


def _some(found: int | None) -> tuple[int, ...]:
    return () if found is None else (found,)


def _ends(vocabulary: Vocabulary) -> frozenset[int]:
    named = {vocabulary.special[name] for name in _ENDS if name in vocabulary.special}
    known = {index for index in _of_kind(vocabulary, _CONTROL) if vocabulary.tokens[index] in END_TOKENS}
    return frozenset(named | known)


def _error(cause: str) -> ModelFileError:
    return ModelFileError(cause, place="vocabulary", remedy="download or convert the file again")
