"""A model says the same from a GGUF file, written as llama.cpp's converters write it, as from its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map

from educe.formats import checkpoint
from educe.generate.runner import Runner
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint
from tests.gguf_models import adjacent, write

pytest.importorskip("transformers", reason="transformers is installed by make test-parity")
from tests.parity.test_decoders import BLOCK, VOCABULARY, saved

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

LENGTH = 60
ARCHITECTURES = {
    "llama": "llama",
    "llama-linear": "llama",
    "llama-llama3": "llama",
    "llama-yarn": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "phi3": "phi3",
    "phi3-longrope": "phi3",
    "phi3-partial": "phi3",
    "gemma2-by-width": "gemma2",
    "gemma3-by-width": "gemma3",
    "smollm3-four": "smollm3",
    "olmo2": "olmo2",
    "granite": "granite",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "gpt_neox-sequential": "gptneox",
}
_ADJACENT = ("llama", "granite", "smollm3")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123]|(?:gate|up|down)_proj)\.weight")
_STACKED = {"w1": "gate", "w2": "down", "w3": "up"}


def tensors(architecture: str, found: Checkpoint) -> dict[str, np.ndarray]:
    """Return weights as a converter writes them: renamed, rows permuted, norms plus one, experts stacked."""
    code = {name: code for code, name in MODEL_ARCH_NAMES.items()}[architecture]
    table, config, written = get_tensor_name_map(MODEL_ARCH(code), 8), found.config, {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, weight in found.weights.items():
        array = weight.array()
        if match := _EXPERT.fullmatch(name):
            part = _STACKED.get(match[3], match[3].removesuffix("_proj"))
            layer = re.search(r"\.(\d+)\.", name)
            assert layer is not None
            experts.setdefault(f"blk.{layer[1]}.ffn_{part}_exps.weight", {})[int(match[2])] = array
            continue
        if architecture in _ADJACENT and re.search(r"\.[qk]_proj\.", name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            array = adjacent(array, heads)
        if architecture == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight", name):
            array = np.ascontiguousarray(array.T)
        if "query_key_value" in name:
            by_head = array.reshape(config["num_attention_heads"], 3, -1, *array.shape[1:])
            array = np.ascontiguousarray(by_head.swapaxes(0, 1)).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        renamed = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert renamed is not None, name
        written[renamed] = array
    stacks = {name: np.stack([parts[i] for i in range(len(parts))]) for name, parts in experts.items()}
    return {**written, **stacks}


def keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that a converter writes of a configuration."""

    def first(*names: str) -> Any:
        return next(config[name] for name in names if config.get(name) is not None)

    hidden, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
    width = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    found: dict[str, Any] = {
        "context_length": first("max_position_embeddings", "n_positions"),
        "embedding_length": hidden,
        "block_count": first("num_hidden_layers", "n_layer"),
        "feed_forward_length": config.get("intermediate_size") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.freq_base": rope.get("rope_theta", 10000.0),
        "rope.dimension_count": int(width * rope.get("partial_rotary_factor", 1.0)),
    }
    for ours, theirs in {
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "layer_norm_eps": "attention.layer_norm_epsilon",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
        "sliding_window": "attention.sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale",
        "logits_scaling": "logit_scale",
        "num_local_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "moe_intermediate_size": "expert_feed_forward_length",
        "use_parallel_residual": "use_parallel_residual",
    }.items():
        if config.get(ours) is not None:
            found[theirs] = config[ours]
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope.get("rope_type") in ("yarn", "longrope"):
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if "layer_types" in config and config["model_type"] == "gemma3_text":
        kinds = [kind == "sliding_attention" for kind in config["layer_types"]]
        found["attention.sliding_window_pattern"] = kinds
    return found


def factors(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors that divide frequencies."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32)
            for kind in ("short", "long")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    width = config["head_dim"]
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = (rope["original_max_position_embeddings"] / waves - low) / (high - low)
    slowed = 1 / ((1 - share) / rope["factor"] + share)
    found = np.where(share >= 1, 1.0, np.where(share <= 0, rope["factor"], slowed))
    return {"rope_freqs.weight": found.astype(np.float32)}


def logits(found: Checkpoint) -> np.ndarray:
    runner = Runner(found, max_length=4 * BLOCK, block_size=BLOCK, max_sequences=1, threads=1)
    runner.allocate(4)
    tokens = np.random.default_rng(2).integers(3, VOCABULARY, LENGTH).tolist()
    return runner.run([Slice(tokens, 0, range(4), LENGTH)])


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_gguf_file_says_what_its_folder_says(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path)
    folder, architecture = checkpoint.load(tmp_path), ARCHITECTURES[case]
    arrays = {**tensors(architecture, folder), **factors(folder.config)}
    path = tmp_path / "model.gguf"
    read = checkpoint.load(write(path, architecture, keys(folder.config), arrays))
    assert set(read.weights) == set(folder.weights)
    right = logits(folder)
    np.testing.assert_allclose(logits(read), right, atol=1e-4 * np.abs(right).max(), rtol=0)
