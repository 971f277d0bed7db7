"""Llama models under the names of Meta's own code and of llama2.c, as Hugging Face's library has them.

Meta's rotary embedding turns neighbouring pairs of a head's elements, Hugging Face's the first half against
the second: the rows of the query and key projections are put in the other order here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError
from educe.formats.folder import integer, shown
from educe.model.checkpoint import Weight

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")


def describes(config: Mapping[str, Any]) -> bool:
    """Say whether a configuration is one of Meta's, not of Hugging Face's library."""
    return "model_type" not in config and {"dim", "n_layers", "n_heads", "vocab_size"} <= config.keys()


def converted(
    params: Mapping[str, Any], weights: Mapping[str, Weight], path: Path
) -> tuple[dict[str, Any], dict[str, Weight]]:
    """Return configuration and weights as Hugging Face's library has them.

    Args:
        params: ``dim``, ``hidden_dim``, ``n_layers``, ``n_heads``, ``n_kv_heads``, ``vocab_size``,
            ``max_seq_len``, ``norm_eps``, ``rope_theta``.
        weights: By Meta's names; kept as they are, but for queries and keys, which are copied.
        path: Where the configuration came from, for errors.

    Raises:
        ModelFileError: a size is missing or does not fit the weights.
    """
    heads = integer(params, "n_heads", path)
    kv_heads = integer({"n_kv_heads": heads, **params}, "n_kv_heads", path)
    found = {}
    for name, weight in weights.items():
        renamed = weight.renamed(_renamed(name))
        if renamed.name.endswith((".q_proj.weight", ".k_proj.weight")):
            renamed = _in_halves(renamed, heads if ".q_proj." in renamed.name else kv_heads, path)
        found[renamed.name] = renamed
    return _config(params, heads, kv_heads, "lm_head.weight" not in found, path), found


def _renamed(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    if layer:
        return f"model.layers.{layer[1]}.{_NAMES.get(layer[2], layer[2])}"
    return _NAMES.get(name, name)


def _in_halves(weight: Weight, heads: int, path: Path) -> Weight:
    rows = weight.shape[0] if weight.shape else 0
    if not rows or rows % (2 * heads):
        raise ModelFileError(
            f"has {rows:,} rows, which are not {heads:,} heads of pairs",
            path=path,
            place=f"weight {shown(weight.name)}",
            remedy="use the configuration that came with the weights",
        )
    return weight.taken(np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1))


def _config(
    params: Mapping[str, Any], heads: int, kv_heads: int, is_tied: bool, path: Path
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": integer(params, "dim", path),
        "intermediate_size": integer(params, "hidden_dim", path),
        "num_hidden_layers": integer(params, "n_layers", path),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": integer(params, "vocab_size", path),
        "max_position_embeddings": integer({"max_seq_len": 2048, **params}, "max_seq_len", path),
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 10000.0),
        "tie_word_embeddings": is_tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
