"""`Runner`: a language model that runs steps over a cache of pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from educe.compiler.kernels.paged_attention import ITEM_ROWS, ITEM_WORDS
from educe.generate.architectures import StepGraph, architecture
from educe.generate.base import StepRunner
from educe.generate.cache import CacheFormat
from educe.generate.compiled import compiled
from educe.generate.configuration import Configuration
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
        graph = architecture(checkpoint.model_type)(step, Configuration(checkpoint.config, checkpoint.path))
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
        counts = range(1, max_sequences + 1)
        self._unmade = [
            (size, rows) for size in self.sizes for rows in sorted({_few(count, size) for count in counts})
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
        feeds = self._blank(size, _few(num_rows, size))
        lengths = np.zeros(size, np.int64)
        first = row = item = 0
        for number, part in enumerate(slices):
            last = first + len(part.tokens)
            positions = np.array(part.positions)
            block, place = np.divmod(positions, self.block_size)
            feeds["tokens"][first:last] = part.tokens
            feeds["positions"][first:last] = positions
            feeds["slots"][first:last] = np.asarray(part.blocks)[block] * self.block_size + place
            feeds["table"][number, : len(part.blocks)] = part.blocks
            feeds["rows"][row : row + part.num_logits] = range(last - part.num_logits, last)
            lengths[first:last] = max(part.span, part.positions.stop)
            total = len(part.tokens) * self._group
            for begin in range(0, total, ITEM_ROWS):
                count = min(ITEM_ROWS, total - begin)
                feeds["items"][item] = (first, begin, count, number, part.start)
                item += 1
            first, row = last, row + part.num_logits
        logits: np.ndarray = self._executable.run(self._inputs(feeds, lengths))["logits"]
        return logits[:num_rows]

    def prepare(self) -> bool:
        """Make one more of the programs that steps may need; False if there is none left to be made."""
        if not self._unmade:
            return False
        size, num_rows = self._unmade.pop(0)
        self._executable.prepare(self._inputs(self._blank(size, num_rows), np.zeros(size, np.int64)))
        return True

    def _blank(self, size: int, num_rows: int) -> dict[str, np.ndarray]:
        """Return what describes a step of tokens that stand for nothing."""
        num_items = -(-size * self._group // ITEM_ROWS) + self.max_sequences
        return {
            "tokens": np.zeros(size, np.int64),
            "positions": np.zeros(size, np.int64),
            "rows": np.zeros(num_rows, np.int64),
            "slots": np.full(size, -1),
            "table": np.zeros((self.max_sequences, self._max_blocks), np.int32),
            "items": np.zeros((num_items, ITEM_WORDS), np.int64),
        }

    def _inputs(self, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs of the graph for a step of tokens of texts of such lengths."""
        for name, rotary in self._rotaries.items():
            feeds[f"cos.{name}"], feeds[f"sin.{name}"] = rotary.rows(feeds["positions"], lengths)
        used = self._executable.signature.inputs
        return {**{name: array for name, array in feeds.items() if name in used}, **self._pools}


def _few(count: int, size: int) -> int:
    """Return for how many tokens to compute logits: one of few numbers, so that programs are few."""
    few = 1
    while few < count:
        few *= 4
    return min(few, size)


def program_size(count: int) -> int:
    """Return the next size, at least `count`, that steps are filled up to: 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def program_sizes(most: int) -> list[int]:
    """Return the sizes as far as the first that is at least `most`."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(program_size(sizes[-1] + 1))
    return sizes
