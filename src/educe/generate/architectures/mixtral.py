"""Mixtral: Mistral with a mixture of experts (arxiv.org/abs/2401.04088)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Decoder
from educe.generate.architectures.experts import MOST_EXPERTS, mixture
from educe.generate.configuration import Configuration

_THETA = 1_000_000.0
_PROJECTIONS = {"gate": "w1", "down": "w2", "up": "w3"}


def mixtral(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `mixtral`."""
    decoder = Decoder(step, config)
    rotary = decoder.rotary(config=config.replaced(rope_theta=config.number("rope_theta", _THETA)))
    windows, count = (
        decoder.windows(lambda layer: True),
        config.integer("num_local_experts", most=MOST_EXPERTS),
    )
    chosen = config.integer("num_experts_per_tok", most=count)

    def feed(h: ir.Value, at: str) -> ir.Value:
        at = f"{at}.block_sparse_moe"
        return mixture(
            step,
            h,
            f"{at}.gate",
            lambda number, part: f"{at}.experts.{number}.{_PROJECTIONS[part]}",
            sizes=(decoder.hidden, decoder.inner),
            count=count,
            chosen=chosen,
            normalised=True,
            activation=decoder.activation,
        )

    x = decoder.layers(
        decoder.embedded(),
        lambda h, at, layer: decoder.attention(h, at, rotary=rotary, window=windows[layer]),
        feed,
    )
    return step.finish(decoder.logits(x))
