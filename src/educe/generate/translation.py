"""`Translator`: sentences to another language, or texts to what a model makes of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from educe.errors import InputError, ModelFileError, UserError, refuse_unknown
from educe.generate.closing import Closing
from educe.generate.configuration import Configuration
from educe.generate.options import check_number
from educe.generate.parameters import Progress
from educe.generate.runners import encoder_decoder_for
from educe.generate.search import SearchOptions
from educe.generate.texts import isolated, listed, placed
from educe.generate.writer import Writer
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint, Vocabulary
from educe.text.languages import Direction, Languages
from educe.text.tokenizer import Tokenizer

_WORDS = "words"
_OPTIONS = ("source", "target", "num_beams", "length_penalty", "max_tokens")


class Translator(Closing):
    """A translator, ready to run until it is closed. It is used by one thread at a time.

    How texts are searched is what the model's generation_config.json says. A translation does not depend on
    what is translated beside it.

    Args:
        checkpoint: The model, with an encoder and a decoder.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        threads: Threads of a step; the machine's cores if absent.
        memory_bytes: Memory of the cache of keys and values; if absent, what so many texts can need, up to a
            quarter of the machine's.
        max_sequences: Most texts in a step; the beams of a search are texts.
        limits: The bounds on texts.
        progress: What is told of the packing of weights.

    Attributes:
        checkpoint: The model.
        max_source_length: Most tokens of a text, those that begin and end it included.
        options: How texts are searched.

    Raises:
        ModelFileError: a file is missing or broken, weights are misshapen, or there is no tokenizer.
        UnsupportedModelError: the architecture, or a part of it, is not known.
    """

    _held = ("_model", "_writer")

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "f32",
        threads: int | None = None,
        memory_bytes: int | None = None,
        max_sequences: int = 32,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
    ) -> None:
        files, config = checkpoint.tokenizer, checkpoint.config
        self.checkpoint = checkpoint
        if files is None:
            raise ModelFileError(
                "has no tokenizer", path=checkpoint.path, remedy="download tokenizer.json into the folder"
            )
        self._model = encoder_decoder_for(checkpoint)(
            checkpoint, max_sequences=max_sequences, precision=precision, threads=threads, progress=progress
        )
        self.max_source_length = self._model.max_source
        self.options = SearchOptions.of_model(checkpoint, self._model.max_target)
        self._source = Tokenizer.from_files(files, limits)
        self._target = Tokenizer.from_vocabulary(files.target, limits) if files.target else self._source
        self._languages = Languages(self._source, config)
        self._letters = files.source is not None and _has_letters(files.source)
        self._around = _around(checkpoint, files.source)
        self._start = _start(checkpoint)
        self._num_ids = Configuration(config, checkpoint.path).integer("vocab_size")
        self._writer = Writer(self._model, self.options.max_length, memory_bytes)

    @property
    def languages(self) -> list[str]:
        """The codes of the languages that the model is told of; empty if it knows one direction."""
        return self._languages.codes

    def translate(
        self,
        texts: Sequence[str],
        *,
        source: str | None = None,
        target: str | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        **unknown: Any,
    ) -> list[str]:
        """Return the translations of texts, in their order; one that cannot be costs all: see `batch`.

        Args:
            texts: One sentence each, or as much as the model reads at once.
            source: The code of the language read, where the model is told.
            target: The code of the language written, where the model is told.
            num_beams: How many texts are continued side by side; as many as the model asks for if absent.
            length_penalty: The power of its length that a text's score is divided by, from -5 to 5; the
                model's own if absent. More than 0 favours long texts.
            max_tokens: Most tokens of a translation; never more than the model's own number.

        Raises:
            InputError: `texts` is a single text; or one of them is empty or too long: its place says which.
            ModelFileError: a text has a token that the model lacks.
            OptionError: a language is missing or not known, a number is out of range, or it is closed.
            LimitError: a text is larger than `limits.text_bytes`, or there are too many beams.
        """
        refuse_unknown("option", unknown, _OPTIONS)
        self._check_open()
        texts = listed(texts)
        direction = self._languages.direction(source, target)
        ids = []
        for number, text in enumerate(texts):
            with placed(number, len(texts)):
                ids.append(self._ids(text, direction))
        options, start = self.options, self._start
        if num_beams is not None:
            options = dataclasses.replace(options, num_beams=num_beams)
        if length_penalty is not None:
            options = dataclasses.replace(options, length_penalty=length_penalty)
        if max_tokens is not None:
            count = check_number("max_tokens", max_tokens, 1, math.inf, True)
            options = dataclasses.replace(options, max_length=min(1 + count, options.max_length))
        if direction.forced is not None:
            options = dataclasses.replace(options, forced_bos_token_id=direction.forced)

        def read(numbers: Sequence[int], blocks: Sequence[Sequence[int]]) -> object:
            return self._model.encode([ids[number] for number in numbers], blocks)

        found = self._writer.write([len(each) for each in ids], read, [[start]] * len(ids), options)
        return [self._text(text.tokens[1:]) for text in found]

    def batch(self, texts: Sequence[str], **options: Any) -> list[str | UserError]:
        """Return the translations of texts, in their order; in place of one that cannot be, its error.

        Args:
            texts: As those of `translate`.
            **options: Those of `translate`.

        Raises:
            InputError: `texts` is a single text.
            OptionError: an option is unknown, or has a value that it does not take.
        """
        return isolated(lambda part: self.translate(part, **options), texts)

    def _ids(self, text: str, direction: Direction) -> list[int]:
        text = direction.prefix + text
        if self._letters:
            text = " ".join(text)
        before, after = self._around
        if direction.before:
            before = direction.before
        ids = [*before, *self._source.encode(text, add_special=False), *after]
        if not ids:
            raise InputError(
                "expected at least 1 token, found 0 in a text", remedy="leave out texts that are empty"
            )
        if len(ids) > self.max_source_length:
            raise InputError(
                f"expected 1 to {self.max_source_length:,} tokens, found {len(ids):,} in {text[:40]!r}",
                too_long=True,
                remedy="give one sentence after the other; nothing is cut without being asked",
            )
        if max(ids) >= self._num_ids:
            raise ModelFileError(
                f"has token {max(ids):,}, and the model has {self._num_ids:,} tokens",
                path=self.checkpoint.path,
                place="tokenizer",
                remedy="use the tokenizer that came with the model",
            )
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        text = self._target.decode(index for index in ids if index not in self.options.eos_token_ids)
        return text.replace(" ", "") if self._letters else text.strip()


def _around(checkpoint: Checkpoint, words: Vocabulary | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens before and after those of a text that is read."""
    config = checkpoint.config
    if words is not None and words.model == _WORDS:
        named = (("add_source_bos", "<s>"), ("add_source_eos", "</s>"))
        ids = [(words.tokens.index(token),) if config.get(name) else () for name, token in named]
        return ids[0], ids[1]
    end = config.get("eos_token_id")
    begins = checkpoint.model_type == "bart" and isinstance(config.get("bos_token_id"), int)
    return ((config["bos_token_id"],) if begins else ()), ((end,) if isinstance(end, int) else ())


def _start(checkpoint: Checkpoint) -> int:
    """Return the token that texts begin with."""
    config = Configuration(checkpoint.config, checkpoint.path)
    count = config.integer("decoder_vocab_size", config.integer("vocab_size"))
    for fields in (checkpoint.generation, checkpoint.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = fields.get(name)
            if type(found) is int and 0 <= found < count:
                return found
    raise ModelFileError(
        "does not say which of the model's tokens texts begin with",
        path=checkpoint.path,
        place="field 'decoder_start_token_id' of the configuration",
        remedy="use the configuration that came with the weights",
    )


def _has_letters(vocabulary: Vocabulary) -> bool:
    """Say whether all words are single letters, but those in brackets."""
    return vocabulary.model == _WORDS and all(
        len(token) == 1 or (token[0], token[-1]) == ("<", ">") for token in vocabulary.tokens if token
    )
