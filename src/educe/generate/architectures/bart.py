"""BART and its relatives: Transformers of an encoder and a decoder, as Vaswani et al. (2017) have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import MOST_LAYERS
from educe.generate.architectures.encoder_decoder import (
    EncoderDecoderGraphs,
    SourceGraph,
    TargetGraph,
    first_of,
)
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration

Compute: TypeAlias = Callable[[ir.Value, int], ir.Value]
"""From rows and the number of a layer: what a part of it adds."""

_EPSILON = 1e-5
_MOST_POSITIONS = 1 << 16
# Tables that stand under several names, or are no weights.
_TABLES = r"model\.shared\.weight|model\.(en|de)coder\.embed_(tokens|positions)\.weights?|lm_head\.weight"


@dataclass(frozen=True)
class Style:
    """What a relative of BART has otherwise.

    Attributes:
        norm_first: Whether parts norm what they are given, and both sides what they end with; else parts norm
            what they have added.
        norm_embedded: Whether both sides norm what they begin with.
        positions: ``learned``, with two rows too many; ``m2m`` or ``marian``, waves of that library.
        key_bias: Whether projections to keys have a bias.
        logits_bias: Whether logits have a bias.
    """

    norm_first: bool
    norm_embedded: bool
    positions: str
    key_bias: bool = True
    logits_bias: bool = True


BART = Style(False, True, "learned")
MBART = Style(True, True, "learned")
MARIAN = Style(False, False, "marian")
M2M_100 = Style(True, False, "m2m", logits_bias=False)


def bart(source: SourceGraph, target: TargetGraph, config: Configuration) -> EncoderDecoderGraphs:
    """Build `bart` (arxiv.org/abs/1910.13461)."""
    return _build(source, target, config, BART)


def mbart(source: SourceGraph, target: TargetGraph, config: Configuration) -> EncoderDecoderGraphs:
    """Build `mbart` (arxiv.org/abs/2001.08210)."""
    return _build(source, target, config, MBART)


def marian(source: SourceGraph, target: TargetGraph, config: Configuration) -> EncoderDecoderGraphs:
    """Build `marian` (arxiv.org/abs/1804.00344)."""
    return _build(source, target, config, MARIAN)


def m2m_100(source: SourceGraph, target: TargetGraph, config: Configuration) -> EncoderDecoderGraphs:
    """Build `m2m_100` (arxiv.org/abs/2010.11125), of which NLLB is one (arxiv.org/abs/2207.04672)."""
    return _build(source, target, config, M2M_100)


def _build(
    source: SourceGraph, target: TargetGraph, config: Configuration, style: Style
) -> EncoderDecoderGraphs:
    encoder, decoder = Side(source, config, style, "encoder"), Side(target, config, style, "decoder")
    x = encoder.embedded(config.integer("vocab_size"))
    states = encoder.encoded(x)
    for number in range(decoder.depth):
        source.keep(*decoder.kept(source, states, number), decoder.layout)
    words = config.integer("decoder_vocab_size", config.integer("vocab_size"))
    y = decoder.decoded(decoder.embedded(words))
    last = target.call("Gather", y, target.rows)
    head = first_of(target, ["lm_head", decoder.table, "model.shared"])
    logits = target.linear(last, head, (words, decoder.hidden), bias=f"{head}.bias" in target.weights)
    if style.logits_bias:
        logits = target.call("Add", logits, target.weight("final_logits_bias", (1, words)))
    source.weights.ignore(_TABLES)
    longest = config.integer("max_position_embeddings", 1024, most=_MOST_POSITIONS)
    return EncoderDecoderGraphs(source.finish_states(states), target.finish(logits), longest, longest)


class Side:
    """An encoder or a decoder of BART's family.

    Args:
        graph: The graph under construction.
        config: The model's configuration.
        style: What it has otherwise.
        side: ``encoder`` or ``decoder``.

    Attributes:
        hidden: Features of a token between the layers.
        depth: How many layers there are.
        layout: Heads, and the features of each.
        table: The name of the table of its tokens, if it has one of its own.
    """

    def __init__(self, graph: StepGraph, config: Configuration, style: Style, side: str) -> None:
        self._graph, self._config, self._style, self._at = graph, config, style, f"model.{side}"
        self.hidden = config.integer("d_model")
        self.depth = config.integer(f"{side}_layers", most=MOST_LAYERS)
        heads = config.integer(f"{side}_attention_heads")
        if self.hidden % heads:
            raise config.error(f"{side}_attention_heads", f"does not divide {self.hidden:,} features")
        self.layout = CacheLayout(heads, self.hidden // heads)
        self.table = f"{self._at}.embed_tokens"
        self._inner = config.integer(f"{side}_ffn_dim")
        self._activation = config.text("activation_function", "gelu")

    def embedded(self, words: int) -> ir.Value:
        """Return the rows of the tokens and of their positions, f32[T, hidden]."""
        graph, config = self._graph, self._config
        name = first_of(graph, [self.table, "model.shared"])
        x = graph.embedding(name, (words, self.hidden), graph.tokens)
        x = graph.scaled(x, math.sqrt(self.hidden) if config.truth("scale_embedding", False) else 1.0)
        x = graph.call("Add", x, graph.call("Gather", self._positions(), graph.positions))
        return self._norm(x, f"{self._at}.layernorm_embedding") if self._style.norm_embedded else x

    def _positions(self) -> ir.Value:
        """Return a row for each position, from the first on."""
        graph, config = self._graph, self._config
        count = config.integer("max_position_embeddings", 1024, most=_MOST_POSITIONS)
        if self._style.positions == "learned":
            table = graph.weight(f"{self._at}.embed_positions.weight", (count + 2, self.hidden))
            return graph.call("Slice", table, graph.shape(2), graph.shape(count + 2), graph.shape(0))
        is_m2m = self._style.positions == "m2m"
        first = config.integer("pad_token_id", 1, least=0) + 1 if is_m2m else 0
        return graph.number("positions' waves", waves(first, count, self.hidden, reaches_end=is_m2m))

    def encoded(self, x: ir.Value) -> ir.Value:
        """Return the rows after all layers of an encoder."""
        for number in range(self.depth):
            x = self._part(x, number, "self_attn_layer_norm", self._self_attention)
            x = self._part(x, number, "final_layer_norm", self._fed)
        return self._ended(x)

    def decoded(self, x: ir.Value) -> ir.Value:
        """Return the rows after all layers of a decoder."""
        for number in range(self.depth):
            x = self._part(x, number, "self_attn_layer_norm", self._self_attention)
            x = self._part(x, number, "encoder_attn_layer_norm", self._cross_attention)
            x = self._part(x, number, "final_layer_norm", self._fed)
        return self._ended(x)

    def kept(self, source: SourceGraph, states: ir.Value, number: int) -> tuple[ir.Value, ir.Value]:
        """Return the keys and values that a layer of this decoder has of an encoder's rows."""
        at, shape = f"{self._layer(number)}.encoder_attn", (self.hidden, self.hidden)
        k = source.linear(states, f"{at}.k_proj", shape, bias=self._style.key_bias)
        return k, source.linear(states, f"{at}.v_proj", shape, bias=True)

    def _part(self, x: ir.Value, number: int, norm: str, compute: Compute) -> ir.Value:
        norm = f"{self._layer(number)}.{norm}"
        if self._style.norm_first:
            return self._graph.call("Add", x, compute(self._norm(x, norm), number))
        return self._norm(self._graph.call("Add", x, compute(x, number)), norm)

    def _ended(self, x: ir.Value) -> ir.Value:
        return self._norm(x, f"{self._at}.layer_norm") if self._style.norm_first else x

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        return self._graph.layer_norm(x, name, self.hidden, _EPSILON)

    def _layer(self, number: int) -> str:
        return f"{self._at}.layers.{number}"

    def _self_attention(self, x: ir.Value, number: int) -> ir.Value:
        at, shape = f"{self._layer(number)}.self_attn", (self.hidden, self.hidden)
        q, k, v = (
            self._graph.linear(x, f"{at}.{part}_proj", shape, bias=part != "k" or self._style.key_bias)
            for part in "qkv"
        )
        seen = self._graph.attention(q, k, v, self.layout.heads, self.layout, self.layout.features**-0.5)
        return self._graph.linear(seen, f"{at}.out_proj", shape, bias=True)

    def _cross_attention(self, x: ir.Value, number: int) -> ir.Value:
        graph, at, shape = self._graph, f"{self._layer(number)}.encoder_attn", (self.hidden, self.hidden)
        assert isinstance(graph, TargetGraph)
        q = graph.linear(x, f"{at}.q_proj", shape, bias=True)
        seen = graph.cross_attention(q, number, self.layout, self.layout.features**-0.5)
        return graph.linear(seen, f"{at}.out_proj", shape, bias=True)

    def _fed(self, x: ir.Value, number: int) -> ir.Value:
        at = self._layer(number)
        h = self._graph.linear(x, f"{at}.fc1", (self._inner, self.hidden), bias=True)
        h = self._graph.activation(h, self._activation)
        return self._graph.linear(h, f"{at}.fc2", (self.hidden, self._inner), bias=True)


def waves(first: int, count: int, features: int, *, reaches_end: bool) -> np.ndarray:
    """Return a row for each position from `first` on, f32[count, features]: sines, then cosines.

    Args:
        first: The first position.
        count: How many rows.
        features: How many columns; an odd one is 0.
        reaches_end: Whether the longest wave is 10,000 times the shortest, or the one after it would be.
    """
    half = features // 2
    steps = np.arange(half) / max(1, half - 1 if reaches_end else features / 2)
    angles = np.arange(first, first + count)[:, None] * np.exp(-math.log(10000) * steps)
    rows = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.pad(rows, ((0, 0), (0, features - 2 * half))).astype(np.float32)
