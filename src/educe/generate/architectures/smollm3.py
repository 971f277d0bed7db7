"""SmolLM3: Llama with layers that do not know positions (arxiv.org/abs/2501.18795)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Decoder
from educe.generate.configuration import Configuration

_THETA = 2_000_000.0


def smollm3(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `smollm3`, of whose layers every fourth, or those that the configuration says, turn nothing."""
    decoder, bias = Decoder(step, config), config.truth("attention_bias", False)
    rotary = decoder.rotary(config=config.replaced(rope_theta=config.number("rope_theta", _THETA)))
    every, bias_of_gates = config.integer("no_rope_layer_interval", 4), config.truth("mlp_bias", False)
    ruled = tuple(int((layer + 1) % every != 0) for layer in range(decoder.depth))
    turned = config.integers("no_rope_layers", ruled)
    if len(turned) < decoder.depth:
        raise config.error("no_rope_layers", f"has {len(turned):,} items for {decoder.depth:,} layers")
    windows = [0] * decoder.depth
    if config.truth("use_sliding_window", False):
        windows = decoder.windows(lambda layer: not turned[layer])

    def attend(h: ir.Value, at: str, layer: int) -> ir.Value:
        angles = rotary if turned[layer] else ""
        return decoder.attention(h, at, rotary=angles, window=windows[layer], bias=bias, bias_out=bias)

    x = decoder.layers(decoder.embedded(), attend, lambda h, at: decoder.gated(h, at, bias=bias_of_gates))
    return step.finish(decoder.logits(x))
