"""`Fallback`: whether a window's text is believed, or is written again at a higher temperature.

This is section 4.5 of Radford et al. (2022, arxiv:2212.04356), with the bounds of OpenAI's program.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from educe.errors import OptionError
from educe.generate.configuration import is_number

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_TEMPERATURE = 100
# A text that was drawn at a higher one is no context for what comes next.
_MOST_OF_CONTEXT = 0.5


@dataclass(frozen=True)
class Written:
    """A text about a window.

    Attributes:
        tokens: Its tokens, without what begins and ends it.
        text: What they say.
        logprob: The mean of the log-probabilities of its tokens and its end.
        no_speech: The probability that nothing is said in the window.
        temperature: At which its tokens were drawn.
    """

    tokens: Sequence[int]
    text: str
    logprob: float
    no_speech: float
    temperature: float

    @property
    def compression_ratio(self) -> float:
        """How many times as large the text is as what zlib makes of it; large where it repeats itself."""
        content = self.text.encode()
        return len(content) / len(zlib.compress(content))

    @property
    def is_context(self) -> bool:
        """Whether what comes next may be written after it."""
        return self.temperature <= _MOST_OF_CONTEXT


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """Which texts are believed. Where one is not, the next temperature writes another, and the last is kept.

    Attributes:
        temperature: The temperatures, in their order.
        compression_ratio_threshold: A text above it repeats itself; None believes all.
        logprob_threshold: A text below it is not what was said; None believes all.
        no_speech_threshold: Above it nothing is said, where the text is below `logprob_threshold`, too; None
            has something said everywhere.

    Raises:
        OptionError: a value that it cannot have.
    """

    temperature: Sequence[float] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6

    def __post_init__(self) -> None:
        given = self.temperature
        if not (isinstance(given, Sequence) and given and all(map(_is_temperature, given))):
            raise OptionError(
                f"expected numbers from 0 to {_MOST_TEMPERATURE}, found {given!r}", place="temperature"
            )
        for name in ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise OptionError(f"expected a number, found {value!r}", place=name)

    def is_silent(self, written: Written) -> bool:
        """Say whether nothing is said in the window."""
        if self.no_speech_threshold is None or written.no_speech <= self.no_speech_threshold:
            return False
        return self.logprob_threshold is None or written.logprob < self.logprob_threshold

    def believes(self, written: Written) -> bool:
        """Say whether a text is what is said in the window."""
        ratio, logprob = self.compression_ratio_threshold, self.logprob_threshold
        is_loop = ratio is not None and written.compression_ratio > ratio
        is_unlikely = logprob is not None and written.logprob < logprob
        return not is_loop and not is_unlikely


def _is_temperature(value: object) -> bool:
    return is_number(value) and 0 <= value <= _MOST_TEMPERATURE
