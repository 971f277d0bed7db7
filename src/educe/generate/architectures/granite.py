"""Granite: Llama with multipliers (github.com/ibm-granite/granite-3.0-language-models)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Decoder
from educe.generate.configuration import Configuration


def granite(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `granite`, which scales embeddings, scores, what layers add, and logits."""
    decoder, bias = Decoder(step, config), config.truth("attention_bias", False)
    rotary, bias_of_gates = decoder.rotary(), config.truth("mlp_bias", False)
    scale = config.number("attention_multiplier", 1, above=0)
    x = decoder.layers(
        decoder.embedded(config.number("embedding_multiplier", 1)),
        lambda h, at, layer: decoder.attention(h, at, rotary=rotary, scale=scale, bias=bias, bias_out=bias),
        lambda h, at: decoder.gated(h, at, bias=bias_of_gates),
        residual=config.number("residual_multiplier", 1),
    )
    return step.finish(step.scaled(decoder.logits(x), 1 / config.number("logits_scaling", 1, above=0)))
