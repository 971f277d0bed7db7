"""The contract of a runner: it runs steps of a language model over a cache that is divided into blocks.

What a block holds is the runner's own affair: the keys and values of some tokens, or the state after all of
them. The scheduler hands blocks out, says which are copied before a step, and gives each slice its table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from educe.generate.blocks import Copy
from educe.generate.step import Slice


class StepRunner(ABC):
    """A language model, ready to run when it has a cache. One thread at a time.

    Attributes:
        block_size: Tokens of a block of the cache.
        sizes: The numbers of tokens for which there are programs; every number if empty.
    """

    takes_drafts: ClassVar[bool]
    """Whether tokens that a step has read can be dropped again, as those of a draft that does not hold."""

    block_size: int
    sizes: Sequence[int]

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Memory of one block of the cache, in all layers."""

    @abstractmethod
    def allocate(self, num_blocks: int) -> None:
        """Give the cache so many blocks; their memory is taken when they are first written."""

    @abstractmethod
    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of the cache, from and to, in their order."""

    @abstractmethod
    def run(self, slices: Sequence[Slice]) -> np.ndarray:
        """Run tokens of some texts, and return their logits, f32[wanted, vocabulary].

        What was read is written to the blocks. A token's logits do not depend on what runs beside it.
        """

    @abstractmethod
    def prepare(self) -> bool:
        """Make one more of the programs that steps may need; False if there is none left to be made."""
