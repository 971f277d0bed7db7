"""`Writing` and `Scoring`: what a sequence's logits become, a text or the chances of one that is given."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np

from educe.generate.draft import PromptLookup
from educe.generate.order import Order
from educe.generate.sampling import Choice, SamplingState, log_probabilities, sample
from educe.generate.sequence import FinishReason, Sequence
from educe.generate.stream import EndReason, Output, Piece
from educe.text.stopping import StopStrings
from educe.text.tool_calls import ContentDelta, Delta, ToolCall, ToolCallDelta, collect


class Writing:
    """One text in the making: its tokens are chosen, spelled, and held back while they may be a stop string.

    Args:
        index: Its number among the texts of one prompt.
        sequence: Its tokens.
        state: How they are chosen.
        order: How they are spelled, and what else becomes of them.
        lookup: What proposes tokens, if anything does.

    Attributes:
        index: Which of the texts of one prompt it is.
        sequence: Its tokens.
    """

    def __init__(
        self,
        index: int,
        sequence: Sequence,
        state: SamplingState,
        order: Order,
        lookup: PromptLookup | None,
    ) -> None:
        self.sequence = sequence
        self.index = index
        self._state, self._lookup = state, lookup
        self._decoder = order.spell()
        self._stops = StopStrings(order.stop)
        self._parser = order.parse() if order.parse else None
        self._deltas: list[Delta] = []
        # All of them together, once the text has ended.
        self._content, self._calls = "", tuple[ToolCall, ...]()
        self._choices: list[Choice] = []
        self._tokens: list[int] = []

    def propose(self) -> None:
        """Give the sequence a guess at its next tokens."""
        if self._lookup is not None:
            self.sequence.draft = self._lookup.propose(self.sequence.tokens)

    def choose(self, logits: np.ndarray, draft: Tokens[int]) -> list[Choice]:
        """Return the next tokens, as far as a draft holds and one more.

        Args:
            logits: f32[len(draft) + 1, vocabulary].
            draft: The guess that was read.

        Raises:
            EduceError: nothing can be chosen.
        """
        return sample(logits, self._state, draft)

    def take(self, choices: Tokens[Choice], reason: FinishReason | None) -> Piece:
        """Append tokens, and return what they add to the text.

        Args:
            choices: The tokens, as the sequence has taken them.
            reason: Why the sequence ends with them, if it does.
        """
        texts = []
        used = 0
        for choice in choices:
            used += 1
            if not (reason == "stop" and self._state.ends(choice.token)):
                texts.append(self._stops.push(self._decoder.push(choice.token)))
            if self.stopped:
                reason = "stop"
                break
        if reason and not self.stopped:
            texts += [self._stops.push(self._decoder.finish()), self._stops.finish()]
        added = tuple(choices[:used])
        tokens = tuple(choice.token for choice in added)
        logprobs = added if self._state.options.logprobs is not None else ()
        self._choices += logprobs
        self._tokens += tokens
        deltas = self._read("".join(texts), reason is not None)
        text = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
        calls = tuple(delta for delta in deltas if isinstance(delta, ToolCallDelta))
        if reason:
            self._content, self._calls = collect(self._deltas)
        return Piece(text, tokens, self.index, logprobs, calls, reason and self._end_reason(reason))

    def _read(self, text: str, is_end: bool) -> list[Delta]:
        """Return the content and the calls of tools that a text adds."""
        if self._parser is None:
            deltas: list[Delta] = [ContentDelta(text)]
        else:
            deltas = self._parser.push(text) + (self._parser.finish() if is_end else [])
        self._deltas += deltas
        return deltas

    def _end_reason(self, reason: FinishReason) -> EndReason:
        return "tool_calls" if reason == "stop" and self._calls else reason

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.found is not None

    def output(self, reason: FinishReason) -> Output:
        """Return the whole text, which has ended."""
        end, stop = self._end_reason(reason), self._stops.found
        return Output(self._content, tuple(self._tokens), end, stop, tuple(self._choices), self._calls)


class Scoring:
    """The log-probabilities of the tokens of a text that is given.

    Args:
        sequence: The text, of which nothing is to be written.
        count: How many of the likeliest tokens come with each.
    """

    def __init__(self, sequence: Sequence, count: int) -> None:
        self.sequence = sequence
        self.choices: list[Choice] = []
        self._count = count

    def take(self, positions: range, logits: np.ndarray) -> None:
        """Take the logits, f32[n, vocabulary], of the last `n` of these positions."""
        tokens = self.sequence.tokens
        for position, row in zip(positions[len(positions) - len(logits) :], logits, strict=True):
            if position + 1 < len(tokens):
                self.choices.append(log_probabilities(row, tokens[position + 1], self._count))
