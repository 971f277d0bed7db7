"""`SearchOptions`: which continuation of a text is looked for, and what may not stand in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from educe.errors import OptionError
from educe.generate.configuration import Configuration, is_number
from educe.generate.logits import penalised
from educe.generate.timestamps import TimestampRules
from educe.model.checkpoint import Checkpoint

_MOST_BEAMS = 64
# Within these, what scores are multiplied and divided by is far from the ends of 32-bit floats.
_REALS = {"length_penalty": (-5, 5), "repetition_penalty": (0.01, 100)}
_NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Which continuation is looked for: the fields of Hugging Face's generation_config.json of these names.

    Attributes:
        num_beams: How many texts are continued side by side; 1 takes the likeliest token each time.
        length_penalty: The power of a text's length that its score is divided by, from -5 to 5.
        early_stopping: Whether the search ends with as many finished texts as beams; ``never`` ends it when
            none can become better.
        max_length: Most tokens of a text, those that it begins with included.
        min_length: Fewest tokens before one that ends it.
        no_repeat_ngram_size: Of how many tokens no sequence may stand twice; 0 allows all.
        repetition_penalty: What the score of a token that the text has is multiplied by, from 0.01 to 100.
        eos_token_ids: The tokens that end a text.
        forced_bos_token_id: The token after the first.
        forced_eos_token_ids: The tokens of which the last is one where a text would become too long.
        suppress_tokens: Tokens that never stand in a text.
        begin_suppress_tokens: Tokens that no text begins with.
        bad_words_ids: Sequences of tokens that never stand in a text.
        timestamps: Where timestamps may stand, in a transcript.

    Raises:
        OptionError: a value that it cannot have.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    max_length: int = 256
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    eos_token_ids: Collection[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: Sequence[int] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    timestamps: TimestampRules | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_beams", 1, _MOST_BEAMS),
            ("max_length", 1, None),
            ("min_length", 0, None),
            ("no_repeat_ngram_size", 0, None),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least or (most is not None and value > most):
                expected = f"at least {least}" if most is None else f"from {least} to {most}"
                raise OptionError(f"is {value!r}; it has to be a whole number {expected}", place=name)
        if self.early_stopping not in (True, False, "never"):
            raise OptionError(
                f"is {self.early_stopping!r}", place="early_stopping", remedy="True, False or 'never'"
            )
        for name, (low, high) in _REALS.items():
            if not is_number(getattr(self, name)) or not low <= getattr(self, name) <= high:
                cause = f"is {getattr(self, name)!r}; it has to be a number from {low:g} to {high:g}"
                raise OptionError(cause, place=name)

    @classmethod
    def of_model(cls, checkpoint: Checkpoint, longest: int) -> SearchOptions:
        """Return what a model's files say; where generation_config.json says nothing, config.json may.

        Raises:
            ModelFileError: a field cannot be, or names a token that the model lacks.
        """
        said = {name: value for name, value in checkpoint.generation.items() if value is not None}
        found = {**checkpoint.config, **said}
        fields = Configuration(found, checkpoint.path, "generation_config.json or config.json")
        count = fields.integer("decoder_vocab_size", fields.integer("vocab_size"))
        early = found.get("early_stopping")
        return cls(
            num_beams=fields.integer("num_beams", 1, most=_MOST_BEAMS),
            length_penalty=_real(fields, "length_penalty"),
            early_stopping=early if early == "never" else fields.truth("early_stopping", False),
            max_length=min(fields.integer("max_length", cls.max_length), longest),
            min_length=fields.integer("min_length", 0, least=0),
            no_repeat_ngram_size=fields.integer("no_repeat_ngram_size", 0, least=0),
            repetition_penalty=_real(fields, "repetition_penalty"),
            eos_token_ids=frozenset(fields.token_ids("eos_token_id", count)),
            forced_bos_token_id=next(iter(fields.token_ids("forced_bos_token_id", count)), None),
            forced_eos_token_ids=fields.token_ids("forced_eos_token_id", count),
            suppress_tokens=fields.token_ids("suppress_tokens", count),
            begin_suppress_tokens=fields.token_ids("begin_suppress_tokens", count),
            bad_words_ids=fields.token_sequences("bad_words_ids", count),
        )


def _real(fields: Configuration, name: str) -> float:
    value, (least, most) = fields.number(name, 1.0), _REALS[name]
    if not least <= value <= most:
        raise fields.error(name, f"is {value}, where a number from {least:g} to {most:g} is expected")
    return value


def allowed(scores: np.ndarray, tokens: Sequence[int], prompt: int, options: SearchOptions) -> np.ndarray:
    """Return the scores of the next token, minus infinity for those that may not come.

    The rules are applied in the order of Hugging Face's logits processors.

    Args:
        scores: Logits or log-probabilities f32[vocabulary]; not modified.
        tokens: The text so far, with what it begins with.
        prompt: How many tokens it begins with.
        options: The rules.
    """
    scores = scores.copy()
    if options.repetition_penalty != 1:
        seen = np.unique(tokens)
        scores[seen] = penalised(scores[seen], options.repetition_penalty)
    size = options.no_repeat_ngram_size
    if size and len(tokens) + 1 >= size:
        scores[_repeating(tokens, size)] = _NEVER
    for word in options.bad_words_ids:
        if len(word) == 1 or tuple(tokens[1 - len(word) :]) == tuple(word[:-1]):
            scores[word[-1]] = _NEVER
    if len(tokens) < options.min_length:
        scores[list(options.eos_token_ids)] = _NEVER
    if options.forced_bos_token_id is not None and len(tokens) == 1:
        return _only(scores, [options.forced_bos_token_id])
    if options.forced_eos_token_ids and len(tokens) == options.max_length - 1:
        return _only(scores, options.forced_eos_token_ids)
    scores[list(options.suppress_tokens)] = _NEVER
    if len(tokens) == prompt:
        scores[list(options.begin_suppress_tokens)] = _NEVER
    if options.timestamps is not None:
        options.timestamps.apply(scores, tokens[prompt:])
    return scores


def _repeating(tokens: Sequence[int], size: int) -> list[int]:
    """Return the tokens that would make a sequence of `size` stand twice."""
    end = tuple(tokens[len(tokens) + 1 - size :])
    starts = range(len(tokens) - size + 1)
    return [tokens[start + size - 1] for start in starts if tuple(tokens[start : start + size - 1]) == end]


def _only(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    found = np.full_like(scores, _NEVER)
    found[list(tokens)] = 0
    return found
