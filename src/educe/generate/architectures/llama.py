"""Llama and those that follow it in all but biases, windows, and norms of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Attend, Decoder
from educe.generate.configuration import Configuration


def llama(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `llama`: arxiv.org/abs/2302.13971, 2307.09288, 2407.21783."""
    decoder, bias = Decoder(step, config), config.truth("attention_bias", False)
    rotary, bias_of_gates = decoder.rotary(), config.truth("mlp_bias", False)
    x = decoder.layers(
        decoder.embedded(),
        lambda h, at, layer: decoder.attention(h, at, rotary=rotary, bias=bias, bias_out=bias),
        lambda h, at: decoder.gated(h, at, bias=bias_of_gates),
    )
    return step.finish(decoder.logits(x))


def mistral(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `mistral`, whose tokens see a window: arxiv.org/abs/2310.06825."""
    decoder = Decoder(step, config)
    rotary, windows = decoder.rotary(), decoder.windows(lambda layer: True)
    x = decoder.layers(
        decoder.embedded(),
        lambda h, at, layer: decoder.attention(h, at, rotary=rotary, window=windows[layer]),
        decoder.gated,
    )
    return step.finish(decoder.logits(x))


def qwen2(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `qwen2`, which has biases: arxiv.org/abs/2407.10671."""
    decoder = Decoder(step, config)
    rotary, windows = decoder.rotary(), _qwen_windows(decoder, config)
    x = decoder.layers(
        decoder.embedded(),
        lambda h, at, layer: decoder.attention(h, at, rotary=rotary, window=windows[layer], bias=True),
        decoder.gated,
    )
    return step.finish(decoder.logits(x))


def qwen3(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `qwen3`, which has norms of queries and keys: arxiv.org/abs/2505.09388."""
    decoder = Decoder(step, config)
    attention = qwen3_attention(decoder, config, _qwen_windows(decoder, config))
    x = decoder.layers(decoder.embedded(), attention, decoder.gated)
    return step.finish(decoder.logits(x))


def qwen3_attention(decoder: Decoder, config: Configuration, windows: Sequence[int]) -> Attend:
    """Return the attention of Qwen3's layers, whose windows are given."""
    rotary, norm = decoder.rotary(), decoder.norm_of_heads
    bias = config.truth("attention_bias", False)
    return lambda h, at, layer: decoder.attention(
        h, at, rotary=rotary, norm=norm, window=windows[layer], bias=bias, bias_out=bias
    )


def _qwen_windows(decoder: Decoder, config: Configuration) -> list[int]:
    """Return the windows of the layers, which there are only where the configuration asks for them."""
    first = config.integer("max_window_layers", 28, least=0)
    windows = decoder.windows(lambda layer: layer >= first)
    return windows if config.truth("use_sliding_window", False) else [0] * decoder.depth
