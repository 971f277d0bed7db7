"""`Step`: what the model runs next, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from educe.generate.blocks import Copy
from educe.generate.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """Some tokens of one text, to be run in one step.

    Attributes:
        tokens: The tokens, in order.
        start: The position of the first of them in the text.
        blocks: The table of blocks of the text's keys and values, as far as the last of the tokens.
        num_logits: For how many tokens at the end logits are wanted.
        span: How many positions the text may have in the end, by which some models scale all positions; 0 if
            it ends with these tokens.
    """

    tokens: Tokens[int]
    start: int
    blocks: Tokens[int]
    num_logits: int = 1
    span: int = 0

    @property
    def positions(self) -> range:
        """The tokens' positions in the text."""
        return range(self.start, self.start + len(self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Slice):
    """What a step runs of one sequence.

    Attributes:
        sequence: The sequence.
        num_drafts: How many tokens at the end are a guess.
        samples: Who takes a token from the last logits, or several as far as a guess holds; nobody in the
            midst of a prompt, and all samples of a prompt at its end.
    """

    sequence: Sequence
    num_drafts: int
    samples: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What the model runs next: first the copies, in their order, then all rows at once.

    Attributes:
        rows: Of each sequence that runs; those that write one token after the other come first.
        copies: Blocks to copy, from and to.
        size: The number of tokens for which there is a program: `num_tokens` and `num_padding` together.
        cancelled: The sequences that this step found cancelled, and ended.
        preempted: The sequences whose blocks this step took away.
    """

    rows: tuple[Row, ...]
    copies: tuple[Copy, ...]
    size: int
    cancelled: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        """How many tokens the rows have in all."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def num_padding(self) -> int:
        """How many tokens at the end of the program's inputs stand for nothing."""
        return self.size - self.num_tokens
