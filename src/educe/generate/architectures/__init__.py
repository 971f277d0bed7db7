"""Architectures: a language model's configuration and weights to the graph of one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import onnx_ir as ir

from educe.errors import UnsupportedModelError, nearest
from educe.generate.architectures.base import CacheLayout, StepGraph
from educe.generate.architectures.llama import llama, qwen

Build: TypeAlias = Callable[[StepGraph, Mapping[str, Any]], ir.Model]

ARCHITECTURES: dict[str, Build] = {"llama": llama, "mistral": llama, "qwen2": qwen, "qwen3": qwen}
"""What builds the graph of each model type, as Hugging Face names it."""


def architecture(model_type: str) -> Build:
    """Return what builds the graph of a model type.

    Raises:
        UnsupportedModelError: there is none.
    """
    if model_type not in ARCHITECTURES:
        reason = f"language models of the type {model_type!r} are not run yet"
        raise UnsupportedModelError(reason, remedy=nearest(model_type, ARCHITECTURES))
    return ARCHITECTURES[model_type]


__all__ = ["ARCHITECTURES", "CacheLayout", "StepGraph", "architecture"]
