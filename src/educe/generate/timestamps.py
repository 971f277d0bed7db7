"""Where timestamps may stand in a text of Whisper, and how they divide it (arxiv:2212.04356, section 2.3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NEVER = float("-inf")


@dataclass(frozen=True)
class TimestampRules:
    """The tokens that stand for times in a window of sound.

    Attributes:
        first: The token of the window's start; those after it are a step later each.
        end: The token that ends a text; all words have smaller ids.
        none: The token that says that a text has no timestamps.
        most_initial: The largest step with which a text may begin; None allows all.
    """

    first: int
    end: int
    none: int
    most_initial: int | None = None

    def apply(self, scores: np.ndarray, written: Sequence[int]) -> None:
        """Set the scores of what may not follow to minus infinity, f32[vocabulary], in place.

        Timestamps stand in pairs but at the end, never go back, and come where together they are likelier
        than any word.

        Args:
            scores: Logits or log-probabilities; modified.
            written: The tokens of the text so far, without those that it begins with.
        """
        scores[self.none] = _NEVER
        was = [len(written) < number or written[-number] >= self.first for number in (1, 2)]
        if written and was[0]:
            if was[1]:
                scores[self.first :] = _NEVER
            else:
                scores[: self.end] = _NEVER
        stamps = [token for token in written if token >= self.first]
        if stamps:
            is_open = was[0] and not was[1]
            scores[self.first : stamps[-1] + (not is_open)] = _NEVER
        if not written:
            scores[: self.first] = _NEVER
            if self.most_initial is not None:
                scores[self.first + self.most_initial + 1 :] = _NEVER
        times, words = scores[self.first :], scores[: self.first]
        if times.max() > _NEVER and np.logaddexp.reduce(times.astype(np.float64)) > words.max():
            scores[: self.first] = _NEVER


@dataclass(frozen=True)
class Piece:
    """A part of a window.

    Attributes:
        start: The step at which it begins.
        end: The step at which it ends; None for the end of the window.
        tokens: What is said, and the timestamps around it.
    """

    start: int
    end: int | None
    tokens: list[int]


def divided(tokens: Sequence[int], first: int) -> tuple[list[Piece], int | None]:
    """Return what a window's text says, and at which step the next window begins.

    Two timestamps side by side end one piece and begin the next. What is said after the last of them is not
    whole, unless a timestamp ends it: it is left to the next window.

    Args:
        tokens: The text, without what begins and ends it.
        first: The token of the window's start.

    Returns:
        The pieces, and the step; None for the end of the window.
    """
    cuts = [at for at in range(1, len(tokens)) if min(tokens[at - 1], tokens[at]) >= first]
    is_ended = len(tokens) > 1 and tokens[-1] >= first > tokens[-2]
    if not cuts:
        stamps = [token - first for token in tokens if token >= first]
        start = stamps[0] if stamps and tokens[0] >= first else 0
        end = stamps[-1] if stamps and stamps[-1] > start else None
        return [Piece(start, end, list(tokens))], None
    resume = None if is_ended or tokens[cuts[-1] - 1] == first else tokens[cuts[-1] - 1] - first
    cuts += [len(tokens)] if is_ended else []
    parts = [tokens[start:stop] for start, stop in itertools.pairwise([0, *cuts])]
    found = []
    for part in parts:
        stamps = [token - first for token in part if token >= first]
        found.append(Piece(stamps[0], stamps[-1], list(part)))
    return found, resume
