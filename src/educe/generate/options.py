"""`SamplingOptions`: how the next token is chosen, and when a text ends."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from educe.errors import ModelFileError, OptionError
from educe.model.checkpoint import Checkpoint

MOST_LOGPROBS = 20
_MOST_STOPS, _LONGEST_STOP = 64, 1024
# Below this the choice is the largest logit's, as in vLLM.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen, and when a text ends; `sampling` has the order of what they do.

    Numbers may be NumPy's; they become Python's.

    Attributes:
        temperature: What logits are divided by; 0 takes the likeliest token.
        top_k: Only so many likeliest tokens; 0 is all. Equals of the last one stay.
        top_p: Only the likeliest tokens that hold this share of the probability.
        min_p: Only tokens with at least this share of the likeliest token's probability.
        typical_p: Only the tokens of most typical information that hold this share (Meister et al., 2023).
        repetition_penalty: What a positive logit of a token of prompt or text is divided by, a negative
            times, from 0.01 to 100.
        presence_penalty: What is taken from the logit of a token that the text has.
        frequency_penalty: What is taken from it for each time.
        logit_bias: What is added to the logits of these tokens; one that spells nothing is not chosen for it.
        seed: The number that decides every draw, of 64 bits, with or without a sign; None is by chance.
        n: How many texts for one prompt.
        logprobs: How many of the likeliest tokens come with their log-probabilities; 0 is the chosen one's
            alone, None is none.
        stop: Texts that end the text, and are not part of it; one may be given alone.
        max_tokens: Most tokens; 0 only reads the prompt, None is as many as the context holds.
        min_tokens: Fewest tokens before one that ends the text; a text of `stop`, and the end of a form that
            is to be followed, end it all the same.
        ignore_eos: A token that ends the text is one like any other.

    Raises:
        OptionError: a value that it cannot have; its `place` is the field's name.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: str | Sequence[str] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (least, most) in (*_REALS.items(), *_COUNTS.items()):
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                self._set(name, check_number(name, value, least, most, name in _COUNTS))
        self._check_rest()
        self._set("stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        self._set("logit_bias", _checked_bias(self.logit_bias))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_rest(self) -> None:
        for name in ("top_p", "typical_p"):
            if getattr(self, name) <= 0:
                raise _wrong(name, getattr(self, name), "more than 0", "1.0 leaves it out")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}", "lower it")
        listed = isinstance(self.stop, Sequence) and self.stop != ""
        if not listed or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise _wrong("stop", self.stop, "a text, or a sequence of them, none empty", 'such as ("END",)')
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if len(stops) > _MOST_STOPS or max(map(len, stops), default=0) > _LONGEST_STOP:
            raise OptionError(
                f"there are more than {_MOST_STOPS}, or one has more than {_LONGEST_STOP:,} characters",
                place="stop",
                remedy="give fewer, or shorter ones",
            )
        if not isinstance(self.ignore_eos, bool):
            raise _wrong("ignore_eos", self.ignore_eos, "True or False", "give one of them")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < _GREEDY_BELOW

    @property
    def penalises(self) -> bool:
        """Whether the logits depend on the tokens before them."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


_REALS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_COUNTS: dict[str, tuple[float, float]] = {
    "top_k": (0, math.inf),
    "seed": (-(2**63), 2**64 - 1),
    "n": (1, 1024),
    "logprobs": (0, MOST_LOGPROBS),
    "max_tokens": (0, math.inf),
    "min_tokens": (0, math.inf),
}
_OF_MODELS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
_OPTIONAL = ("seed", "logprobs", "max_tokens")


def check_number(name: str, value: Any, least: float, most: float, whole: bool) -> Any:
    """Return an option as a number of Python's; a whole one, if `whole`.

    Raises:
        OptionError: it is no number within bounds.
    """
    kind: type[Any] = numbers.Integral if whole else numbers.Real
    if isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    what = "a whole number" if whole else "a number"
    if least > -math.inf:
        what += f" of at least {least}" if most == math.inf else f" from {least} to {most}"
    raise _wrong(name, value, what, "give such a number, or leave it out")


def _checked_bias(given: Any) -> dict[int, float]:
    if not isinstance(given, Mapping):
        raise _wrong("logit_bias", given, "a mapping", "such as {7: -100}")
    checked = {}
    for token, bias in given.items():
        try:
            index = check_number("logit_bias", token, 0, math.inf, True)
            checked[index] = check_number("logit_bias", bias, -100, 100, False)
        except OptionError:
            raise OptionError(
                f"has {token!r}: {bias!r}; each is a token, from 0, and a number from -100 to 100",
                place="logit_bias",
                remedy="such as {7: -100}",
            ) from None
    return checked


def _wrong(name: str, value: object, expected: str, remedy: str) -> OptionError:
    return OptionError(f"is {value!r}; it has to be {expected}", place=name, remedy=remedy)


def sampling_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how a model's generation_config.json would have its tokens chosen.

    Raises:
        ModelFileError: it has a value that an option does not take.
    """
    generation = checkpoint.generation
    named = {name: generation[name] for name in _OF_MODELS if generation.get(name) is not None}
    if not generation.get("do_sample"):
        named = {**{name: named[name] for name in named if name == "repetition_penalty"}, "temperature": 0.0}
    if generation.get("max_new_tokens"):
        named["max_tokens"] = generation["max_new_tokens"]
    try:
        SamplingOptions(**named)
    except OptionError as error:
        raise ModelFileError(
            f"{error.place} {error.cause}",
            path=checkpoint.path,
            place="generation_config.json",
            remedy="use the file that came with the weights",
        ) from None
    return named
