"""Llama and its relatives: rotary grouped attention and a gated feed-forward layer, both after RMS norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from educe.generate.architectures.base import CacheLayout, StepGraph


def llama(step: StepGraph, config: Mapping[str, Any]) -> ir.Model:
    """Build `llama` (arxiv.org/abs/2302.13971, 2307.09288) and `mistral` (arxiv.org/abs/2310.06825).

    Biases and norms of queries and keys are there where the weights have them.
    """
    heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
    features = int(config.get("head_dim") or config["hidden_size"] // heads)
    layout = CacheLayout(int(config.get("num_key_value_heads") or heads), features)
    epsilon = float(config.get("rms_norm_eps", 1e-6))
    window = int(config.get("sliding_window") or 0) if config.get("use_sliding_window", True) else 0
    first_windowed = int(config.get("max_window_layers", 0))

    def project(name: str, x: ir.Value) -> ir.Value:
        return step.linear(x, f"{name}.weight", f"{name}.bias")

    x = step.embedding("model.embed_tokens.weight", step.tokens)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        h = step.rms_norm(x, f"{at}.input_layernorm.weight", epsilon)
        q, k, v = (project(f"{at}.self_attn.{part}_proj", h) for part in "qkv")
        q = _normed(step, q, f"{at}.self_attn.q_norm.weight", heads, features, epsilon)
        k = _normed(step, k, f"{at}.self_attn.k_norm.weight", layout.heads, features, epsilon)
        q, k = (step.rotate(each, n, features) for each, n in ((q, heads), (k, layout.heads)))
        seen = window if layer >= first_windowed else 0
        a = step.attention(q, k, v, heads, layout, features**-0.5, seen)
        x = step.call("Add", x, project(f"{at}.self_attn.o_proj", a))
        h = step.rms_norm(x, f"{at}.post_attention_layernorm.weight", epsilon)
        gate, up = (project(f"{at}.mlp.{part}_proj", h) for part in ("gate", "up"))
        h = step.call("Mul", step.silu(gate), up)
        x = step.call("Add", x, project(f"{at}.mlp.down_proj", h))
    x = step.rms_norm(step.call("Gather", x, step.rows), "model.norm.weight", epsilon)
    head = "lm_head.weight" if step.has("lm_head.weight") else "model.embed_tokens.weight"
    return step.finish(step.linear(x, head))


def qwen(step: StepGraph, config: Mapping[str, Any]) -> ir.Model:
    """Build `qwen2` (arxiv.org/abs/2407.10671) and `qwen3`, whose windows their configuration asks for."""
    return llama(step, {"use_sliding_window": False, **config})


def _normed(step: StepGraph, x: ir.Value, name: str, heads: int, features: int, epsilon: float) -> ir.Value:
    if not step.has(name):
        return x
    split = step.call("Reshape", x, step.shape(-1, heads, features))
    return step.call("Reshape", step.rms_norm(split, name, epsilon), step.shape(-1, heads * features))
