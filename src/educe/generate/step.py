"""`Step`: what the model runs next, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

from educe.generate.blocks import Copy
from educe.generate.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Row:
    """What a step runs of one sequence.

    Attributes:
        sequence: The sequence.
        tokens: The tokens to read; the last `num_drafts` of them are a guess.
        positions: Their positions in the sequence.
        slots: Where their keys and values are written: block times block size, plus the place in the block.
        blocks: The table of blocks, as far as the last of the positions.
        num_logits: For how many tokens at the end logits are wanted.
        num_drafts: How many tokens at the end are a guess.
        samples: Who takes a token from the last logits, or several as far as a guess holds; nobody in the
            midst of a prompt, and all samples of a prompt at its end.
    """

    sequence: Sequence
    tokens: tuple[int, ...]
    positions: range
    slots: tuple[int, ...]
    blocks: tuple[int, ...]
    num_logits: int
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
