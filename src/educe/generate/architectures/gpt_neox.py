"""GPT-NeoX and Pythia: attention and feed-forward part side by side (arxiv.org/abs/2204.06745)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import FULL, MOST_LAYERS
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration
from educe.generate.rotary import THETA, Rotary

_TURNED = 0.25


def gpt_neox(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `gpt_neox`, whose joined projections have queries, keys and values of each head together."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    inner, epsilon = config.integer("intermediate_size"), config.number("layer_norm_eps", 1e-5, above=0)
    features, bias = max(1, hidden // heads), config.truth("attention_bias", True)
    activation, parallel = config.text("hidden_act", "gelu"), config.truth("use_parallel_residual", True)
    turned = config.number("rotary_pct", config.number("partial_rotary_factor", _TURNED))
    theta = config.number("rotary_emb_base", config.number("rope_theta", THETA))
    step.rotaries[FULL] = Rotary(config.replaced(rope_theta=theta, partial_rotary_factor=turned), features)
    order = np.arange(3 * heads * features).reshape(heads, 3, features).swapaxes(0, 1).reshape(-1)
    step.weights.ignore(r".*\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)")

    def attention(h: ir.Value, at: str) -> ir.Value:
        parts = {f"{at}.{part}": heads * features for part in ("query", "key", "value")}
        whole = (3 * heads * features, hidden)
        step.weights.cut(f"{at}.query_key_value", whole, parts, order=order, bias=bias)
        q, k, v = (step.linear(h, part, (heads * features, hidden), bias=bias) for part in parts)
        q, k = (step.rotate(each, heads, FULL) for each in (q, k))
        seen = step.attention(q, k, v, heads, CacheLayout(heads, features), features**-0.5)
        return step.linear(seen, f"{at}.dense", (hidden, heads * features), bias=bias)

    def feed(h: ir.Value, at: str) -> ir.Value:
        h = step.activation(step.linear(h, f"{at}.dense_h_to_4h", (inner, hidden), bias=True), activation)
        return step.linear(h, f"{at}.dense_4h_to_h", (hidden, inner), bias=True)

    table = (config.integer("vocab_size"), hidden)
    x = step.embedding("gpt_neox.embed_in", table, step.tokens)
    for layer in range(config.integer("num_hidden_layers", most=MOST_LAYERS)):
        at = f"gpt_neox.layers.{layer}"
        seen = attention(step.layer_norm(x, f"{at}.input_layernorm", hidden, epsilon), f"{at}.attention")
        after = step.call("Add", x, seen)
        h = step.layer_norm(x if parallel else after, f"{at}.post_attention_layernorm", hidden, epsilon)
        x = step.call("Add", after, feed(h, f"{at}.mlp"))
    x = step.layer_norm(step.call("Gather", x, step.rows), "gpt_neox.final_layer_norm", hidden, epsilon)
    return step.finish(step.head(x, "embed_out", "gpt_neox.embed_in", table, config))
