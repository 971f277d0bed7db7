"""BERT and its relatives: encoders of text whose layers norm what they have added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from educe.errors import UnsupportedModelError, nearest
from educe.generate.architectures.decoder import MOST_LAYERS
from educe.generate.architectures.encoder import EncoderGraph
from educe.generate.architectures.relative import bias_by_distance
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration

_FURTHEST = 128
# What pretraining needs besides, and tables of numbers that are no weights.
_REST = r"(.*\.)?(pooler\..*|cls\..*|lm_head\..*|vocab_\w+\..*|position_ids)"


@dataclass(frozen=True)
class Encoded:
    """What an encoder gives.

    Attributes:
        states: A row for each token, f32[T, hidden].
        hidden: Features of a row.
        max_length: Most tokens of a sequence.
    """

    states: ir.Value
    hidden: int
    max_length: int


@dataclass(frozen=True)
class _Names:
    """Where a relative of BERT has what.

    Attributes:
        prefix: What may stand before all names.
        layer: Before the number of a layer.
        query, key, value, out, attention_norm, up, down, norm: The parts of a layer.
    """

    prefix: str
    layer: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    norm: str = "output.LayerNorm"


_BERT, _ROBERTA = _Names("bert."), _Names("roberta.")
_DISTILBERT = _Names(
    "distilbert.", "transformer.layer", "attention.q_lin", "attention.k_lin", "attention.v_lin",
    "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
)  # fmt: skip
_MPNET = _Names(
    "mpnet.", "encoder.layer", "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o",
    "attention.LayerNorm",
)  # fmt: skip


def bert(graph: EncoderGraph, config: Configuration) -> Encoded:
    """Build `bert` (arxiv.org/abs/1810.04805)."""
    if config.text("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedModelError("BERT with relative positions is not run yet")
    return _encoder(graph, config, _BERT, num_types=config.integer("type_vocab_size", 2))


def roberta(graph: EncoderGraph, config: Configuration) -> Encoded:
    """Build `roberta` (arxiv.org/abs/1907.11692) and `xlm-roberta` (arxiv.org/abs/1911.02116)."""
    first = config.integer("pad_token_id", 1, least=0) + 1
    types = config.integer("type_vocab_size", 1)
    return _encoder(graph, config, _ROBERTA, num_types=types, first_position=first)


def distilbert(graph: EncoderGraph, config: Configuration) -> Encoded:
    """Build `distilbert` (arxiv.org/abs/1910.01108)."""
    config = config.replaced(
        hidden_size=config.integer("dim"),
        num_attention_heads=config.integer("n_heads"),
        num_hidden_layers=config.integer("n_layers"),
        intermediate_size=config.integer("hidden_dim"),
        hidden_act=config.text("activation", "gelu"),
    )
    return _encoder(graph, config, _DISTILBERT)


def mpnet(graph: EncoderGraph, config: Configuration) -> Encoded:
    """Build `mpnet` (arxiv.org/abs/2004.09297), whose layers share a bias by distance."""
    heads = config.integer("num_attention_heads")
    shape = (config.integer("relative_attention_num_buckets", 32), heads)
    name = _prefixed(graph, "mpnet.", "encoder.relative_attention_bias.weight")
    table = graph.weights.take(name, shape)
    bias = None
    if table is not None:
        bias = graph.number("bias", bias_by_distance(table.array(), _FURTHEST, True))
    first = config.integer("pad_token_id", 1, least=0) + 1
    return _encoder(graph, config, _MPNET, first_position=first, bias=bias)


def _encoder(
    graph: EncoderGraph,
    config: Configuration,
    names: _Names,
    *,
    num_types: int = 0,
    first_position: int = 0,
    bias: ir.Value | None = None,
) -> Encoded:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    inner, positions = config.integer("intermediate_size"), config.integer("max_position_embeddings")
    if hidden % heads:
        raise config.error("num_attention_heads", f"does not divide {hidden:,} features")
    if positions <= first_position:
        raise config.error(
            "max_position_embeddings", f"is {positions:,}, of which {first_position} are unused"
        )
    layout = CacheLayout(heads, hidden // heads)
    epsilon = config.number("layer_norm_eps", 1e-12, above=0)
    activation = config.text("hidden_act", "gelu")
    at = _prefixed(graph, names.prefix, "embeddings")
    places = graph.positions
    if first_position:
        places = graph.call("Add", places, graph.number("first position", np.array(first_position)))
    x = graph.embedding(f"{at}.word_embeddings", (config.integer("vocab_size"), hidden), graph.tokens)
    if num_types:
        first_type = graph.number("first type", np.array(0))
        types = graph.weight(f"{at}.token_type_embeddings.weight", (num_types, hidden))
        x = graph.call("Add", x, graph.call("Gather", types, first_type))
    table = graph.weight(f"{at}.position_embeddings.weight", (positions, hidden))
    x = graph.call("Add", x, graph.call("Gather", table, places))
    x = graph.layer_norm(x, f"{at}.LayerNorm", hidden, epsilon)
    for number in range(config.integer("num_hidden_layers", most=MOST_LAYERS)):
        at = _prefixed(graph, names.prefix, f"{names.layer}.{number}")
        q, k, v = (
            graph.linear(x, f"{at}.{part}", (hidden, hidden), bias=True)
            for part in (names.query, names.key, names.value)
        )
        seen = graph.attention(q, k, v, heads, layout, layout.features**-0.5, bias=bias)
        seen = graph.linear(seen, f"{at}.{names.out}", (hidden, hidden), bias=True)
        x = graph.layer_norm(graph.call("Add", seen, x), f"{at}.{names.attention_norm}", hidden, epsilon)
        fed = graph.linear(x, f"{at}.{names.up}", (inner, hidden), bias=True)
        fed = graph.linear(
            graph.activation(fed, activation), f"{at}.{names.down}", (hidden, inner), bias=True
        )
        x = graph.layer_norm(graph.call("Add", fed, x), f"{at}.{names.norm}", hidden, epsilon)
    graph.weights.ignore(_REST)
    return Encoded(x, hidden, positions - first_position)


def _prefixed(graph: EncoderGraph, prefix: str, name: str) -> str:
    """Return a name as the weights have it: models of a purpose put something before their encoder's."""
    table = f"{prefix}embeddings.word_embeddings.weight"
    return f"{prefix}{name}" if table in graph.weights else name


BuildEncoder: TypeAlias = Callable[[EncoderGraph, Configuration], Encoded]

ENCODERS: dict[str, BuildEncoder] = {
    "bert": bert,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "roberta": roberta,
    "xlm-roberta": roberta,
}
"""What builds the graph of each encoder of text, as Hugging Face names them."""


def encoder(model_type: str) -> BuildEncoder:
    """Return what builds the graph of an encoder of text.

    Raises:
        UnsupportedModelError: there is none.
    """
    if model_type not in ENCODERS:
        reason = f"text embeddings by models of the type {model_type!r} are not computed yet"
        raise UnsupportedModelError(reason, remedy=nearest(model_type, ENCODERS))
    return ENCODERS[model_type]
