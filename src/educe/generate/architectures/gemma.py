"""Gemma: norms before and after every part, windows in most layers."""

from __future__ import annotations

import math

import onnx_ir as ir

from educe.errors import UnsupportedModelError
from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import FULL, SLIDING, Attend, Decoder
from educe.generate.configuration import Configuration

_ACTIVATION = "gelu_pytorch_tanh"
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_LOCAL_THETA, _GLOBAL_THETA = 10_000.0, 1_000_000.0


def gemma2(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `gemma2`, whose scores and logits have a bound: arxiv.org/abs/2408.00118."""
    decoder = Decoder(step, config, norm_plus=1.0, activation=_ACTIVATION)
    rotary, windows = decoder.rotary(), decoder.windows(lambda layer: layer % 2 == 0)
    scale, softcap = _scale(config), config.number("attn_logit_softcapping", 0)
    bias = config.truth("attention_bias", False)

    def attend(h: ir.Value, at: str, layer: int) -> ir.Value:
        window = windows[layer]
        return decoder.attention(
            h, at, rotary=rotary, scale=scale, softcap=softcap, window=window, bias=bias, bias_out=bias
        )

    return _built(step, config, decoder, attend)


def gemma3(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `gemma3_text`, whose windowed layers have angles of their own: arxiv.org/abs/2503.19786."""
    decoder = Decoder(step, config, norm_plus=1.0, activation=_ACTIVATION)
    every = config.integer("sliding_window_pattern", 6)

    def slides(layer: int) -> bool:
        return (layer + 1) % every != 0

    types, windows = decoder.layer_types(slides), decoder.windows(slides)
    theta = config.number("rope_theta", _GLOBAL_THETA)
    decoder.rotary(FULL, config.replaced(rope_theta=theta))
    theta = config.number("rope_local_base_freq", _LOCAL_THETA)
    decoder.rotary(SLIDING, config.replaced(rope_theta=theta, rope_scaling=None))
    scale, norm, bias = _scale(config), decoder.norm_of_heads, config.truth("attention_bias", False)

    def attend(h: ir.Value, at: str, layer: int) -> ir.Value:
        rotary, window = types[layer], windows[layer]
        return decoder.attention(
            h, at, rotary=rotary, norm=norm, scale=scale, window=window, bias=bias, bias_out=bias
        )

    return _built(step, config, decoder, attend)


def _built(step: StepGraph, config: Configuration, decoder: Decoder, attend: Attend) -> ir.Model:
    if config.truth("use_bidirectional_attention", False):
        raise UnsupportedModelError(
            "Gemma whose tokens see those behind them, as encoders' do, is not run yet"
        )
    x = decoder.layers(decoder.embedded(math.sqrt(decoder.hidden)), attend, decoder.gated, norms=_NORMS)
    return step.finish(step.softcapped(decoder.logits(x), config.number("final_logit_softcapping", 0)))


def _scale(config: Configuration) -> float:
    return 1 / math.sqrt(config.number("query_pre_attn_scalar", 256, above=0))
