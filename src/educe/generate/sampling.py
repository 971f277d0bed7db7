"""Logits to tokens: processors, draws by counter, log-probabilities, and the verification of drafts.

What happens to a row of logits, in this order:

1. a constraint's mask; the tokens that end a text, before `min_tokens` (they stay where nothing else is
   allowed);
2. `logit_bias`;
3. `repetition_penalty` over prompt and text, then `frequency_penalty` and `presence_penalty` over the text;
4. `temperature`;
5. `top_k`, `top_p`, `min_p`, `typical_p`, each on what the ones before it leave.

1 to 4 are vLLM's order and, for what it has of them, Hugging Face's; 5 is Hugging Face's. vLLM applies
`min_p` before the other two, so that its `top_p` is a share of what `min_p` leaves. Tokens equal to the last
one kept are kept.

Log-probabilities are the model's own, before any of this, as OpenAI's and vLLM's are.

Every row is computed by itself: a row of a large vocabulary fills a core's cache, and its bits depend on no
other row.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from educe.generate.filters import BLOCK, block_sums, kept
from educe.generate.logits import largest, likeliest, log_sum_exp, penalised
from educe.generate.options import SamplingOptions

# Of each byte of a mask: what is added to the logits of its eight tokens, the lowest bit first.
_MASK_BIAS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0),
    np.float32(-np.inf),
)
_NONE = np.empty(0, np.int64)


class Mask(Protocol):
    """What the sampler needs of a constraint."""

    def mask(self) -> np.ndarray:
        """Return a bit for each token that may come next, u8[(vocabulary + 7) // 8], the lowest first."""

    def advance(self, token: int) -> None:
        """Take the next token."""


@dataclass(frozen=True)
class Choice:
    """One chosen token.

    Attributes:
        token: Its id.
        logprob: The model's own log-probability of it; None where none was asked for.
        top: The likeliest tokens with theirs, best first; of equals, the smaller id.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class SamplingState:
    """What sampling knows of one text: its options, its tokens, its place among the random numbers.

    Args:
        options: How its tokens are chosen.
        prompt: The tokens before the text.
        number: The text's own number among those with one seed.
        end_ids: The tokens that end a text.
        num_tokens: One more than the largest token that a text may get; None is all that there are logits of.
        gaps: The tokens below it that no text gets, i64[n].
        constraint: What the text has to follow.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Iterable[int] = (),
        *,
        number: int = 0,
        end_ids: Collection[int] = (),
        num_tokens: int | None = None,
        gaps: np.ndarray = _NONE,
        constraint: Mask | None = None,
    ) -> None:
        self.options = options
        self.constraint = constraint
        self.tokens: list[int] = []
        self._end_ids = np.array(sorted(end_ids), np.int64)
        self._num_tokens, self._gaps = num_tokens, gaps
        seed = secrets.randbits(64) if options.seed is None else options.seed
        self._random = np.random.Philox(key=np.array([seed % 2**64, number], np.uint64))
        self._place = self._random.state
        self._bias_ids = np.array(list(options.logit_bias), np.int64)
        self._bias = np.array(list(options.logit_bias.values()), np.float32)
        self._history = _History(prompt) if options.penalises else None

    def push(self, token: int) -> None:
        """Append the next token of the text."""
        self.tokens.append(token)
        if self._history is not None:
            self._history.push(token)
        if self.constraint is not None:
            self.constraint.advance(token)

    def ends(self, token: int) -> bool:
        """Return whether `token` ends the text."""
        return not self.options.ignore_eos and token in self._end_ids

    def uniform(self) -> float:
        """Return a number in [0, 1) that seed, number and position alone decide (Salmon et al., 2011)."""
        self._place["state"]["counter"][1] = len(self.tokens)
        self._random.state = self._place
        return float((self._random.random_raw() >> 11) * 2.0**-53)

    def process(self, logits: np.ndarray) -> np.ndarray:
        """Return `logits`, f32[V], as the temperature finds them, f32[num_tokens]; they are not modified."""
        if self._changes:
            logits = self._masked(logits)
            logits[self._bias_ids] += self._bias
            if self._history is not None:
                self._history.penalise(logits, self.options)
        return logits[: self._num_tokens]

    @property
    def _changes(self) -> bool:
        """Whether logits are changed before the temperature."""
        masks = self.constraint is not None or len(self._gaps) > 0 or self._is_short
        return masks or self._history is not None or len(self._bias) > 0

    @property
    def _is_short(self) -> bool:
        return len(self.tokens) < self.options.min_tokens

    def _masked(self, logits: np.ndarray) -> np.ndarray:
        """Return a copy in which what may not come is minus infinity."""
        if self.constraint is None:
            logits = logits.copy()
        else:
            logits = np.take(_MASK_BIAS, self.constraint.mask(), axis=0).reshape(-1)[: len(logits)] + logits
        logits[self._gaps] = -np.inf
        if self._is_short:
            kept = logits[self._end_ids]
            logits[self._end_ids] = -np.inf
            if logits[: self._num_tokens].max() == -np.inf:
                logits[self._end_ids] = kept
        return logits


class _History:
    """How often a sequence has each token, in arrays that grow with the distinct ones."""

    def __init__(self, prompt: Iterable[int]) -> None:
        ids = sorted(set(prompt))
        self._slots = {token: slot for slot, token in enumerate(ids)}
        self._ids = np.array([*ids, *[0] * 16], np.int64)
        self._counts = np.zeros(len(self._ids), np.float32)

    def push(self, token: int) -> None:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._counts[slot] += 1

    def penalise(self, logits: np.ndarray, options: SamplingOptions) -> None:
        ids, counts = self._ids[: len(self._slots)], self._counts[: len(self._slots)]
        values = penalised(logits[ids], options.repetition_penalty)
        values -= np.float32(options.frequency_penalty) * counts
        values -= np.float32(options.presence_penalty) * (counts > 0)
        logits[ids] = values


def sample(logits: np.ndarray, state: SamplingState, draft: Sequence[int] = ()) -> list[Choice]:
    """Choose tokens as long as they are those of a draft, and one more; append them to the state.

    Each token is chosen as without a draft, so that the text is the same, token by token.

    Args:
        logits: f32[len(draft) + 1, vocabulary], after the text so far and after each token of the draft; not
            modified.
        state: The text's.
        draft: A guess at the next tokens.

    Raises:
        EngineError: a logit is no number, or no token is allowed.
    """
    choices: list[Choice] = []
    for row, guess in zip(logits, [*draft, None], strict=True):
        token = _draw(row, state)
        state.push(token)
        count = state.options.logprobs
        choices.append(Choice(token) if count is None else log_probabilities(row, token, count))
        if token != guess or state.ends(token):
            break
    return choices


def log_probabilities(logits: np.ndarray, token: int, count: int) -> Choice:
    """Return `token` with its log-probability and those of the `count` likeliest, for `logits`, f32[V].

    Raises:
        EngineError: a logit is no number.
    """
    log_sum = float(log_sum_exp(logits)[0])
    ids = largest(logits, count) if count else _NONE
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    top = tuple((index, float(logits[index]) - log_sum) for index in ids.tolist())
    return Choice(token, float(logits[token]) - log_sum, top)


def _draw(logits: np.ndarray, state: SamplingState) -> int:
    processed = state.process(logits)
    if state.options.greedy:
        return likeliest(processed)
    ids, weights = kept(processed, state.options)
    index = _locate(weights, state.uniform())
    return index if ids is None else int(ids[index])


def _locate(weights: np.ndarray, uniform: float) -> int:
    """Return the index at which the running sum of `weights` passes the share `uniform` of the whole."""
    sums = np.cumsum(block_sums(weights), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), len(sums) - 1)
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    target -= sums[block - 1] if block else 0
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), target, side="right"))
    return block * BLOCK + min(index, int(np.flatnonzero(inside)[-1]))
