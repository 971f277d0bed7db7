"""`DraftModel`: guesses by a smaller model (Leviathan et al., 2023, arxiv.org/abs/2211.17192).

The smaller model keeps its keys and values in blocks of its own under the numbers of the large one's blocks.
So what the scheduler shares, copies or gives back needs no second book.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec
from weakref import WeakKeyDictionary

from educe.generate import sequence as texts
from educe.generate.base import StepRunner
from educe.generate.blocks import Copy
from educe.generate.step import Row, Slice

LOG = logging.getLogger("educe.generate")

P = ParamSpec("P")


def _dispensable(
    method: Callable[Concatenate[DraftModel, P], None],
) -> Callable[Concatenate[DraftModel, P], None]:
    """Give the smaller model up at a fault: no text depends on its guesses."""

    @wraps(method)
    def guarded(self: DraftModel, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.works:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as fault:
            self.works = False
            LOG.warning("the model that guesses has failed, texts are written without guesses: %r", fault)

    return guarded


class DraftModel:
    """Guesses with a model, for all texts at once.

    A guess is the smaller model's likeliest token after each. The large model verifies it as it would choose
    without a guess, so that texts are the same, by chance or not. At its first fault the smaller model is
    given up, which the log says.

    Args:
        runner: The smaller model, with as many blocks as the large one has, of the same size.
        num_tokens: Tokens of a guess.

    Attributes:
        num_tokens: Tokens of a guess.
        works: Whether it guesses: it has not failed.
    """

    def __init__(self, runner: StepRunner, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.works = True
        self._runner = runner
        # The tokens of each text of which the smaller model has keys and values, its own guesses included.
        self._read: WeakKeyDictionary[texts.Sequence, list[int]] = WeakKeyDictionary()

    def salt(self, span: int) -> bytes:
        """Return what the smaller model's blocks depend on; see `StepRunner.salt`."""
        return self._runner.salt(span)

    def prepare(self) -> bool:
        """Make one more of the programs that guesses need; see `StepRunner.prepare`."""
        return self.works and self._runner.prepare()

    @_dispensable
    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks, as the large model does."""
        self._runner.copy(copies)

    @_dispensable
    def read(self, rows: Iterable[Row]) -> None:
        """Read the parts of prompts that a step of the large model has read."""
        prompts = [row for row in rows if len(row.tokens) - row.num_drafts > 1]
        if prompts:
            self._runner.run(prompts)
        for row in prompts:
            self._read[row.sequence] = row.sequence.tokens[: row.positions.stop]

    @_dispensable
    def propose(self, asked: Sequence[tuple[texts.Sequence, int]]) -> None:
        """Give each sequence a guess of so many tokens, for which it has blocks."""
        counts = dict(asked)
        drafts: dict[texts.Sequence, list[int]] = {sequence: [] for sequence in counts}
        unread = {sequence: sequence.tokens[self._known(sequence) :] for sequence in counts}
        while unread:
            logits = self._runner.run([_slice(each, drafts[each], tokens) for each, tokens in unread.items()])
            for sequence, token in zip(unread, logits.argmax(axis=1).tolist(), strict=True):
                drafts[sequence].append(token)
            unread = {each: drafts[each][-1:] for each in unread if len(drafts[each]) < counts[each]}
        for sequence, draft in drafts.items():
            sequence.draft = draft
            self._read[sequence] = [*sequence.tokens, *draft[:-1]]

    def _known(self, sequence: texts.Sequence) -> int:
        """Return how many of the first tokens it need not read again; the last it always reads."""
        read, tokens = self._read.get(sequence), sequence.tokens
        if read is None:
            return sequence.num_computed
        least = min(len(read), len(tokens) - 1)
        begin = min(least, max(0, sequence.num_computed - self.num_tokens))
        return next((place for place in range(begin, least) if read[place] != tokens[place]), least)


def _slice(sequence: texts.Sequence, draft: Sequence[int], tokens: Sequence[int]) -> Slice:
    """Return the last `tokens` of a text and its guess so far as they are to be read."""
    start = len(sequence.tokens) + len(draft) - len(tokens)
    return Slice(tokens, start, sequence.table.blocks, span=sequence.span)
