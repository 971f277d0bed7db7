"""Phi-3: Llama with joined projections (arxiv.org/abs/2404.14219)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Decoder
from educe.generate.configuration import Configuration


def phi3(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `phi3`, whose projections are cut apart."""
    decoder = Decoder(step, config)
    rotary, windows = decoder.rotary(), decoder.windows(lambda layer: True)
    queries, keys = (heads * decoder.layout.features for heads in (decoder.heads, decoder.layout.heads))
    for layer in range(decoder.depth):
        at = f"model.layers.{layer}"
        parts = {"q": queries, "k": keys, "v": keys}
        step.weights.cut(
            f"{at}.self_attn.qkv_proj",
            (sum(parts.values()), decoder.hidden),
            {f"{at}.self_attn.{part}_proj": rows for part, rows in parts.items()},
        )
        step.weights.cut(
            f"{at}.mlp.gate_up_proj",
            (2 * decoder.inner, decoder.hidden),
            {f"{at}.mlp.{part}_proj": decoder.inner for part in ("gate", "up")},
        )
    x = decoder.layers(
        decoder.embedded(),
        lambda h, at, layer: decoder.attention(h, at, rotary=rotary, window=windows[layer]),
        decoder.gated,
    )
    return step.finish(decoder.logits(x))
