"""Qwen3 with mixtures of experts (arxiv.org/abs/2505.09388)."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.decoder import Decoder
from educe.generate.architectures.experts import MOST_EXPERTS, mixture
from educe.generate.architectures.llama import qwen3_attention
from educe.generate.configuration import Configuration


def qwen3_moe(step: StepGraph, config: Configuration) -> ir.Model:
    """Build `qwen3_moe`, whose layers are mixtures but for those that the configuration names."""
    decoder = Decoder(step, config)
    every, named = config.integer("decoder_sparse_step", 1), config.integers("mlp_only_layers", ())
    dense = {
        f"model.layers.{layer}" for layer in range(decoder.depth) if layer in named or (layer + 1) % every
    }
    name = "num_experts" if "num_experts" in config else "num_local_experts"
    count = config.integer(name, most=MOST_EXPERTS)
    chosen = config.integer("num_experts_per_tok", most=count)

    def feed(h: ir.Value, at: str) -> ir.Value:
        if at in dense:
            return decoder.gated(h, at)
        return mixture(
            step,
            h,
            f"{at}.mlp.gate",
            lambda number, part: f"{at}.mlp.experts.{number}.{part}_proj",
            sizes=(decoder.hidden, config.integer("moe_intermediate_size")),
            count=count,
            chosen=chosen,
            normalised=config.truth("norm_topk_prob", False),
            activation=decoder.activation,
        )

    windows = [0] * decoder.depth
    if config.truth("use_sliding_window", False):
        windows = decoder.windows(lambda layer: True)
    x = decoder.layers(decoder.embedded(), qwen3_attention(decoder, config, windows), feed)
    return step.finish(decoder.logits(x))
