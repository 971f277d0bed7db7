"""`EncoderGraph`: the graph of an encoder, whose tokens see all of their sequence."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from educe.compiler.kernels.segments import SEGMENT_WORDS
from educe.generate.architectures.base import StepGraph
from educe.generate.cache import CacheLayout

_LEAST_NORM = 1e-12


class EncoderGraph(StepGraph):
    """A graph under construction, as `StepGraph`, whose tokens see all of their sequence.

    A run has whole sequences. Layers take turns with one cache, `cache.0`; an item's place is
    the length of its sequence. `segments` i64[S, 2] are the first token and the length of each.
    """

    causal: ClassVar[bool] = False

    def _next_cache(self, layout: CacheLayout) -> int:
        self.caches = [layout]
        return 0

    def pooled(self, x: ir.Value, how: str) -> ir.Value:
        """Return one row for each sequence, f32[S, features].

        It is the ``mean`` or ``max`` of its rows, or the row of its first token, ``cls``.
        """
        table = self._input("segments", ir.DataType.INT64, ["S", SEGMENT_WORDS])
        if how == "cls":
            first = self.call("Gather", table, self.number("first", np.zeros(1, np.int64)), axis=1)
            return self.joined(self.call("Gather", x, first))
        return self.call({"mean": "SegmentMean", "max": "SegmentMax"}[how], x, table, domain="educe")

    def normalized(self, x: ir.Value) -> ir.Value:
        """Return rows over their lengths."""
        least = self.number("least norm", np.array(_LEAST_NORM, np.float32))
        length = self.call("ReduceL2", x, self.shape(-1), keepdims=1)
        return self.call("Div", x, self.call("Max", length, least))
