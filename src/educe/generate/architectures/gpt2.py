"""GPT-2: learned positions and layer norms.

Radford et al., 2019, Language Models are Unsupervised Multitask Learners.
"""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import MOST_LAYERS
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration


def gpt2(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `gpt2`, whose projections are written transposed, and some files without the prefix of names."""
    hidden, heads = config.integer("n_embd"), config.integer("n_head")
    inner, features = config.integer("n_inner", 4 * hidden), max(1, hidden // heads)
    epsilon = config.number("layer_norm_epsilon", 1e-5, above=0)
    activation = config.text("activation_function", "gelu_new")
    prefix = "" if "wte.weight" in step.weights else "transformer."
    table = (config.integer("vocab_size"), hidden)
    step.weights.ignore(r".*\.attn\.(masked_)?bias")

    def linear(x: ir.Value, name: str, outputs: int, inputs: int) -> ir.Value:
        step.weights.transpose(f"{name}.weight", (inputs, outputs))
        return step.linear(x, name, (outputs, inputs), bias=True)

    places = step.embedding(f"{prefix}wpe", (config.integer("n_positions"), hidden), step.positions)
    x = step.call("Add", step.embedding(f"{prefix}wte", table, step.tokens), places)
    for layer in range(config.integer("n_layer", most=MOST_LAYERS)):
        at = f"{prefix}h.{layer}"
        scale = features**-0.5 if config.truth("scale_attn_weights", True) else 1.0
        if config.truth("scale_attn_by_inverse_layer_idx", False):
            scale /= layer + 1
        h = step.layer_norm(x, f"{at}.ln_1", hidden, epsilon)
        step.weights.transpose(f"{at}.attn.c_attn.weight", (hidden, 3 * heads * features))
        parts = {f"{at}.attn.c_attn.{part}": heads * features for part in "qkv"}
        step.weights.cut(f"{at}.attn.c_attn", (3 * heads * features, hidden), parts, bias=True)
        q, k, v = (step.linear(h, part, (heads * features, hidden), bias=True) for part in parts)
        h = step.attention(q, k, v, heads, CacheLayout(heads, features), scale)
        x = step.call("Add", x, linear(h, f"{at}.attn.c_proj", hidden, heads * features))
        h = step.layer_norm(x, f"{at}.ln_2", hidden, epsilon)
        h = step.activation(linear(h, f"{at}.mlp.c_fc", inner, hidden), activation)
        x = step.call("Add", x, linear(h, f"{at}.mlp.c_proj", hidden, inner))
    x = step.layer_norm(step.call("Gather", x, step.rows), f"{prefix}ln_f", hidden, epsilon)
    return step.finish(step.head(x, "lm_head", f"{prefix}wte", table, config))
