"""Decoders answer as Hugging Face's library does: prefill, token by token, mixed, and past every border."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.formats import checkpoint
from educe.generate.runner import Runner
from educe.generate.step import Slice

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

VOCABULARY, LENGTH, BLOCK = 99, 60, 16
BLOCKS = -(-2 * LENGTH // BLOCK)

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_MOE = {**_GROUPED, "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2 * LENGTH}
_GEMMA = {**_GROUPED, "head_dim": 16, "sliding_window": 9, "num_hidden_layers": 3}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


_FACTORS = {"short_factor": [1 + i / 9 for i in range(8)], "long_factor": [2 + i for i in range(8)]}
_BORDER = {"max_position_embeddings": 2 * LENGTH, "original_max_position_embeddings": 24}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 24}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {**_GROUPED, "tie_word_embeddings": True, "head_dim": 24}),
    "llama-linear": ("llama", {**_GROUPED, **rope("linear", factor=3.0)}),
    "llama-dynamic": ("llama", {**_GROUPED, **rope("dynamic", factor=4.0), "max_position_embeddings": 24}),
    "llama-llama3": ("llama", {**_GROUPED, **rope("llama3", original_max_position_embeddings=32, **_LLAMA3)}),
    "llama-yarn": ("llama", {**_GROUPED, **rope("yarn", **_YARN)}),
    "llama-yarn-mscale": (
        "llama",
        {**_GROUPED, **rope("yarn", **_YARN, mscale=1.0, mscale_all_dim=0.5, beta_fast=8.0, truncate=False)},
    ),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 7, "head_dim": 16}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2-windows": (
        "qwen2",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 16}),
    "phi3": ("phi3", {**_GROUPED, "sliding_window": 11}),
    "phi3-longrope": ("phi3", {**_GROUPED, **_BORDER, **rope("longrope", **_FACTORS)}),
    "phi3-partial": ("phi3", {**_GROUPED, **rope("default", partial_rotary_factor=0.5)}),
    "gemma2": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", {**_GEMMA, "sliding_window_pattern": 3, "query_pre_attn_scalar": 20}),
    "gemma2-by-width": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 16}),
    "gemma3-by-width": ("gemma3_text", {**_GEMMA, "query_pre_attn_scalar": 16}),
    "smollm3-four": ("smollm3", {**_GROUPED, "num_hidden_layers": 4}),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", _GROUPED),
    "granite": (
        "granite",
        {
            **_GROUPED,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 0.5,
        },
    ),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 5, "sliding_window": 12}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "norm_topk_prob": True, "num_experts_per_tok": 3}),
    "qwen3_moe-windows": ("qwen3_moe", {**_MOE, "use_sliding_window": True, "sliding_window": 8}),
    "qwen3_moe-some": (
        "qwen3_moe",
        {**_MOE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    "gpt2": (
        "gpt2",
        _GPT2,
    ),
    "gpt2-scaled": (
        "gpt2",
        {
            **_GPT2,
            "scale_attn_by_inverse_layer_idx": True,
            "n_inner": 80,
        },
    ),
    "gpt_neox": ("gpt_neox", _SIZES),
    "gpt_neox-sequential": (
        "gpt_neox",
        {**_SIZES, "use_parallel_residual": False, **rope("default", partial_rotary_factor=0.5)},
    ),
}


def saved(case: str, folder: Path) -> Any:
    """Return a model with seeded random weights, norms and biases too, which it has saved to a folder."""
    model_type, fields = CASES[case]
    torch.manual_seed(zlib.crc32(case.encode()))
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") and "gemma" not in model_type else 0.0
            parameter.normal_(mean, 0.15)
    model.save_pretrained(folder)
    return model


def expected(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def assert_close(found: np.ndarray, right: np.ndarray) -> None:
    difference = np.abs(found - right).max()
    assert difference < 1e-3
    assert difference < 1e-4 * np.abs(right).max()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = saved(case, tmp_path)
    runner = Runner(
        checkpoint.load(tmp_path), max_length=BLOCKS * BLOCK, block_size=BLOCK, max_sequences=4, threads=1
    )
    runner.allocate(3 * BLOCKS)
    rng = np.random.default_rng(5)
    texts = [[int(token) for token in rng.integers(3, VOCABULARY, size)] for size in (LENGTH, 33, 19)]
    # The shortest first: the library keeps the frequencies of the longest text so far.
    right = [expected(model, text) for text in reversed(texts)][::-1]

    def part(number: int, start: int, stop: int) -> Slice:
        blocks = range(number * BLOCKS, (number + 1) * BLOCKS)
        span = len(texts[number])
        return Slice(texts[number][start:stop], start, blocks, stop - start, span)

    whole = runner.run([part(0, 0, LENGTH)])
    assert_close(whole, right[0])
    mixed = runner.run([part(1, 0, 17), part(2, 0, 19), part(0, 30, 32)])
    assert_close(mixed, np.concatenate([right[1][:17], right[2], right[0][30:32]]))
    for place in range(17, 33):
        rows = runner.run([part(1, place, place + 1), part(0, place, place + 1)])
        assert_close(rows, np.stack([right[1][place], right[0][place]]))
        np.testing.assert_array_equal(rows[1], whole[place])


def older(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as versions 4 of the library write it."""
    found = {name: value for name, value in config.items() if name not in ("rope_parameters", "layer_types")}
    rope = dict(config.get("rope_parameters", {}))
    if "full_attention" in rope:
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        found["sliding_window_pattern"] = found.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    theta, part = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    if config["model_type"] == "gpt_neox":
        return {**found, "rotary_emb_base": theta, "rotary_pct": part}
    if "num_local_experts" in found and config["model_type"] == "qwen3_moe":
        found["num_experts"] = found.pop("num_local_experts")
    rope["type"] = rope.pop("rope_type", "default")
    scaling = None if rope["type"] == "default" else rope
    return {**found, "rope_theta": theta, "partial_rotary_factor": part, "rope_scaling": scaling}


@pytest.mark.parametrize(
    "case",
    [
        "llama-yarn",
        "phi3-longrope",
        "phi3-partial",
        "gemma2",
        "gemma3",
        "smollm3-four",
        "gpt_neox",
        "qwen3_moe",
    ],
)
def test_older_configurations_mean_the_same(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path)
    tokens = np.random.default_rng(6).integers(3, VOCABULARY, LENGTH).tolist()
    found = []
    for rewrite in (dict, older):
        config = rewrite(json.loads((tmp_path / "config.json").read_text()))
        (tmp_path / "config.json").write_text(json.dumps(config))
        runner = Runner(checkpoint.load(tmp_path), max_length=4 * BLOCK, block_size=BLOCK, threads=1)
        runner.allocate(4)
        found.append(runner.run([Slice(tokens, 0, range(4), LENGTH)]))
    np.testing.assert_array_equal(*found)
