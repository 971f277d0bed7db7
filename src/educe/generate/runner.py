"""`Runner`: a language model that runs steps over a cache of pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from educe.compiler.kernels.paged_attention import rows_of_item
from educe.compiler.target import host_target
from educe.engines.base import Options
from educe.engines.native import NativeEngine
from educe.formats.onnx_types import read_signature
from educe.generate.architectures import StepGraph, architecture
from educe.generate.blocks import Copy
from educe.generate.configuration import Configuration
from educe.generate.step import Slice
from educe.model import Model
from educe.model.checkpoint import Checkpoint
from educe.pages import empty

_ELEMENT_BYTES = 4


class Runner:
    """A language model, ready to run when it has a cache.

    Args:
        checkpoint: The model.
        max_length: Most tokens of a text.
        max_sequences: Most texts in a step.
        block_size: Tokens of a block of the cache.
        precision: How products of weights are computed: ``f32``, or ``int8``.
        threads: Threads of a step; the machine's cores if absent.

    Raises:
        ModelFileError: weights are missing or misshapen, or a field of the configuration cannot be.
        UnsupportedModelError: the architecture or a part of it is not known, or weights are left over.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        max_sequences: int = 16,
        block_size: int = 64,
        precision: str = "f32",
        threads: int | None = None,
    ) -> None:
        step = StepGraph(checkpoint, block_size, precision)
        graph = architecture(checkpoint.model_type)(step, Configuration(checkpoint.config, checkpoint.path))
        layout = step.caches[0]
        self.block_size, self.max_sequences = block_size, max_sequences
        self._max_blocks = -(-max_length // block_size)
        self._group = step.num_heads // layout.heads
        self._rotaries = step.rotaries
        signature = read_signature(ir.to_proto(graph).graph)
        model = Model(graph, signature, checkpoint.model_type, checkpoint.path, checkpoint.digest, 0, {})
        self._executable = NativeEngine().compile(model, Options(threads=threads))
        self._layouts = {
            f"{name}.{layer}": (cache.heads, block_size, cache.features)
            for layer, cache in enumerate(step.caches)
            for name in ("keys", "values")
        }
        self._pools: dict[str, np.ndarray] = {}

    @property
    def block_bytes(self) -> int:
        """Memory of one block of the cache, in all layers."""
        return sum(math.prod(shape) for shape in self._layouts.values()) * _ELEMENT_BYTES

    def allocate(self, num_blocks: int) -> None:
        """Give the cache so many blocks; their memory is taken when they are first written."""
        self._pools = {name: empty((num_blocks, *shape), np.float32) for name, shape in self._layouts.items()}

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of the cache, from and to, in their order."""
        for source, target in copies:
            for pool in self._pools.values():
                pool[target] = pool[source]

    def run(self, slices: Sequence[Slice]) -> np.ndarray:
        """Run tokens of some texts, and return their logits, f32[wanted, vocabulary].

        Keys and values are written to the blocks. A token's logits do not depend on what runs beside it.
        """
        tokens: list[int] = []
        rows: list[int] = []
        places, spans, slots, items, first = [], [], [], [], 0
        width = rows_of_item(host_target())
        for number, part in enumerate(slices):
            count, size = len(part.tokens), self.block_size
            place = np.array(part.positions)
            tokens += part.tokens
            places.append(place)
            spans.append(np.full(count, max(part.span, part.start + count)))
            slots.append(np.asarray(part.blocks, np.int64)[place // size] * size + place % size)
            rows += range(first + count - part.num_logits, first + count)
            total = count * self._group
            items += [
                (first, row, min(width, total - row), number, part.start) for row in range(0, total, width)
            ]
            first += count
        size = program_size(first)
        table = np.zeros((self.max_sequences, self._max_blocks), np.int32)
        for number, part in enumerate(slices):
            table[number, : len(part.blocks)] = part.blocks
        positions, lengths = (_padded(np.concatenate(each), size) for each in (places, spans))
        feeds = {
            "tokens": _padded(np.array(tokens, np.int64), size),
            "positions": positions,
            "rows": _padded(np.array(rows, np.int64), self._num_rows(len(rows), size)),
            "slots": _padded(np.concatenate(slots), size, -1),
            "table": table,
            "items": _padded(np.array(items, np.int64), -(-size * self._group // width) + self.max_sequences),
        }
        for name, rotary in self._rotaries.items():
            feeds[f"cos.{name}"], feeds[f"sin.{name}"] = rotary.rows(positions, lengths)
        feeds = {name: array for name, array in feeds.items() if name in self._executable.signature.inputs}
        logits: np.ndarray = self._executable.run({**feeds, **self._pools})["logits"]
        return logits[: len(rows)]

    def _num_rows(self, count: int, size: int) -> int:
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


def _padded(array: np.ndarray, size: int, filling: int = 0) -> np.ndarray:
    rest = np.full((size - len(array), *array.shape[1:]), filling, array.dtype)
    return np.concatenate([array, rest])
