"""`Runner`: a language model that runs steps over a cache of pages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

import numpy as np

from educe.generate import packing
from educe.generate.architectures import ARCHITECTURES, StepGraph
from educe.generate.base import StepRunner
from educe.generate.cache import CacheFormat
from educe.generate.compiled import compiled
from educe.generate.configuration import Configuration
from educe.generate.packing import program_size, program_sizes
from educe.generate.parameters import Progress
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint


class Runner(StepRunner):
    """A language model whose blocks hold keys and values of tokens; see `StepRunner`.

    Args:
        block_size: Tokens of a block of the cache.
    """

    takes_drafts: ClassVar[bool] = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        max_sequences: int = 16,
        max_tokens: int = 512,
        block_size: int = 64,
        precision: str = "f32",
        cache: str = "f32",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        cache_format = CacheFormat(cache, block_size)
        step = StepGraph(checkpoint, cache_format, precision, progress=progress)
        build = ARCHITECTURES[checkpoint.model_type]
        graph = build(step, Configuration(checkpoint.config, checkpoint.path))
        layout = step.caches[0]
        self.block_size, self.max_sequences = block_size, max_sequences
        self.sizes = program_sizes(max_tokens)
        self._max_blocks = -(-max_length // block_size)
        self._group = step.num_heads // layout.heads
        self._rotaries = step.rotaries
        self._executable = compiled(graph, checkpoint, threads)
        self.notes = step.notes
        self._pools = {}
        self._layouts, self._dtype = cache_format.shapes(step.caches), cache_format.dtype
        # A guess has logits of each token.
        self._unmade = [
            (size, rows)
            for size in self.sizes
            for rows in sorted({_few(count, size) for count in range(1, size + 1)})
        ]

    def salt(self, span: int) -> bytes:
        """Return what tells apart texts whose positions are turned by other angles; see `Rotary`."""
        return b"".join(rotary.salt(span) for rotary in self._rotaries.values())

    def run(self, slices: Sequence[Slice]) -> np.ndarray:
        """Run tokens of some texts, and return their logits, f32[wanted, vocabulary].

        Keys and values are written to the blocks. A token's logits do not depend on what runs beside it.
        """
        num_rows = sum(part.num_logits for part in slices)
        size = program_size(sum(len(part.tokens) for part in slices))
        logits: np.ndarray = self._executable.run(self._inputs(slices, size, _few(num_rows, size)))["logits"]
        return logits[:num_rows]

    def prepare(self) -> bool:
        """Make one more of the programs that steps may need; False if there is none left to be made."""
        if not self._unmade:
            return False
        self._executable.prepare(self._inputs((), *self._unmade.pop(0)))
        return True

    def _inputs(self, slices: Sequence[Slice], size: int, num_rows: int) -> dict[str, np.ndarray]:
        """Return the inputs of the graph for a step, filled up with what stands for nothing."""
        counts, most = [len(part.tokens) for part in slices], self.max_sequences
        positions = packing.filled([part.positions for part in slices], size)
        lengths = packing.filled(
            [[max(part.span, part.positions.stop)] * len(part.tokens) for part in slices], size
        )
        wanted = [
            range(end - part.num_logits, end) for part, end in zip(slices, accumulate(counts), strict=True)
        ]
        feeds = {
            "tokens": packing.filled([part.tokens for part in slices], size),
            "positions": positions,
            "rows": packing.filled(wanted, num_rows),
            "slots": packing.slots(slices, size, self.block_size),
            "table": packing.table([part.blocks for part in slices], most, self._max_blocks),
            "items": packing.items(counts, [part.start for part in slices], size, self._group, most),
        }
        for name, rotary in self._rotaries.items():
            feeds[f"cos.{name}"], feeds[f"sin.{name}"] = rotary.rows(positions, lengths)
        used = self._executable.signature.inputs
        return {**{name: array for name, array in feeds.items() if name in used}, **self._pools}


def _few(count: int, size: int) -> int:
    """Return for how many tokens to compute logits: one of few numbers, so that programs are few."""
    few = 1
    while few < count:
        few *= 4
    return min(few, size)
