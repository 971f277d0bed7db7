"""The contract of a runner: it runs steps of a language model over a cache that is divided into blocks.

What a block holds is the runner's own affair: the keys and values of some tokens, or the state after all of
them. The scheduler hands blocks out, says which are copied before a step, and gives each slice its table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from educe.generate.blocks import Copy
from educe.generate.cache import block_bytes, copy_blocks, pools
from educe.generate.parameters import Progress
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint


class StepRunner(ABC):
    """A language model, ready to run when it has a cache. One thread at a time.

    Args:
        checkpoint: The model.
        max_length: Most tokens of a text.
        max_sequences: Most texts in a step.
        max_tokens: Most tokens of a step.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        cache: How keys and values are held, one of `CACHES`; the state of a recurrent model is always f32.
        threads: Threads of a step; the machine's cores if absent.
        progress: What is told of the packing of weights, which is done once for all processes.

    Attributes:
        block_size: Tokens of a block of the cache.
        sizes: The numbers of tokens for which there are programs; every number if empty.
        notes: What a user should know of the weights' precision.

    Raises:
        ModelFileError: weights are missing or misshapen, or a field of the configuration cannot be.
        UnsupportedModelError: the architecture or a part of it is not known, or weights are left over.
        OptionError: the precision is not one that the model can have, or there is no such cache.
    """

    takes_drafts: ClassVar[bool]
    """Whether tokens that a step has read can be dropped again, as those of a draft that does not hold."""

    block_size: int
    sizes: Sequence[int]
    notes: tuple[str, ...] = ()
    # The shape and the type of each part of a block, by name, and the cache that has one for each block.
    _layouts: Mapping[str, tuple[int, ...]]
    _dtype: np.dtype[Any] = np.dtype(np.float32)
    _pools: dict[str, np.ndarray]

    @abstractmethod
    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        max_sequences: int = 16,
        max_tokens: int = 512,
        precision: str = "f32",
        cache: str = "f32",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None: ...

    @property
    def block_bytes(self) -> int:
        """Memory of one block of the cache, in all layers."""
        return block_bytes(self._layouts, self._dtype)

    def allocate(self, num_blocks: int) -> None:
        """Give the cache so many blocks; their memory is taken when they are first written."""
        self._pools = pools(self._layouts, num_blocks, self._dtype)

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of the cache, from and to, in their order."""
        copy_blocks(self._pools, copies)

    def salt(self, span: int) -> bytes:
        """Return what blocks depend on besides tokens, in a text that may have `span` positions in the end.

        It has the same number of bytes for all spans.
        """
        del span
        return b""

    @abstractmethod
    def run(self, slices: Sequence[Slice]) -> np.ndarray:
        """Run tokens of some texts, and return their logits, f32[wanted, vocabulary].

        What was read is written to the blocks. A token's logits do not depend on what runs beside it.
        """

    @abstractmethod
    def prepare(self) -> bool:
        """Make one more of the programs that steps may need; False if there is none left to be made."""
