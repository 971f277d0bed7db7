"""T5 (Raffel et al., 2020, arxiv:1910.10683) and its version 1.1 (arxiv:2002.05202)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import MOST_LAYERS
from educe.generate.architectures.encoder_decoder import (
    EncoderDecoderGraphs,
    SourceGraph,
    TargetGraph,
    first_of,
)
from educe.generate.architectures.relative import bias_by_distance
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration

_MOST_DISTANCE = 1 << 14
_TABLES = r"(shared|(en|de)coder\.embed_tokens|lm_head)\.weight"
_GATED = "gated-"


def t5(source: SourceGraph, target: TargetGraph, config: Configuration) -> EncoderDecoderGraphs:
    """Build `t5` and `mt5` (arxiv.org/abs/2010.11934)."""
    encoder, decoder = _Stack(source, config, "encoder"), _Stack(target, config, "decoder")
    states = encoder.run()
    for number in range(decoder.depth):
        at = f"decoder.block.{number}.layer.1.EncDecAttention"
        k, v = (source.linear(states, f"{at}.{part}", decoder.inward) for part in "kv")
        source.keep(k, v, decoder.layout)
    last = target.call("Gather", decoder.run(), target.rows)
    if config.truth("scale_decoder_outputs", config.truth("tie_word_embeddings", True)):
        last = target.scaled(last, decoder.hidden**-0.5)
    logits = target.linear(last, first_of(target, ["lm_head", decoder.table]), decoder.words)
    source.weights.ignore(_TABLES)
    return EncoderDecoderGraphs(source.finish_states(states), target.finish(logits))


class _Stack:
    """An encoder or a decoder.

    Attributes:
        hidden: Features of a token between the layers.
        depth: How many layers there are.
        layout: Heads, and the features of each.
        inward: The shape of a projection to all heads.
        table: The name of the table of tokens.
        words: The shape of that table.
    """

    def __init__(self, graph: StepGraph, config: Configuration, side: str) -> None:
        self._graph, self._side = graph, side
        layers = config.integer("num_layers", most=MOST_LAYERS)
        if side == "decoder":
            layers = config.integer("num_decoder_layers", layers, most=MOST_LAYERS)
        self.depth, self.hidden = layers, config.integer("d_model")
        self.layout = CacheLayout(config.integer("num_heads"), config.integer("d_kv"))
        self.inward = self.layout.heads * self.layout.features, self.hidden
        self.words = config.integer("vocab_size"), self.hidden
        self.table = first_of(graph, ["shared", f"{side}.embed_tokens"])
        self._inner = config.integer("d_ff")
        self._epsilon = config.number("layer_norm_epsilon", 1e-6, above=0)
        projection = config.text("feed_forward_proj", "relu")
        self._gated = projection.startswith(_GATED)
        name = projection.removeprefix(_GATED)
        self._activation = "gelu_new" if self._gated and name == "gelu" else name
        self._buckets = config.integer("relative_attention_num_buckets", 32, least=4)
        self._furthest = config.integer("relative_attention_max_distance", 128, most=_MOST_DISTANCE)
        if self._furthest <= self._buckets // 2:
            raise config.error("relative_attention_max_distance", f"is {self._furthest}, too few")

    def run(self) -> ir.Value:
        """Return the rows after all layers, f32[T, hidden]."""
        graph, parts = self._graph, 2 if self._side == "decoder" else 1
        x, bias = graph.embedding(self.table, self.words, graph.tokens), self._bias()
        for number in range(self.depth):
            at = f"{self._side}.block.{number}.layer"
            x = graph.call("Add", x, self._self_attention(self._norm(x, f"{at}.0"), f"{at}.0", bias))
            if isinstance(graph, TargetGraph):
                x = graph.call("Add", x, self._cross_attention(graph, self._norm(x, f"{at}.1"), number))
            x = graph.call(
                "Add", x, self._fed(self._norm(x, f"{at}.{parts}"), f"{at}.{parts}.DenseReluDense")
            )
        return graph.rms_norm(x, f"{self._side}.final_layer_norm", self.hidden, self._epsilon)

    def _bias(self) -> ir.Value | None:
        """Return what all layers add to scores."""
        name = f"{self._side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table = self._graph.weights.take(name, (self._buckets, self.layout.heads))
        if table is None:
            return None
        both_ways = self._side == "encoder"
        return self._graph.number("bias", bias_by_distance(table.array(), self._furthest, both_ways))

    def _norm(self, x: ir.Value, at: str) -> ir.Value:
        return self._graph.rms_norm(x, f"{at}.layer_norm", self.hidden, self._epsilon)

    def _self_attention(self, x: ir.Value, layer: str, bias: ir.Value | None) -> ir.Value:
        at = f"{layer}.SelfAttention"
        q, k, v = (self._graph.linear(x, f"{at}.{part}", self.inward) for part in "qkv")
        seen = self._graph.attention(q, k, v, self.layout.heads, self.layout, 1.0, bias=bias)
        return self._graph.linear(seen, f"{at}.o", self.inward[::-1])

    def _cross_attention(self, graph: TargetGraph, x: ir.Value, number: int) -> ir.Value:
        at = f"decoder.block.{number}.layer.1.EncDecAttention"
        seen = graph.cross_attention(graph.linear(x, f"{at}.q", self.inward), number, self.layout, 1.0)
        return graph.linear(seen, f"{at}.o", self.inward[::-1])

    def _fed(self, x: ir.Value, at: str) -> ir.Value:
        graph, wide = self._graph, (self._inner, self.hidden)
        h = graph.activation(
            graph.linear(x, f"{at}.wi_0" if self._gated else f"{at}.wi", wide), self._activation
        )
        if self._gated:
            h = graph.call("Mul", h, graph.linear(x, f"{at}.wi_1", wide))
        return graph.linear(h, f"{at}.wo", wide[::-1])
