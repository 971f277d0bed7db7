"""How tokenizers of bytes cut text before they merge: regular expressions that the field knows by name.

The names are those of ``tokenizer.ggml.pre`` in GGUF files. Each expression takes time linear in the text;
one that is not among them may not, and runs in a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from educe.errors import UnsupportedModelError, nearest

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}{_SYMBOLS}[\r\n]*{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{_SYMBOLS}[\r\n]*{_SPACES}"
_QWEN35 = rf"{_CONTRACTIONS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_SPACES}"
_TEKKEN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}{_SYMBOLS}[\r\n/]*{_SPACES}"
)  # fmt: skip
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}{_SYMBOLS}[\r\n/]*{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{_SPACES}"
)
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_CHINESE = r"[一-龥぀-ゟ゠-ヿ]+"
_NEWLINE = r"[\r\n]"
_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The letters that have a case, but not those of mathematics.
_CASED = r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^\x{1D400}-\x{1D7FF}]]+"
_MARKS = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
# From the first space alone, so that a run of spaces is looked through once.
_LAST_SPACES = r"(?<!\s)\s++$"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_NO_PUNCTUATION = r" ?[^(\s|.,!?…。，、।۔،)]+"

_NAMES = (
    ("gpt-2 phi-2 mpt olmo jais trillion roberta-bpe jina-es jina-de granite-docling a.x-4.0", (GPT2,)),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b", (_DIGIT, GPT2)),
    ("llama-bpe llama3 llama-v3 dbrx smaug-bpe falcon3 pixtral chatglm-bpe", (_LLAMA3,)),
    ("qwen2 stablelm2 hunyuan deepseek-r1-qwen megrez grok-2", (_QWEN2,)),
    ("qwen35", (_QWEN35,)),
    ("gpt-4o llama4", (_GPT4O,)),
    ("tekken", (_TEKKEN,)),
    ("deepseek-v3 hunyuan-dense", (_THREE_DIGITS, _CHINESE, _DEEPSEEK3)),
    ("deepseek-llm", (_NEWLINE, _CASED, _MARKS, _LAST_SPACES, _ASIAN, r"\p{N}+")),
    ("deepseek-coder", (_NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, _DIGIT)),
    ("falcon", (_PUNCTUATION, GPT2, "[0-9][0-9][0-9]")),
    ("bloom poro-chat gpt3-finnish", (_NO_PUNCTUATION,)),
    ("viking", (_NO_PUNCTUATION, _DIGIT)),
)
_CUTS = {name: cut for names, cut in _NAMES for name in names.split()}

# What folders of Hugging Face have besides: CLIP's cut, runs of white space, a final space.
_OTHERS = (
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"\s+", " {2,}", r"\d", r"[0-9]", r"\d{1,3}", r"[0-9]{1,3}", r"\p{N}{1,2}",
)  # fmt: skip

LINEAR = frozenset(pattern for cut in _CUTS.values() for pattern in cut) | frozenset(_OTHERS)
"""Expressions that are known to take time linear in the text."""


def by_name(name: str) -> PreTokenizer:
    """Return how GGUF's name of a pre-tokenizer cuts a text; the pieces are written as bytes.

    Raises:
        UnsupportedModelError: the name is not known.
    """
    from tokenizers import Regex, pre_tokenizers

    if name not in _CUTS:
        raise UnsupportedModelError(
            f"cuts text by the pre-tokenizer {ascii(name)[:100]}, which Educe does not know",
            remedy=f"use the model's folder with its tokenizer.json; {nearest(name, _CUTS)}",
        )
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _CUTS[name]]
    written = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, written])
