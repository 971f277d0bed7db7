"""`Rotary`: the angles by which positions turn queries and keys (Su et al., 2021, arxiv:2104.09864)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from educe.errors import UnsupportedModelError, nearest
from educe.generate.configuration import Configuration

THETA = 10_000.0
"""The base of frequencies where a configuration has none."""


class Rotary:
    """The angles of a model, or of one kind of its layers.

    Some scalings turn longer texts more slowly: DynamicNTK by the text's length, LongRoPE by whether it is
    longer than those of the training. The length is that which a text may reach in the end, its span, and not
    that which it has: keys in the cache would otherwise be turned by other frequencies than new ones, and the
    answer would depend on how the text is cut into steps.

    Args:
        config: Hugging Face's: `rope_parameters`, or `rope_theta` and `rope_scaling` of older ones.
        features: Features of a head.
        layer_type: The kind of layers, if the configuration has parameters for each kind.

    Attributes:
        features: Features of a head that are turned; the first ones.

    Raises:
        ModelFileError: the configuration has a field that cannot be.
        UnsupportedModelError: the scaling is none of `SCALINGS`.
    """

    def __init__(self, config: Configuration, features: int, layer_type: str = "") -> None:
        given = config.section("rope_parameters" if "rope_parameters" in config else "rope_scaling")
        given = given.section(layer_type) if layer_type in given else given
        theta = given.number("rope_theta", config.number("rope_theta", THETA, above=1), above=1)
        name = "partial_rotary_factor"
        self.features = int(features * given.number(name, config.number(name, 1.0, above=0), above=0))
        if self.features % 2 or not 0 < self.features <= features:
            raise config.error(name, f"turns {self.features:,} of {features:,} features, which are no pairs")
        kind = given.text("rope_type", given.text("type", "default"))
        if kind not in SCALINGS:
            reason = f"positions scaled by {kind!r} are not run yet"
            raise UnsupportedModelError(reason, remedy=nearest(kind, SCALINGS))
        self._table = SCALINGS[kind](_Frequencies(config, given, theta, self.features))

    def rows(self, positions: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines and sines of tokens, each f32[T, features / 2].

        Args:
            positions: Where each token stands in its text, i64[T].
            spans: How many positions the text of each may have in the end, i64[T].
        """
        table, places = self._table, positions.astype(np.float32)[:, None]
        angles = places * table.frequencies
        if table.beyond is not None:
            alike = np.minimum(spans, table.last)
            for span in np.unique(alike[alike > table.border]):
                chosen = alike == span
                angles[chosen] = places[chosen] * table.beyond(int(span))
        factor = np.float32(table.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor

    def salt(self, span: int) -> bytes:
        """Return what is the same for spans of texts that are turned alike, and for no others."""
        table = self._table
        if table.beyond is None:
            return b""
        return max(table.border, min(span, table.last)).to_bytes(8, "little")


@dataclass(frozen=True)
class _Table:
    """Frequencies, and what cosines and sines are multiplied by.

    Attributes:
        frequencies: Radians by position of each pair, f32[features / 2].
        factor: What cosines and sines are multiplied by.
        border: The longest span of texts that are turned so.
        beyond: The frequencies for a longer span, if they are others.
        last: The span from which on they do not change any more.
    """

    frequencies: np.ndarray
    factor: float = 1.0
    border: int = 0
    beyond: Callable[[int], np.ndarray] | None = None
    last: int = 2**62


@dataclass(frozen=True)
class _Frequencies:
    """What a scaling starts from: the configuration, its part on rotation, the base, the features turned."""

    config: Configuration
    given: Configuration
    theta: float
    features: int

    def plain(self, stretch: float = 1.0) -> np.ndarray:
        """Return the frequencies of a base stretched by a factor, f32[features / 2]."""
        exponents = np.arange(0, self.features, 2, dtype=np.float32) / np.float32(self.features)
        frequencies: np.ndarray = (1 / np.float32(self.theta * stretch) ** exponents).astype(np.float32)
        return frequencies

    @property
    def factor(self) -> float:
        """How many times longer texts are than those of the training."""
        return self.given.number("factor", self.longest / self.original, above=0)

    @property
    def longest(self) -> int:
        """The length of the longest texts."""
        return self.config.integer("max_position_embeddings")

    @property
    def original(self) -> int:
        """The length of the longest texts in training."""
        name = "original_max_position_embeddings"
        source = self.config if name in self.config else self.given
        return source.integer(name, self.longest)


def _default(given: _Frequencies) -> _Table:
    return _Table(given.plain())


def _linear(given: _Frequencies) -> _Table:
    """All positions divided by a factor: Chen et al., 2023, arxiv.org/abs/2306.15595."""
    return _Table(given.plain() / np.float32(given.given.number("factor", above=0)))


def _dynamic(given: _Frequencies) -> _Table:
    """A base that grows with the text, DynamicNTK: Peng et al., 2023, arxiv.org/abs/2309.00071."""
    factor, longest = given.given.number("factor", above=0), given.longest
    exponent = given.features / max(given.features - 2, 1)

    def beyond(span: int) -> np.ndarray:
        return given.plain(max(factor * span / longest - (factor - 1), 1.0) ** exponent)

    return _Table(given.plain(), border=longest, beyond=beyond)


def _llama3(given: _Frequencies) -> _Table:
    """Low frequencies slowed down, and those between by a part: Llama 3.1, arxiv.org/abs/2407.21783."""
    fields = given.given
    factor, low = fields.number("factor", above=0), fields.number("low_freq_factor", above=0)
    high = fields.number("high_freq_factor", above=low)
    frequencies = given.plain()
    turns = given.original * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return _Table(((1 - share) * frequencies / factor + share * frequencies).astype(np.float32))


def _yarn(given: _Frequencies) -> _Table:
    """Pairs slowed down the less, the more often they turn in training: YaRN, arxiv.org/abs/2309.00071."""
    fields, factor, features = given.given, given.factor, given.features

    def pair(turns: float) -> float:
        """Return the number of the pair that turns so often in a text of the training."""
        return features * math.log(given.original / (turns * 2 * math.pi)) / (2 * math.log(given.theta))

    first, last = pair(fields.number("beta_fast", 32, above=0)), pair(fields.number("beta_slow", 1, above=0))
    if fields.truth("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, features - 1)
    ramp = (np.arange(features // 2) - first) / (last - first if last != first else 0.001)
    slowed = np.clip(ramp, 0, 1).astype(np.float32)
    frequencies = given.plain()
    mixed = frequencies / np.float32(factor) * slowed + frequencies * (1 - slowed)
    return _Table(mixed, _yarn_attention(fields, factor))


def _yarn_attention(fields: Configuration, factor: float) -> float:
    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(max(factor, 1.0)) + 1

    if "attention_factor" in fields:
        return fields.number("attention_factor", above=0)
    over, under = fields.number("mscale", 0), fields.number("mscale_all_dim", 0)
    return temperature(over) / temperature(under) if over and under else temperature(1)


def _longrope(given: _Frequencies) -> _Table:
    """Factors for each pair, others for texts longer than in training: LongRoPE, arxiv.org/abs/2402.13753."""
    fields, factor = given.given, given.factor
    short, long = (
        given.plain() / np.array(fields.numbers(name, given.features // 2), np.float32)
        for name in ("short_factor", "long_factor")
    )
    attention = 1.0
    if factor > 1 < given.original:
        attention = math.sqrt(1 + math.log(factor) / math.log(given.original))
    attention = fields.number("attention_factor", attention, above=0)
    return _Table(short, attention, given.original, lambda span: long, given.original + 1)


SCALINGS: dict[str, Callable[[_Frequencies], _Table]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}
"""The scalings of positions, as Hugging Face's configurations name them; LongRoPE's first name is ``su``."""
