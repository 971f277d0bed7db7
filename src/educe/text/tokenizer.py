"""`Tokenizer`: text to the ids of a model's tokens and back, whole or as a stream."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from educe import pages
from educe.errors import InputError, ModelFileError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.text import pieces, tokenizer_files
from educe.text.faults import as_error
from educe.text.isolation import ExhaustedError, Worker
from educe.text.renumbering import Renumbered
from educe.text.template import is_unicode
from educe.text.tokenizer_json import GUARD
from educe.text.vocabularies import Parts

if TYPE_CHECKING:
    import tokenizers

    from educe.model.checkpoint import TokenizerFiles, Vocabulary

_CPU_SECONDS = 0.5
_CHARACTERS_PER_SECOND = 100_000
# A smaller text is soon cut, and its number of tokens told.
_LARGE_TEXT = 2**16


class Tokenizer:
    """Cuts text into a model's tokens. It is immutable and may be used by several threads at once.

    Attributes:
        bos: The id that begins a text, if there is one.
        eos: The ids of which each ends a text.
        pad: The id that fills a batch, if there is one.
        special: The ids that stand for no text.
    """

    def __init__(
        self, parts: Parts, *, worker: Worker | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.bos, self.eos, self.pad = parts.bos, parts.eos, parts.pad
        self._parts = parts
        self._core: tokenizers.Tokenizer | Renumbered = parts.core
        if parts.numbering is not None:
            self._core = Renumbered(parts.core, parts.numbering, parts.unknown)
        self._worker = worker
        self._limits = limits
        added = self._core.get_added_tokens_decoder()
        self.special = frozenset(index for index, token in added.items() if token.special)
        self._added = {index: token.content for index, token in added.items()}
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def from_files(cls, files: TokenizerFiles, limits: Limits = DEFAULT_LIMITS) -> Tokenizer:
        """Return the tokenizer of a checkpoint's files; for translation, that of the language read.

        Raises:
            ModelFileError: the files are broken, or none of them is a tokenizer.
            UnsupportedModelError: the tokenizer is of a kind that Educe does not know.
        """
        parts, worker = tokenizer_files.parts(files)
        # Reading a large vocabulary frees as much as it keeps.
        pages.trim()
        return cls(parts, worker=worker, limits=limits)

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary, limits: Limits = DEFAULT_LIMITS) -> Tokenizer:
        """Return the tokenizer of a vocabulary's tables.

        Raises:
            ModelFileError: the tables do not fit each other.
            UnsupportedModelError: the tokenizer is of a kind that Educe does not know.
        """
        return cls(tokenizer_files.of_tables(vocabulary), limits=limits)

    def __repr__(self) -> str:
        return f"<Tokenizer of {self.vocabulary_size:,} tokens>"

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        return 1 + int(self._parts.ids[-1]) if len(self._parts.ids) else 0

    @property
    def ids(self) -> np.ndarray:
        """The ids that tokens have, ascending, i64[n]; not to be written."""
        return self._parts.ids

    def encode(self, text: str, add_special: bool = True, *, parse_special: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any text.
            add_special: Whether what begins and ends a text is added.
            parse_special: Whether special tokens written in the text count as such, as in a rendered
                template; in what a user says they are text like any other.

        Raises:
            InputError: the text has lone surrogates, or characters that the model does not know.
            LimitError: it is larger than `limits.text_bytes`.
            ModelFileError: the tokenizer fails, or takes too long.
        """
        if not is_unicode(text):
            raise InputError("the text has half a character, a lone surrogate", remedy="give valid Unicode")
        self._limits.check("text_bytes", len(text.encode()))
        self._refuse_unknown(text)
        ids = self._cut(text if parse_special else self.guard(text), add_special)
        return [*self._parts.prefix, *ids, *self._parts.suffix] if add_special else ids

    def refuse_longer(self, text: str, most: int) -> None:
        """Refuse a large text of more bytes than `most` tokens have, without cutting it.

        Raises:
            InputError: the text is longer.
        """
        if len(text) > _LARGE_TEXT and len(text.encode("utf-8", "replace")) > most * self._longest:
            raise InputError(
                f"the text has {len(text):,} characters, and the model reads {most:,} tokens "
                f"of at most {self._longest:,} bytes",
                too_long=True,
                remedy="shorten it; nothing is cut without being asked",
            )

    @cached_property
    def _longest(self) -> int:
        return max((len(self._spell(int(index))) for index in self.ids), default=1)

    def _refuse_unknown(self, text: str) -> None:
        alphabet = self._parts.alphabet
        unknown = alphabet is not None and next((each for each in text if each not in alphabet), None)
        if unknown:
            raise InputError(
                f"the model does not know the character {unknown!r} (U+{ord(unknown):04X})",
                place=f"character {text.index(unknown) + 1:,}",
                remedy="leave it out, or write another one",
            )

    def guard(self, text: str) -> str:
        """Return a text whose special tokens `encode` takes as text even with `parse_special`.

        It is what a user's words are put through before they go into a chat template.
        """
        return self._guarded.sub(_separate, text)

    @cached_property
    def _guarded(self) -> re.Pattern[str]:
        contents = {self._added[index] for index in self.special} | {GUARD}
        longest_first = sorted(filter(None, contents), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def _cut(self, text: str, add_special: bool) -> list[int]:
        if self._worker is not None:
            return self._cut_apart(text, add_special)
        with as_error(_failure):
            ids: list[int] = self._core.encode(text, add_special_tokens=add_special).ids
        return ids

    def _cut_apart(self, text: str, add_special: bool) -> list[int]:
        assert self._worker is not None
        seconds = _CPU_SECONDS + len(text) / _CHARACTERS_PER_SECOND
        try:
            answer: dict[str, Any] = self._worker.ask([text, add_special], cpu_seconds=seconds)
        except ExhaustedError as fault:
            raise _failure(f"cutting this text {fault}") from None
        if "ids" not in answer:
            raise _failure(answer["fault"])
        ids: list[int] = answer["ids"]
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids: one that no token has adds nothing, what is no UTF-8 becomes U+FFFD."""
        decoder = self.stream(skip_special)
        return "".join([*map(decoder.push, ids), decoder.finish()])

    def stream(
        self, skip_special: bool = True, *, after: Iterable[int] = (), keep: Collection[int] = ()
    ) -> Decoder:
        """Return what makes text of one id after the other, where the ids `after` went before.

        Args:
            skip_special: Whether special tokens add nothing.
            after: What went before.
            keep: Special tokens that add their names all the same.
        """
        decoder = Decoder(self, self.special.difference(keep) if skip_special else frozenset())
        for index in after:
            decoder.push(index)
        decoder.finish()
        return decoder

    def token_bytes(self, index: int) -> bytes:
        """Return what a token adds to a text: a special one its name, an id that no token has nothing."""
        found = self._pieces.get(index)
        if found is None:
            found = self._pieces[index] = self._spell(index)
        return found

    def _spell(self, index: int) -> bytes:
        token = self._added.get(index) if index in self.special else self._token(index)
        if token is None:
            return b""
        if index in self._added and self._parts.spelling is not pieces.sentencepiece:
            return token.encode()
        return token.encode() if index in self.special else self._parts.spelling(token)

    def _token(self, index: int) -> str | None:
        if not 0 <= index < 2**32:
            return None
        token: str | None = self._core.id_to_token(index)
        return token

    def added_id(self, token: str) -> int | None:
        """Return the id of a token that is found in a text before it is cut; None if there is none."""
        return next((index for index, content in self._added.items() if content == token), None)

    @property
    def drops_space(self) -> bool:
        """Whether a space before the first token is the tokenizer's own addition."""
        return self._parts.drops_space


class Decoder:
    """Makes text of ids, one after the other; never half a character, and in all just what `decode` gives."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._drops_space = tokenizer.drops_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """Return the characters that the token of this id completes; none if there is no such token."""
        added = self._tokenizer.token_bytes(index)
        if not added or index in self._skipped:
            return ""
        if self._drops_space:
            added = added.removeprefix(b" ")
            self._drops_space = False
        return self._utf8.decode(added)

    def finish(self) -> str:
        """Return U+FFFD for a character that was begun and not completed; the decoder may be used on."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _separate(found: re.Match[str]) -> str:
    return "".join(letter + GUARD for letter in found[0])


def _failure(cause: str) -> ModelFileError:
    return ModelFileError(
        f"the tokenizer fails: {cause}",
        place="tokenizer",
        remedy="use the files that came with the model, or give another text",
    )
