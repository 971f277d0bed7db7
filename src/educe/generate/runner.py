"""`Runner`: a language model that runs steps over a cache of pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from educe.compiler.kernels.paged_attention import rows_of_item
from educe.compiler.target import host_target
from educe.engines.base import Options
from educe.engines.native import NativeEngine
from educe.formats.onnx_types import read_signature
from educe.generate.architectures import StepGraph, architecture
from educe.generate.rotary import Rotary
from educe.generate.step import Slice
from educe.model import Model
from educe.model.checkpoint import Checkpoint
from educe.pages import empty


class Runner:
    """A language model, ready to run.

    Args:
        checkpoint: The model.
        num_pages: Pages of the cache.
        max_pages: The most pages that a sequence has.
        page: Tokens of a page.
        precision: How products of weights are computed: ``f32``, or ``int8``.
        threads: Threads of a step; the machine's cores if absent.

    Raises:
        UnsupportedModelError: the architecture is not known, or weights are missing or left over.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        num_pages: int,
        max_pages: int,
        page: int = 64,
        precision: str = "f32",
        threads: int | None = None,
    ) -> None:
        step = StepGraph(checkpoint.weights, page, precision)
        graph = architecture(checkpoint.model_type)(step, checkpoint.config)
        layout = step.caches[0]
        self.page, self._max_pages = page, max_pages
        self._group = step.num_heads // layout.heads
        self._rotary = Rotary(checkpoint.config, layout.features)
        signature = read_signature(ir.to_proto(graph).graph)
        model = Model(graph, signature, checkpoint.model_type, checkpoint.path, checkpoint.digest, 0, {})
        self._executable = NativeEngine().compile(model, Options(threads=threads))
        self._pools = {
            f"{name}.{layer}": empty((num_pages, cache.heads, page, cache.features), np.float32)
            for layer, cache in enumerate(step.caches)
            for name in ("keys", "values")
        }

    def run(self, slices: Sequence[Slice]) -> np.ndarray:
        """Run tokens of some sequences, and return their logits, f32[wanted, vocabulary].

        Keys and values are written to the pages. A token's logits do not depend on what runs beside it.
        """
        tokens: list[int] = []
        rows: list[int] = []
        places, slots, items, first = [], [], [], 0
        width = rows_of_item(host_target())
        for number, part in enumerate(slices):
            count = len(part.tokens)
            place = np.array(part.positions)
            tokens += part.tokens
            places.append(place)
            slots.append(
                np.asarray(part.blocks, np.int64)[place // self.page] * self.page + place % self.page
            )
            rows += range(first + count - part.num_logits, first + count)
            total = count * self._group
            items += [
                (first, row, min(width, total - row), number, part.start) for row in range(0, total, width)
            ]
            first += count
        size = program_size(first)
        table = np.zeros((program_size(len(slices)), self._max_pages), np.int32)
        for number, part in enumerate(slices):
            table[number, : len(part.blocks)] = part.blocks
        cos, sin = self._rotary.rows(_padded(np.concatenate(places), size))
        feeds = {
            "tokens": _padded(np.array(tokens, np.int64), size),
            "rows": _padded(np.array(rows, np.int64), program_size(len(rows))),
            "slots": _padded(np.concatenate(slots), size, -1),
            "table": table,
            "items": _padded(np.array(items, np.int64), program_size(len(items))),
            "cos": cos,
            "sin": sin,
        }
        logits: np.ndarray = self._executable.run({**feeds, **self._pools})["logits"]
        return logits[: len(rows)]


def program_size(count: int) -> int:
    """Return the next size, at least `count`, that steps are filled up to: 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def _padded(array: np.ndarray, size: int, filling: int = 0) -> np.ndarray:
    rest = np.full((size - len(array), *array.shape[1:]), filling, array.dtype)
    return np.concatenate([array, rest])
