"""What models of an encoder and a decoder share: what the encoder keeps for the decoder's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.encoder import EncoderGraph
from educe.generate.cache import CacheFormat, CacheLayout
from educe.generate.configuration import Configuration
from educe.generate.parameters import Progress
from educe.model.binding import Binding
from educe.model.checkpoint import Checkpoint

_CROSS = ".cross"


class SourceGraph(EncoderGraph):
    """The graph of an encoder whose decoder's layers have keys and values of it.

    They are written to the places `slots.cross` i64[T] of `cache.cross.N`, for each layer N of the decoder.
    Output: `states` f32[T, features].

    Attributes:
        kept: The layout of what each layer of the decoder sees.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        cache: CacheFormat,
        precision: str = "f32",
        *,
        weights: Binding | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(checkpoint, cache, precision, weights=weights, progress=progress)
        self.kept: list[CacheLayout] = []
        self._written: list[ir.Value] = []

    def features(self, bins: int, frames: int) -> ir.Value:
        """Return the input `features` f32[sounds, bins, frames], of which some encoders make their rows."""
        return self._input("features", ir.DataType.FLOAT, ["B", bins, frames])

    def keep(self, k: ir.Value, v: ir.Value, layout: CacheLayout) -> None:
        """Write keys and values [T, heads · features] for the next layer of the decoder."""
        self.kept.append(layout)
        name = f"{_CROSS}.{len(self.kept) - 1}"
        self._written.append(self.written(k, v, name, layout, f"slots{_CROSS}"))

    def finish_states(self, states: ir.Value) -> ir.Model:
        """Return the graph, which ends when all is written."""
        return self.finish(self.call("After", states, *self._written, domain="educe"), "states")


class TargetGraph(StepGraph):
    """The graph of a step of a decoder whose layers also look at what an encoder has kept.

    `table.cross` i32[S, pages] and `items.cross` i64[N, 5] say where that of each sequence lies.
    """

    def cross_attention(self, q: ir.Value, layer: int, layout: CacheLayout, scale: float) -> ir.Value:
        """Return attention of [T, heads · features] over all that is kept for a layer."""
        pool = self.pool(f"{_CROSS}.{layer}", layout)
        return self.attended(q, pool, _CROSS, layout, scale=scale, causal=0)


@dataclass(frozen=True)
class EncoderDecoderGraphs:
    """The two graphs of a model.

    Attributes:
        encoder: From tokens, or from features of a sound, to what is kept.
        decoder: From tokens to logits.
        max_source: Most tokens that the encoder reads; 0 if there is no bound.
        max_target: Most tokens that the decoder writes; 0 if there is no bound.
    """

    encoder: ir.Model
    decoder: ir.Model
    max_source: int = 0
    max_target: int = 0


Build: TypeAlias = Callable[[SourceGraph, TargetGraph, Configuration], EncoderDecoderGraphs]
"""What builds the graphs of an architecture."""


def first_of(graph: StepGraph, names: Sequence[str]) -> str:
    """Return the first name whose ``.weight`` the model has; the last one if it has none."""
    return next((name for name in names if f"{name}.weight" in graph.weights), names[-1])
