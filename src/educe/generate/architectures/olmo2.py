"""OLMo 2: norms after every part, and of all queries and keys at once (arxiv.org/abs/2501.00656)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Decoder
from educe.generate.configuration import Configuration

_NORMS = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")


def olmo2(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `olmo2`."""
    decoder, bias = Decoder(step, config), config.truth("attention_bias", False)
    rotary = decoder.rotary()
    x = decoder.layers(
        decoder.embedded(),
        lambda h, at, layer: decoder.attention(
            h, at, rotary=rotary, norm=decoder.norm_of_rows, bias=bias, bias_out=bias
        ),
        decoder.gated,
        norms=_NORMS,
    )
    return step.finish(decoder.logits(x))
