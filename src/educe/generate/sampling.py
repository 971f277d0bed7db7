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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from educe.errors import InputError
from educe.generate.filters import kept, kth_largest
from educe.generate.logits import likeliest, log_softmax, penalised
from educe.generate.options import SamplingOptions

# Elements whose weights are added in single precision before a draw is located among them.
_BLOCK = 512
# Of each byte of a mask: what is added to the logits of its eight tokens, the lowest bit first.
_MASK_BIAS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0),
    np.float32(-np.inf),
)


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


@dataclass(frozen=True, eq=False)
class Draft:
    """Tokens proposed by something cheaper than the model.

    Attributes:
        tokens: The proposal, in order.
        probabilities: What each was drawn from, f32[len(tokens), vocabulary]; None where no chance was
            involved, as in the lookup of a prompt.
    """

    tokens: Sequence[int]
    probabilities: np.ndarray | None = None


class SamplingState:
    """What the sampler knows of one sequence: its options, its tokens, its place among the random numbers.

    Args:
        options: How its tokens are chosen.
        prompt: The tokens before the text.
        number: The sequence's own number among those with one seed: the index among `n` texts. A draft
            model's state takes another, so that its draws are independent of the verification's.
        end_ids: The tokens that end a text.
        constraint: What the text has to follow.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Iterable[int] = (),
        *,
        number: int = 0,
        end_ids: Iterable[int] = (),
        constraint: Mask | None = None,
    ) -> None:
        self.options = options
        self.constraint = constraint
        self.tokens: list[int] = []
        self.end_ids = np.array(sorted(set(end_ids)), np.int64)
        self._key = (secrets.randbits(64) if options.seed is None else options.seed, number)
        self._bias_ids = np.array(list(options.logit_bias), np.int64)
        self._bias = np.array(list(options.logit_bias.values()), np.float32)
        self._history = _History(prompt) if options.penalises else None

    @property
    def plain(self) -> bool:
        """Whether the next token is the largest of the logits as they are."""
        return self.options.greedy and not self.processes

    @property
    def processes(self) -> bool:
        """Whether logits are changed before the temperature."""
        penalised = self._history is not None or len(self._bias) > 0
        return penalised or self.constraint is not None or len(self.tokens) < self.options.min_tokens

    def push(self, token: int) -> None:
        """Append the next token of the text."""
        self.tokens.append(token)
        if self._history is not None:
            self._history.push(token)
        if self.constraint is not None:
            self.constraint.advance(token)

    def ends(self, token: int) -> bool:
        """Return whether `token` ends the text."""
        return not self.options.ignore_eos and token in self.end_ids

    def uniforms(self) -> tuple[float, float]:
        """Return two numbers in [0, 1) that seed, number and position alone decide (Salmon et al., 2011)."""
        source = np.random.Philox(key=self._key, counter=(0, len(self.tokens), 0, 0))
        first, second = (source.random_raw(2) >> np.uint64(11)) * 2.0**-53
        return float(first), float(second)

    def process(self, logits: np.ndarray) -> np.ndarray:
        """Return `logits`, f32[V], as the temperature finds them; the same array if nothing changes them."""
        if not self.processes:
            return logits
        logits = self._masked(logits)
        if len(self._bias):
            _check_ids(self._bias_ids, len(logits))
            logits[self._bias_ids] += self._bias
        if self._history is not None:
            self._history.penalise(logits, self.options)
        return logits

    def _masked(self, logits: np.ndarray) -> np.ndarray:
        size = len(logits)
        if self.constraint is None:
            logits = logits.copy()
        else:
            logits = np.take(_MASK_BIAS, self.constraint.mask(), axis=0).reshape(-1)[:size] + logits
        if len(self.tokens) < self.options.min_tokens and len(self.end_ids):
            kept = logits[self.end_ids]
            logits[self.end_ids] = -np.inf
            if logits.max() == -np.inf:
                logits[self.end_ids] = kept
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
        _check_ids(ids, len(logits))
        values = penalised(logits[ids], options.repetition_penalty)
        values -= np.float32(options.frequency_penalty) * counts
        values -= np.float32(options.presence_penalty) * (counts > 0)
        logits[ids] = values


class Sampler:
    """Chooses tokens from rows of logits; it keeps nothing between calls."""

    def sample(self, logits: np.ndarray, states: Sequence[SamplingState]) -> list[Choice]:
        """Choose a token for each row, and append it to the row's state.

        Args:
            logits: f32[rows, vocabulary]; not modified.
            states: One for each row.

        Raises:
            EngineError: a row with a logit that is no number, or with none that is allowed.
        """
        return [self._take(row, state, _draw(row, state)) for row, state in zip(logits, states, strict=True)]

    def verify(self, logits: np.ndarray, state: SamplingState, draft: Draft) -> list[Choice]:
        """Choose tokens as long as the draft agrees, and one more; append them to the state.

        For a draft without probabilities each token is chosen as without a draft, so that the text is the
        same, token by token; a draft's token is accepted with exactly its probability. For one with
        probabilities it is accepted and replaced as by Leviathan et al. (2023), so that the distribution is
        the same.

        Args:
            logits: f32[len(draft.tokens) + 1, vocabulary], of the text so far and of each token of the draft
                after it.
            state: The sequence's.
            draft: The proposal.
        """
        choices: list[Choice] = []
        for position, row in enumerate(logits):
            proposed = draft.tokens[position] if position < len(draft.tokens) else None
            if proposed is None or draft.probabilities is None or state.options.greedy:
                token = _draw(row, state)
            else:
                token = _accept(self.distribution(row, state), draft.probabilities[position], proposed, state)
            choices.append(self._take(row, state, token))
            if token != proposed or state.ends(token):
                break
        return choices

    def distribution(self, logits: np.ndarray, state: SamplingState) -> np.ndarray:
        """Return what the next token is drawn from, f64[vocabulary], for `logits`, f32[vocabulary]."""
        probabilities = np.zeros(len(logits))
        processed = state.process(logits)
        if state.options.greedy:
            probabilities[likeliest(processed)] = 1
            return probabilities
        ids, weights = kept(processed, state.options)
        probabilities[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
        return probabilities

    @staticmethod
    def _take(logits: np.ndarray, state: SamplingState, token: int) -> Choice:
        state.push(token)
        if state.options.logprobs is None:
            return Choice(token)
        return log_probabilities(logits, token, state.options.logprobs)


def log_probabilities(logits: np.ndarray, token: int, count: int) -> Choice:
    """Return `token` with its log-probability and those of the `count` likeliest, for `logits`, f32[V].

    Raises:
        EngineError: a logit is no number.
    """
    logprobs = log_softmax(logits)
    ids = np.flatnonzero(logits >= kth_largest(logits, count)) if count else np.empty(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    top = tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
    return Choice(token, float(logprobs[token]), top)


def _draw(logits: np.ndarray, state: SamplingState) -> int:
    processed = state.process(logits)
    if state.options.greedy:
        return likeliest(processed)
    ids, weights = kept(processed, state.options)
    index = _locate(weights, state.uniforms()[0])
    return index if ids is None else int(ids[index])


def _accept(ours: np.ndarray, theirs: np.ndarray, proposed: int, state: SamplingState) -> int:
    """Return `proposed`, drawn from `theirs`, or another, so that the answer is distributed as `ours`."""
    accepting, replacing = state.uniforms()
    if accepting * float(theirs[proposed]) < float(ours[proposed]):
        return proposed
    rest = np.maximum(ours - theirs, 0)
    return _locate(rest if rest.any() else ours, replacing)


def _locate(weights: np.ndarray, uniform: float) -> int:
    """Return the index at which the running sum of `weights` passes the share `uniform` of the whole."""
    starts = np.arange(0, len(weights), _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), len(sums) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    target -= sums[block - 1] if block else 0
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), target, side="right"))
    return block * _BLOCK + min(index, int(np.flatnonzero(inside)[-1]))


def _check_ids(ids: np.ndarray, size: int) -> None:
    if len(ids) and int(ids.max()) >= size:
        raise InputError(
            f"token {int(ids.max())} is not among the model's {size:,}",
            place="logit_bias or prompt",
            remedy="give ids of this model's tokenizer",
        )
