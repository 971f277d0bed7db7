"""`Perplexity`: how well a model foretells a text of any length, read in windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from educe.errors import InputError, OptionError


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text that is read at once.

    Attributes:
        tokens: What the model reads.
        num_counted: How many tokens at the end count; those before them are what these are foretold from.
    """

    tokens: Sequence[int]
    num_counted: int


def windows(ids: Sequence[int], num_special: int, size: int, stride: int) -> Iterator[Window]:
    """Yield windows in which every token of a text counts once, all but one that has none before it.

    Each window begins with what begins every text of the model, so that it is read as the model has learnt
    to read.

    Args:
        ids: The text's tokens.
        num_special: How many of them, at the front, are the tokenizer's own and begin every text.
        size: Most tokens of a window.
        stride: Most tokens that count in a window after the first: the fewer, the more each is foretold from.

    Raises:
        InputError: nothing counts: the text has too few tokens.
        OptionError: size and stride do not fit each other.
    """
    special, body = list(ids[:num_special]), ids[num_special:]
    room = size - num_special
    first = min(room, len(body))
    most = room if special else room - 1
    if most < 1 or not 1 <= stride <= most:
        raise OptionError(
            f"expected a stride of 1 to {most} tokens in a window of {size}, found {stride}",
            place="stride",
            remedy="give a smaller stride, or a larger window",
        )
    if first < (1 if special else 2):
        raise InputError("there is nothing to weigh", remedy="give a text of several tokens")
    yield Window([*special, *body[:first]], first if special else first - 1)
    for start in range(first, len(body), stride):
        end = min(start + stride, len(body))
        yield Window([*special, *body[end - room : end]], end - start)


@dataclass(frozen=True, eq=False, repr=False)
class Perplexity:
    """How well a text is foretold; infinity where the model holds a token for impossible, or nearly so.

    Attributes:
        logprobs: The natural logarithm of each counted token's probability, f64[n].
        num_bytes: Bytes of the text that these tokens spell, as UTF-8.
    """

    logprobs: np.ndarray
    num_bytes: int

    def __repr__(self) -> str:
        return f"<Perplexity {self.per_token:.4g} of {self.num_tokens:,} tokens>"

    @property
    def num_tokens(self) -> int:
        """How many tokens count."""
        return len(self.logprobs)

    @property
    def per_token(self) -> float:
        """How many equally likely tokens would surprise as much, on average."""
        return _exp(-float(self.logprobs.mean()))

    @property
    def per_byte(self) -> float:
        """The same of bytes; unlike the number per token, it compares models of different tokenizers."""
        return _exp(-float(self.logprobs.sum()) / self.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        """How many bits a byte of the text takes, if the model compresses it."""
        return -float(self.logprobs.sum()) / self.num_bytes / math.log(2)

    @property
    def standard_error(self) -> float:
        """The standard error of `per_token`, as if tokens were independent.

        It is not a number where there is a single token, or `per_token` is infinite.
        """
        if self.num_tokens < 2 or math.isinf(self.per_token):
            return math.nan
        return self.per_token * float(self.logprobs.std(ddof=1)) / math.sqrt(self.num_tokens)


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
