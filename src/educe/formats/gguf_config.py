"""GGUF's metadata as the fields of Hugging Face's config.json and generation_config.json.

The keys are those of the GGUF document in ggml's repository.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedFormatError
from educe.formats.folder import shown
from educe.formats.gguf_keys import Keys, wrong_value
from educe.model.checkpoint import Weight

_MOST_LAYERS = 4096
_DEFAULT_ROPE_THETA = 10_000.0

_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
}
_GPT2_FIELDS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
}
_GEMMA_ACT = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""The models that scale queries by the width of a head that the hidden size gives, which no key says."""


@dataclass(frozen=True)
class _Source:
    keys: Keys
    tensors: Mapping[str, Weight]
    num_layers: int

    def has(self, tensor: str) -> bool:
        return tensor in self.tensors


def config(keys: Keys, tensors: Mapping[str, Weight], vocabulary_size: int) -> dict[str, Any]:
    """Return the fields of config.json, ``model_type`` among them.

    Args:
        tensors: The file's, under GGUF's names.
        vocabulary_size: Number of tokens, where no tensor says it.

    Raises:
        ModelFileError: a key is missing or has a value that cannot be.
        UnsupportedFormatError: the architecture is none that Educe knows.
    """
    build = ARCHITECTURES.get(keys.architecture)
    if build is None:
        raise UnsupportedFormatError(
            f"is a GGUF model of the architecture {shown(keys.architecture)}",
            remedy=f"Educe reads {', '.join(ARCHITECTURES)}",
        )
    num_layers = keys.integer("block_count")
    if num_layers > _MOST_LAYERS:
        raise wrong_value(f"{keys.architecture}.block_count", num_layers, f"at most {_MOST_LAYERS:,}")
    embedding = tensors.get("token_embd.weight")
    return {
        **build(_Source(keys, tensors, num_layers)),
        "vocab_size": vocabulary_size if embedding is None else embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _decoder(source: _Source) -> dict[str, Any]:
    """Return what all decoders with rotary positions and root-mean-square norms have."""
    keys = source.keys
    heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
    found: dict[str, Any] = {
        **_integers(keys, _FIELDS),
        "intermediate_size": _feed_forward(keys),
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": keys.integer("attention.key_length", max(1, hidden // heads)),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", _DEFAULT_ROPE_THETA),
        "hidden_act": "silu",
    }
    if keys.integer("attention.value_length", found["head_dim"]) != found["head_dim"]:
        raise UnsupportedFormatError("has values of another width than keys")
    rotated = keys.integer("rope.dimension_count", found["head_dim"])
    if rotated != found["head_dim"]:
        found["partial_rotary_factor"] = rotated / found["head_dim"]
    if scaling := _rope_scaling(source, found["max_position_embeddings"]):
        found["rope_scaling"] = scaling
    return found


def _integers(keys: Keys, fields: Mapping[str, str]) -> dict[str, Any]:
    return {name: keys.integer(key) for key, name in fields.items()}


def _feed_forward(keys: Keys) -> int:
    key = "feed_forward_length"
    return keys.integer(key if key in keys else "expert_feed_forward_length")


def _rope_scaling(source: _Source, context_length: int) -> dict[str, Any] | None:
    keys = source.keys
    original = keys.integer("rope.scaling.original_context_length", context_length)
    if factors := _rope_factors(source):
        given = {"rope_type": "longrope", **factors, "original_max_position_embeddings": original}
        if "rope.scaling.attn_factor" in keys:
            given["attention_factor"] = keys.number("rope.scaling.attn_factor")
        return given
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    kind = keys.text("rope.scaling.type", "linear" if factor != 1 else "none")
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {**_yarn(keys, factor), "original_max_position_embeddings": original}
    raise UnsupportedFormatError(
        f"scales rotary positions by {shown(kind)}", remedy="Educe reads none, linear, yarn and longrope"
    )


def _yarn(keys: Keys, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    for key in ("beta_fast", "beta_slow"):
        if f"rope.scaling.yarn_{key}" in keys:
            found[key] = keys.number(f"rope.scaling.yarn_{key}")
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    if attention != 1 and factor > 0:
        found["attention_factor"] = attention * (0.1 * math.log(max(1.0, factor)) + 1)
    return found


def _rope_factors(source: _Source) -> dict[str, Any] | None:
    """Return what tensors divide the frequencies by.

    Llama 3's scaling is written as one such tensor; with it for short and for long texts, and attention as
    it is, LongRoPE is the same function.
    """
    tensors = source.tensors
    if "rope_freqs.weight" in tensors:
        factors = _factors(tensors["rope_freqs.weight"])
        return {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
    names = ("rope_factors_short.weight", "rope_factors_long.weight")
    if not all(name in tensors for name in names):
        return None
    return {"short_factor": _factors(tensors[names[0]]), "long_factor": _factors(tensors[names[1]])}


def _factors(weight: Weight) -> list[float]:
    if len(weight.shape) == 1 and weight.shape[0] <= 1 << 16:
        factors = weight.array()
        if np.isfinite(factors).all() and (factors > 0).all():
            return [float(factor) for factor in factors]
    raise ModelFileError(
        "holds no positive factors of frequencies",
        place=f"tensor {shown(weight.name)}",
        remedy="download or convert the file again",
    )


def _llama(source: _Source) -> dict[str, Any]:
    keys = source.keys
    found = {
        "model_type": "llama",
        **_decoder(source),
        "attention_bias": source.has("blk.0.attn_q.bias"),
        "mlp_bias": source.has("blk.0.ffn_up.bias"),
    }
    if "expert_count" in keys:
        found["model_type"] = "mixtral"
        found["num_local_experts"] = keys.integer("expert_count")
        found["num_experts_per_tok"] = keys.integer("expert_used_count")
    elif keys.window() is not None:
        found["model_type"] = "mistral"
    if found["model_type"] != "llama":
        found["sliding_window"] = keys.window()
    return found


def _plain(model_type: str, **constants: Any) -> Callable[[_Source], dict[str, Any]]:
    def build(source: _Source) -> dict[str, Any]:
        found = {"model_type": model_type, **_decoder(source), **constants}
        found["attention_bias"] = source.has("blk.0.attn_q.bias")
        return found

    return build


def _qwen3moe(source: _Source) -> dict[str, Any]:
    keys = source.keys
    return {
        **_plain("qwen3_moe")(source),
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _phi3(source: _Source) -> dict[str, Any]:
    keys = source.keys
    found = {"model_type": "phi3", **_decoder(source)}
    found["original_max_position_embeddings"] = keys.integer(
        "rope.scaling.original_context_length", found["max_position_embeddings"]
    )
    found["sliding_window"] = keys.window()
    return found


def _gemma(source: _Source, model_type: str, pattern: int) -> dict[str, Any]:
    keys = source.keys
    found = {
        "model_type": model_type,
        **_decoder(source),
        **_GEMMA_ACT,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in keys:
            found[name] = keys.number(name)
    found["query_pre_attn_scalar"] = _query_scalar(source, found)
    found["sliding_window"] = keys.window()
    found["layer_types"] = _layer_types(source, pattern if found["sliding_window"] else 1)
    return found


def _query_scalar(source: _Source, found: Mapping[str, Any]) -> float:
    keys = source.keys
    if "attention.scale" in keys:
        scale = keys.number("attention.scale")
        if scale <= 0:
            raise wrong_value(f"{keys.architecture}.attention.scale", scale, "a positive number")
        return scale**-2
    if source.num_layers == _LAYERS_OF_27B[keys.architecture]:
        return float(found["hidden_size"] // found["num_attention_heads"])
    return float(found["head_dim"])


def _layer_types(source: _Source, pattern: int) -> list[str]:
    """Return the kind of attention of each layer: every `pattern`-th sees all."""
    key, count = "attention.sliding_window_pattern", source.num_layers
    if source.keys.holds_array(key):
        sliding = source.keys.flags(key, count)
    else:
        pattern = source.keys.integer(key, pattern)
        sliding = [(layer + 1) % pattern != 0 for layer in range(count)]
    return ["sliding_attention" if slides else "full_attention" for slides in sliding]


def _gemma2(source: _Source) -> dict[str, Any]:
    return _gemma(source, "gemma2", 2)


def _gemma3(source: _Source) -> dict[str, Any]:
    local = source.keys.number("rope.freq_base_swa", _DEFAULT_ROPE_THETA)
    return {**_gemma(source, "gemma3_text", 6), "rope_local_base_freq": local}


def _granite(source: _Source) -> dict[str, Any]:
    keys = source.keys
    return {
        **_plain("granite", mlp_bias=source.has("blk.0.ffn_up.bias"))(source),
        "embedding_multiplier": keys.number("embedding_scale", 1.0),
        "residual_multiplier": keys.number("residual_scale", 1.0),
        "attention_multiplier": keys.number("attention.scale", 1.0),
        "logits_scaling": keys.number("logit_scale", 1.0),
    }


def _olmo2(source: _Source) -> dict[str, Any]:
    found = _plain("olmo2")(source)
    if source.keys.window() is not None:
        found["model_type"] = "olmo3"
        found["sliding_window"] = source.keys.window()
        found["layer_types"] = _layer_types(source, 4)
    return found


def _smollm3(source: _Source) -> dict[str, Any]:
    found = _plain("smollm3", mlp_bias=source.has("blk.0.ffn_up.bias"))(source)
    found["no_rope_layer_interval"] = 4
    found["no_rope_layers"] = [int((layer + 1) % 4 != 0) for layer in range(source.num_layers)]
    return found


def _gpt2(source: _Source) -> dict[str, Any]:
    keys = source.keys
    found = _integers(keys, _GPT2_FIELDS)
    return {
        "model_type": "gpt2",
        **found,
        "n_inner": keys.integer("feed_forward_length", 4 * found["n_embd"]),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gptneox(source: _Source) -> dict[str, Any]:
    keys = source.keys
    found: dict[str, Any] = {"model_type": "gpt_neox", "hidden_act": "gelu"}
    found |= _integers(keys, _FIELDS) | {"intermediate_size": keys.integer("feed_forward_length")}
    head_width = max(1, found["hidden_size"] // found["num_attention_heads"])
    return {
        **found,
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "rotary_pct": keys.integer("rope.dimension_count", head_width) / head_width,
        "rotary_emb_base": keys.number("rope.freq_base", _DEFAULT_ROPE_THETA),
        "use_parallel_residual": keys.truth("use_parallel_residual", True),
        "attention_bias": source.has("blk.0.attn_qkv.bias"),
    }


ARCHITECTURES: dict[str, Callable[[_Source], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _plain("qwen2"),
    "qwen3": _plain("qwen3"),
    "qwen3moe": _qwen3moe,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "granite": _granite,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
}
"""The architectures by GGUF's names."""
