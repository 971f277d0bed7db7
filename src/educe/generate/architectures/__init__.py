"""Architectures: a language model's configuration and weights to the graph of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph
from educe.generate.architectures.gemma import gemma2, gemma3
from educe.generate.architectures.gpt2 import gpt2
from educe.generate.architectures.gpt_neox import gpt_neox
from educe.generate.architectures.granite import granite
from educe.generate.architectures.llama import llama, mistral, qwen2, qwen3
from educe.generate.architectures.mixtral import mixtral
from educe.generate.architectures.olmo2 import olmo2
from educe.generate.architectures.phi3 import phi3
from educe.generate.architectures.qwen3_moe import qwen3_moe
from educe.generate.architectures.smollm3 import smollm3
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration

Build: TypeAlias = Callable[[StepGraph, Configuration], ir.Model]

ARCHITECTURES: dict[str, Build] = {
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "granite": granite,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo2": olmo2,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
}
"""What builds the graph of each model type, as Hugging Face names it."""


__all__ = ["ARCHITECTURES", "CacheLayout", "StepGraph"]
