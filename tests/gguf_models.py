"""Small GGUF files of every architecture, as converters write them, with the weights they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

HEADS, KV_HEADS, WIDTH, HIDDEN, FEED_FORWARD = 4, 2, 16, 64, 96
TOKENS = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "▁a"]
TYPES = [2, 3, 3, 6, 1, 1, 1, 1]

KEYS: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": HIDDEN,
    "block_count": 2,
    "feed_forward_length": FEED_FORWARD,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}


def write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    encoding: str = "F32",
    vocabulary: bool = True,
    alignment: int = 32,
) -> Path:
    """Write a file whose keys are the architecture's, but those with a dot at the front, which are whole."""
    writer = GGUFWriter(path, architecture)
    if alignment != writer.data_alignment:
        writer.add_custom_alignment(alignment)
    if vocabulary:
        add_llama_vocabulary(writer)
    for key, value in keys.items():
        add(writer, key[1:] if key.startswith(".") else f"{architecture}.{key}", value)
    for name, array in tensors.items():
        if array.ndim > 1 and encoding != "F32":
            kind = GGMLQuantizationType[encoding]
            writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_llama_vocabulary(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(index) for index in range(len(TOKENS))])
    writer.add_token_types(TYPES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0].content }}")


def adjacent(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows as llama's converters order them: the two elements that rotate together side by side."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def decoder_weights(
    rng: np.random.Generator, *, layers: int = 2, tied: bool = False
) -> dict[str, np.ndarray]:
    """Return the weights of a small llama under Hugging Face's names."""
    weights = {
        "model.embed_tokens.weight": random(rng, len(TOKENS), HIDDEN),
        "model.norm.weight": random(rng, HIDDEN),
    }
    if not tied:
        weights["lm_head.weight"] = random(rng, len(TOKENS), HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": random(rng, HIDDEN),
            f"{prefix}.self_attn.q_proj.weight": random(rng, HEADS * WIDTH, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": random(rng, KV_HEADS * WIDTH, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": random(rng, KV_HEADS * WIDTH, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": random(rng, HIDDEN, HEADS * WIDTH),
            f"{prefix}.post_attention_layernorm.weight": random(rng, HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": random(rng, FEED_FORWARD, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": random(rng, FEED_FORWARD, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": random(rng, HIDDEN, FEED_FORWARD),
        }
    return weights
