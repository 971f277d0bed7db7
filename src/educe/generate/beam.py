"""`BeamSearch` and `Sampling`: which texts are continued, and which one is the answer.

Both are policy, and know no model: `step` is given the scores of the next token of each text that runs, and
says which texts run next. What the search does with them is what Hugging Face's library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from educe.generate.logits import check_largest, log_softmax
from educe.generate.options import SamplingOptions
from educe.generate.sampling import SamplingState, sample
from educe.generate.search import SearchOptions


@dataclass(frozen=True)
class Hypothesis:
    """A text in the making, or a finished one.

    Attributes:
        tokens: All its tokens, with those that it begins with.
        score: The sum of its log-probabilities; of a finished one, over a power of its length.
        parent: The number of the text that it continues, among those that ran.
    """

    tokens: tuple[int, ...]
    score: float
    parent: int = 0


class Search(Protocol):
    """The search for one continuation."""

    @property
    def running(self) -> Sequence[Hypothesis]:
        """The texts whose next tokens are to be scored; none if the search is over."""

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return what rules are applied to, of the logits of the running texts, f32[running, vocabulary].

        Raises:
            EngineError: a logit is no number.
        """

    def step(self, scores: np.ndarray) -> None:
        """Continue the running texts by their scores, f32[running, vocabulary], minus infinity for never.

        Raises:
            EngineError: a score is no number, or no token may come next and no text has ended.
        """

    def best(self) -> Hypothesis:
        """Return the answer of a search that is over."""


class Sampling:
    """Takes the likeliest token each time, or draws one.

    Args:
        prompt: What the text begins with.
        options: When it ends.
        temperature: What scores are divided by before a token is drawn; 0 takes the likeliest. The same
            scores give the same text.
    """

    def __init__(self, prompt: Sequence[int], options: SearchOptions, temperature: float = 0.0) -> None:
        self.running: list[Hypothesis] = [Hypothesis(tuple(prompt), 0.0)]
        # Other temperatures draw by other random numbers, so that one does not repeat what another wrote.
        seed = round(temperature * 1000)
        self._state = SamplingState(SamplingOptions(temperature=temperature, seed=seed))
        self._prompt, self._options = len(prompt), options
        self._best = self.running[0]

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """See `Search.scores`; the logits themselves."""
        return logits

    def step(self, scores: np.ndarray) -> None:
        """See `Search.step`."""
        token = sample(scores, self._state)[0].token
        text = self._best
        chance = float(log_softmax(scores[0])[token])
        self._best = Hypothesis((*text.tokens, token), text.score + chance)
        self.running = [] if _ends(self._best, self._options) else [self._best]

    def best(self) -> Hypothesis:
        """See `Search.best`."""
        return Hypothesis(self._best.tokens, _normed(self._best, self._prompt, self._options))


class BeamSearch:
    """Continues several texts side by side, the likeliest of all that one more token makes of them.

    Args:
        prompt: What all texts begin with.
        options: How many texts, and when the search ends.
    """

    def __init__(self, prompt: Sequence[int], options: SearchOptions) -> None:
        self.running: list[Hypothesis] = [Hypothesis(tuple(prompt), 0.0)]
        self._finished: list[Hypothesis] = []
        self._prompt, self._options = len(prompt), options
        self._kept = max(2, 1 + len(options.eos_token_ids)) * options.num_beams

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """See `Search.scores`; log-probabilities."""
        return log_softmax(logits)

    def step(self, scores: np.ndarray) -> None:
        """See `Search.step`."""
        most = self._options.num_beams
        found = self._likeliest(scores)
        if not found and not self._finished:
            check_largest(scores.max())
        ends = [_ends(text, self._options) for text in found]
        finished = [text for text, ended in zip(found[:most], ends, strict=False) if ended]
        self._finish(finished)
        self.running = [text for text, ended in zip(found, ends, strict=True) if not ended][:most]
        if self._is_over():
            self.running = []

    def best(self) -> Hypothesis:
        """See `Search.best`."""
        return self._finished[0]

    def _likeliest(self, scores: np.ndarray) -> list[Hypothesis]:
        """Return the best continuations, best first; of equals, the one that comes first."""
        totals = scores + np.array([text.score for text in self.running], np.float32)[:, None]
        flat = totals.ravel()
        count = min(self._kept, len(flat))
        least = np.partition(flat, len(flat) - count)[len(flat) - count]
        places = np.flatnonzero(flat >= least)
        order = places[np.argsort(-flat[places], kind="stable")][:count]
        found = []
        for place in order[np.isfinite(flat[order])]:
            parent, token = divmod(int(place), scores.shape[1])
            found.append(Hypothesis((*self.running[parent].tokens, token), float(flat[place]), parent))
        return found

    def _finish(self, texts: Sequence[Hypothesis]) -> None:
        if self._options.early_stopping is True and self._is_full:
            return
        done = [Hypothesis(text.tokens, _normed(text, self._prompt, self._options)) for text in texts]
        ranked = sorted([*self._finished, *done], key=lambda text: -text.score)
        self._finished = ranked[: self._options.num_beams]

    @property
    def _is_full(self) -> bool:
        return len(self._finished) == self._options.num_beams

    def _is_over(self) -> bool:
        """Say whether no text runs, or none may become better than those that are finished."""
        if not self.running:
            return True
        if not self._is_full:
            return False
        options, text = self._options, self.running[0]
        if options.early_stopping is True:
            return True
        length = len(text.tokens) - self._prompt
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = options.max_length - self._prompt
        highest = float(np.float32(text.score) / np.float32(length**options.length_penalty))
        return highest <= self._finished[-1].score


def search(prompt: Sequence[int], options: SearchOptions, temperature: float = 0.0) -> Search:
    """Return the search that the options ask for; one that draws tokens has one text."""
    if options.num_beams == 1:
        return Sampling(prompt, options, temperature)
    return BeamSearch(prompt, options)


def _ends(text: Hypothesis, options: SearchOptions) -> bool:
    return text.tokens[-1] in options.eos_token_ids or len(text.tokens) >= options.max_length


def _normed(text: Hypothesis, prompt: int, options: SearchOptions) -> float:
    length = max(1, len(text.tokens) - prompt)
    return float(np.float32(text.score) / np.float32(length**options.length_penalty))
