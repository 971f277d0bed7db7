"""GGUF files of every architecture: names, values and configuration are Hugging Face's again."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from gguf.tensor_mapping import get_tensor_name_map

import educe
from educe.errors import ModelFileError, UnsupportedFormatError
from educe.formats import checkpoint, gguf
from educe.formats.gguf_config import ARCHITECTURES
from tests.gguf_models import (
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    KEYS,
    KV_HEADS,
    TOKENS,
    TYPES,
    WIDTH,
    add,
    adjacent,
    decoder_weights,
    random,
    write,
)

LLAMA_KEYS = {**KEYS, "rope.dimension_count": WIDTH, "vocab_size": len(TOKENS)}


def names(architecture: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights under the names that the reference's table gives them."""
    code = {name: code for code, name in MODEL_ARCH_NAMES.items()}[architecture]
    table = get_tensor_name_map(MODEL_ARCH(code), 4)
    found = {
        table.get_name(name, try_suffixes=(".weight", ".bias")): array for name, array in weights.items()
    }
    assert None not in found
    return found


def permuted(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = dict(weights)
    for name, array in weights.items():
        if ".q_proj." in name:
            found[name] = adjacent(array, HEADS)
        if ".k_proj." in name:
            found[name] = adjacent(array, KV_HEADS)
    return found


def assert_weights(found: Any, expected: dict[str, np.ndarray], tolerance: float = 0) -> None:
    assert set(found.weights) == set(expected)
    for name, array in expected.items():
        weight = found.weights[name]
        assert weight.name == name
        assert weight.shape == array.shape
        np.testing.assert_allclose(weight.array(), array, rtol=0, atol=tolerance, err_msg=name)


def load(path: Path) -> Any:
    return gguf.load(path)


@pytest.mark.parametrize("architecture", ["llama", "granite", "smollm3"])
def test_rotary_rows_are_put_back(architecture: str, tmp_path: Path, rng: np.random.Generator) -> None:
    weights = decoder_weights(rng)
    weights["model.layers.0.self_attn.q_proj.bias"] = random(rng, HEADS * WIDTH)
    tensors = names(architecture, permuted(weights))
    found = load(write(tmp_path / "m.gguf", architecture, LLAMA_KEYS, tensors))
    assert_weights(found, weights)
    assert found.model_type == found.config["model_type"] == architecture
    assert found.config["attention_bias"] is True
    assert found.notes == ()


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_rows_are_put_back_as_raw_blocks(encoding: str, tmp_path: Path, rng: np.random.Generator) -> None:
    weights = decoder_weights(rng)
    plain = write(tmp_path / "plain.gguf", "qwen2", KEYS, names("qwen2", weights), encoding=encoding)
    moved = write(
        tmp_path / "moved.gguf", "llama", KEYS, names("llama", permuted(weights)), encoding=encoding
    )
    expected, found = load(plain), load(moved)
    for name in weights:
        assert found.weights[name].encoding == expected.weights[name].encoding
        assert np.array_equal(found.weights[name].data, expected.weights[name].data)
    assert found.weights["model.layers.0.self_attn.q_proj.weight"].encoding == encoding


def test_the_configuration_of_llama(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write(tmp_path / "m.gguf", "llama", LLAMA_KEYS, names("llama", permuted(decoder_weights(rng))))
    found = checkpoint.load(path)
    assert found.config == {
        "model_type": "llama",
        "max_position_embeddings": 128,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": len(TOKENS),
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert found.generation == {"bos_token_id": 1, "eos_token_id": 2}
    assert found.digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size_bytes == path.stat().st_size
    assert found.path == path


def test_weights_are_mapped_and_not_copied(tmp_path: Path, rng: np.random.Generator) -> None:
    found = load(write(tmp_path / "m.gguf", "qwen2", KEYS, names("qwen2", decoder_weights(rng))))
    whole = np.frombuffer(found.content[0], np.uint8)
    for weight in found.weights.values():
        assert np.shares_memory(weight.data, whole)
        assert not weight.data.flags.writeable
        assert np.shares_memory(weight.array(), whole)
    base: Any = whole
    while not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else base.base


def test_a_folder_of_one_gguf_file_is_that_model(tmp_path: Path, rng: np.random.Generator) -> None:
    write(tmp_path / "m.gguf", "qwen2", KEYS, names("qwen2", decoder_weights(rng)))
    assert checkpoint.load(tmp_path).model_type == "qwen2"


def test_the_kind_is_told_by_content(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write(tmp_path / "m.onnx", "qwen2", KEYS, names("qwen2", decoder_weights(rng)))
    assert checkpoint.load(path).model_type == "qwen2"
    assert checkpoint.recognises(path)
    with pytest.raises(UnsupportedFormatError, match=r"is a GGUF model.*educe generate"):
        educe.load(path)


def test_sliding_windows_make_llama_mistral(tmp_path: Path, rng: np.random.Generator) -> None:
    keys = {**KEYS, "attention.sliding_window": 32}
    found = load(write(tmp_path / "m.gguf", "llama", keys, names("llama", permuted(decoder_weights(rng)))))
    assert (found.model_type, found.config["sliding_window"]) == ("mistral", 32)


def experts(rng: np.random.Generator, pattern: str, kinds: tuple[str, str, str]) -> dict[str, np.ndarray]:
    shapes = ((FEED_FORWARD, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD))
    return {
        pattern.format(expert, kind): random(rng, *shape)
        for expert in range(3)
        for kind, shape in zip(kinds, shapes, strict=True)
    }


def stacked(parts: dict[str, np.ndarray], pattern: str, kind: str) -> np.ndarray:
    return np.stack([parts[pattern.format(expert, kind)] for expert in range(3)])


@pytest.mark.parametrize("split", [False, True])
def test_experts_are_weights_of_their_own(split: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    base = {name: array for name, array in decoder_weights(rng, layers=1).items() if ".mlp." not in name}
    pattern, kinds = "model.layers.0.block_sparse_moe.experts.{}.{}.weight", ("w1", "w3", "w2")
    parts = experts(rng, pattern, kinds)
    gate = random(rng, 3, HIDDEN)
    tensors = {**names("llama", permuted(base)), "blk.0.ffn_gate_inp.weight": gate}
    for kind, name in zip(kinds, ("ffn_gate", "ffn_up", "ffn_down"), strict=True):
        if split:
            tensors |= {f"blk.0.{name}.{i}.weight": parts[pattern.format(i, kind)] for i in range(3)}
        else:
            tensors[f"blk.0.{name}_exps.weight"] = stacked(parts, pattern, kind)
    keys = {**KEYS, "block_count": 1, "expert_count": 3, "expert_used_count": 2}
    found = load(write(tmp_path / "m.gguf", "llama", keys, tensors))
    assert_weights(found, {**base, **parts, "model.layers.0.block_sparse_moe.gate.weight": gate})
    assert found.model_type == "mixtral"
    assert (found.config["num_local_experts"], found.config["num_experts_per_tok"]) == (3, 2)


def test_the_experts_of_qwen3(tmp_path: Path, rng: np.random.Generator) -> None:
    base = {name: array for name, array in decoder_weights(rng, layers=1).items() if ".mlp." not in name}
    base["model.layers.0.self_attn.q_norm.weight"] = random(rng, WIDTH)
    base["model.layers.0.self_attn.k_norm.weight"] = random(rng, WIDTH)
    pattern, kinds = "model.layers.0.mlp.experts.{}.{}.weight", ("gate_proj", "up_proj", "down_proj")
    parts = experts(rng, pattern, kinds)
    tensors = names("qwen3moe", base | {"model.layers.0.mlp.gate.weight": random(rng, 3, HIDDEN)})
    for kind, name in zip(kinds, ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), strict=True):
        tensors[f"blk.0.{name}.weight"] = stacked(parts, pattern, kind)
    keys = {**KEYS, "expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": FEED_FORWARD}
    del keys["feed_forward_length"]
    found = load(write(tmp_path / "m.gguf", "qwen3moe", keys, tensors, encoding="Q8_0"))
    assert found.model_type == "qwen3_moe"
    assert found.config["num_experts"] == 3
    assert found.config["moe_intermediate_size"] == FEED_FORWARD
    for name, array in parts.items():
        np.testing.assert_allclose(found.weights[name].array(), array, atol=0.02)


def test_norms_of_gemma_are_without_the_one_that_was_added(tmp_path: Path, rng: np.random.Generator) -> None:
    for architecture, model_type in (("gemma2", "gemma2"), ("gemma3", "gemma3_text")):
        weights = decoder_weights(rng, tied=True)
        for layer in range(2):
            for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
                weights[f"model.layers.{layer}.{norm}.weight"] = random(rng, HIDDEN)
        if architecture == "gemma3":
            weights["model.layers.1.self_attn.q_norm.weight"] = random(rng, WIDTH)
        plus_one = {name: w + 1 if name.endswith("norm.weight") else w for name, w in weights.items()}
        keys = {**KEYS, "attention.key_length": WIDTH, "attention.sliding_window": 32}
        found = load(write(tmp_path / "m.gguf", architecture, keys, names(architecture, plus_one)))
        assert_weights(found, weights, tolerance=1e-6)
        assert found.model_type == model_type
        assert found.config["tie_word_embeddings"] is True


def test_the_configuration_of_gemma(tmp_path: Path, rng: np.random.Generator) -> None:
    keys = {
        **KEYS,
        "block_count": 7,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.sliding_window": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    tensors = {"token_embd.weight": random(rng, 8, HIDDEN)}
    two = load(write(tmp_path / "2.gguf", "gemma2", keys, tensors)).config
    assert (two["attn_logit_softcapping"], two["final_logit_softcapping"]) == (50.0, 30.0)
    assert (two["head_dim"], two["query_pre_attn_scalar"], two["sliding_window"]) == (32, 32, 32)
    assert two["layer_types"] == ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    three = load(write(tmp_path / "3.gguf", "gemma3", {**keys, "rope.freq_base": 1e6}, tensors)).config
    assert three["layer_types"] == [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    assert (three["rope_theta"], three["rope_local_base_freq"]) == (1e6, 10000.0)
    large = load(write(tmp_path / "4.gguf", "gemma2", {**keys, "block_count": 46}, tensors)).config
    assert large["query_pre_attn_scalar"] == HIDDEN / HEADS
    listed = {**keys, "attention.sliding_window_pattern": [True, False, False, True, True, True, False]}
    types = load(write(tmp_path / "5.gguf", "gemma3", listed, tensors)).config["layer_types"]
    assert [kind == "sliding_attention" for kind in types] == listed["attention.sliding_window_pattern"]


def test_norms_of_olmo_stand_after(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = decoder_weights(rng)
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        del weights[f"{prefix}.input_layernorm.weight"]
        weights[f"{prefix}.post_feedforward_layernorm.weight"] = random(rng, HIDDEN)
        weights[f"{prefix}.self_attn.q_norm.weight"] = random(rng, HIDDEN)
    found = load(write(tmp_path / "m.gguf", "olmo2", KEYS, names("olmo2", weights)))
    assert_weights(found, weights)
    assert found.model_type == "olmo2"


def test_the_multipliers_of_granite(tmp_path: Path, rng: np.random.Generator) -> None:
    keys = {
        **KEYS,
        "embedding_scale": 12.0,
        "residual_scale": 0.25,
        "attention.scale": 0.5,
        "logit_scale": 8.0,
    }
    config = load(write(tmp_path / "m.gguf", "granite", keys, {})).config
    found = [config[f"{name}_multiplier"] for name in ("embedding", "residual", "attention")]
    assert [*found, config["logits_scaling"]] == [12.0, 0.25, 0.5, 8.0]


def test_every_fourth_layer_of_smollm3_is_without_rotation(tmp_path: Path) -> None:
    config = load(write(tmp_path / "m.gguf", "smollm3", {**KEYS, "block_count": 5}, {})).config
    assert config["no_rope_layers"] == [1, 1, 1, 0, 1]


def test_joined_projections_and_long_rope_of_phi3(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = {
        name: array
        for name, array in decoder_weights(rng, layers=1).items()
        if not any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    }
    weights["model.layers.0.self_attn.qkv_proj.weight"] = random(rng, (HEADS + 2 * KV_HEADS) * WIDTH, HIDDEN)
    weights["model.layers.0.mlp.gate_up_proj.weight"] = random(rng, 2 * FEED_FORWARD, HIDDEN)
    short, long = np.arange(1, 9, dtype=np.float32), np.arange(11, 19, dtype=np.float32)
    tensors = names("phi3", weights)
    tensors |= {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    keys = {
        **KEYS,
        "rope.dimension_count": WIDTH,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": 1.25,
        "attention.sliding_window": 0,
    }
    found = load(write(tmp_path / "m.gguf", "phi3", keys, tensors))
    assert_weights(found, weights)
    assert found.config["sliding_window"] is None
    assert found.config["original_max_position_embeddings"] == 64
    assert found.config["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "attention_factor": 1.25,
        "original_max_position_embeddings": 64,
    }


def test_products_of_gpt2_are_transposed(tmp_path: Path, rng: np.random.Generator) -> None:
    prefix = "transformer.h.0"
    weights = {
        "transformer.wte.weight": random(rng, 8, HIDDEN),
        "transformer.wpe.weight": random(rng, 128, HIDDEN),
        "transformer.ln_f.bias": random(rng, HIDDEN),
        f"{prefix}.ln_1.weight": random(rng, HIDDEN),
        f"{prefix}.ln_2.weight": random(rng, HIDDEN),
        f"{prefix}.attn.c_attn.weight": random(rng, HIDDEN, 3 * HIDDEN),
        f"{prefix}.attn.c_attn.bias": random(rng, 3 * HIDDEN),
        f"{prefix}.attn.c_proj.weight": random(rng, HIDDEN, HIDDEN),
        f"{prefix}.mlp.c_fc.weight": random(rng, HIDDEN, 4 * HIDDEN),
        f"{prefix}.mlp.c_proj.weight": random(rng, 4 * HIDDEN, HIDDEN),
    }
    turned = {n: np.ascontiguousarray(w.T) if ".c_" in n and w.ndim > 1 else w for n, w in weights.items()}
    keys = {
        "context_length": 128,
        "embedding_length": HIDDEN,
        "block_count": 1,
        "attention.head_count": 4,
        "attention.layer_norm_epsilon": 1e-5,
    }
    for encoding, tolerance, decoded in (("F32", 0, 0), ("F16", 0.01, 0), ("Q8_0", 0.05, 4)):
        path = write(tmp_path / f"{encoding}.gguf", "gpt2", keys, names("gpt2", turned), encoding=encoding)
        found = load(path)
        assert_weights(found, weights, tolerance)
        weight = found.weights[f"{prefix}.attn.c_attn.weight"]
        assert weight.encoding == ("F32" if decoded else encoding)
        assert bool(found.notes) == bool(decoded)
        assert found.config["n_inner"] == 4 * HIDDEN


def test_queries_keys_and_values_of_gpt_neox_are_by_head_again(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    joined = random(rng, HEADS * 3 * WIDTH, HIDDEN)
    by_kind = joined.reshape(HEADS, 3, WIDTH, HIDDEN).swapaxes(0, 1).reshape(joined.shape)
    keys = {
        "context_length": 128,
        "embedding_length": HIDDEN,
        "block_count": 1,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": WIDTH // 4,
        "use_parallel_residual": False,
    }
    tensors = {"blk.0.attn_qkv.weight": np.ascontiguousarray(by_kind)}
    found = load(write(tmp_path / "m.gguf", "gptneox", keys, tensors))
    assert_weights(found, {"gpt_neox.layers.0.attention.query_key_value.weight": joined})
    assert found.config["rotary_pct"] == 0.25
    assert found.config["use_parallel_residual"] is False


def test_factors_of_llama3_are_long_rope_without_a_factor_of_attention(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    found = load(write(tmp_path / "m.gguf", "llama", KEYS, {"rope_freqs.weight": factors}))
    scaling = found.config["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert scaling["short_factor"] == scaling["long_factor"] == factors.tolist()
    assert scaling["attention_factor"] == 1.0
    assert not found.weights


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
            },
        ),
    ],
)
def test_scalings_of_rotary_positions(keys: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    found = load(write(tmp_path / "m.gguf", "qwen3", {**KEYS, **keys}, {}))
    assert found.config.get("rope_scaling") == expected


def test_what_no_key_explains_is_refused_or_noted(tmp_path: Path) -> None:
    noted = load(write(tmp_path / "1.gguf", "qwen2", {**KEYS, "attention.clamp_kqv": 8.0}, {}))
    assert "qwen2.attention.clamp_kqv" in noted.notes[0]
    for keys, match in (
        ({"rope.scaling.type": "spiral"}, "spiral"),
        ({".general.type": "adapter"}, "type 'adapter'"),
        ({".split.count": 3}, "one of 3 parts"),
    ):
        with pytest.raises(UnsupportedFormatError, match=match):
            load(write(tmp_path / "2.gguf", "qwen2", {**KEYS, **keys}, {}))
    with pytest.raises(UnsupportedFormatError, match=r"architecture 'mamba' \(Educe reads llama"):
        load(write(tmp_path / "3.gguf", "mamba", KEYS, {}))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"block_count": "two"}, r"'llama.block_count': is 'two', where one positive integer"),
        ({"block_count": 0}, "is 0, where one positive integer"),
        ({"block_count": 5000}, "is 5000, where at most 4,096"),
        ({"attention.head_count": -4}, "is -4, where one positive integer"),
        ({"attention.head_count": True}, "is True, where"),
        ({"feed_forward_length": [8, 9]}, "where one positive integer"),
        ({"rope.freq_base": float("nan")}, "is nan, where a finite number"),
        ({"rope.scaling.type": 7}, "is 7, where a text"),
    ],
)
def test_values_of_the_wrong_type_or_range_are_errors(keys: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=match):
        load(write(tmp_path / "m.gguf", "llama", {**KEYS, **keys}, {}))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    keys = {key: value for key, value in KEYS.items() if key != "embedding_length"}
    with pytest.raises(ModelFileError, match=r"'llama\.embedding_length': is missing"):
        load(write(tmp_path / "m.gguf", "llama", keys, {}))


def test_shapes_that_the_heads_do_not_divide_are_errors(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {"blk.0.attn_q.weight": random(rng, 30, HIDDEN)}
    with pytest.raises(ModelFileError, match="30 rows, which is no multiple of 8"):
        load(write(tmp_path / "m.gguf", "llama", KEYS, tensors))


def test_two_tensors_that_are_one_weight_are_an_error(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {
        "blk.0.attn_v.weight": random(rng, 32, HIDDEN),
        "blk.00.attn_v.weight": random(rng, 32, HIDDEN),
    }
    with pytest.raises(ModelFileError, match=r"'blk\.00\.attn_v\.weight': is a second"):
        load(write(tmp_path / "m.gguf", "llama", KEYS, tensors))


def test_a_tensor_of_no_architecture_keeps_its_name(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {"blk.0.ssm_a.weight": random(rng, 4, 4), "odd name": random(rng, 2)}
    assert set(load(write(tmp_path / "m.gguf", "llama", KEYS, tensors)).weights) == set(tensors)


def test_every_architecture_has_a_configuration(tmp_path: Path) -> None:
    keys = {
        **KEYS,
        "attention.layer_norm_epsilon": 1e-5,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 8,
    }
    for architecture in ARCHITECTURES:
        found = load(write(tmp_path / "m.gguf", architecture, keys, {}))
        assert found.config["vocab_size"] == len(TOKENS)
        assert found.model_type in repr(found)


def test_recommended_sampling_is_the_generation_configuration(tmp_path: Path) -> None:
    keys = {
        **KEYS,
        ".general.sampling.temp": 0.5,
        ".general.sampling.top_k": 20,
        ".tokenizer.ggml.eot_token_id": 4,
    }
    found = load(write(tmp_path / "m.gguf", "qwen2", keys, {}))
    assert found.generation == {
        "bos_token_id": 1,
        "eos_token_id": [2, 4],
        "temperature": 0.5,
        "top_k": 20,
        "do_sample": True,
    }


def vocabulary(path: Path, model: str, tables: dict[str, Any]) -> Any:
    writer = GGUFWriter(path, "llama")
    for key, value in {**{f"llama.{k}": v for k, v in KEYS.items()}, "tokenizer.ggml.model": model}.items():
        add(writer, key, value)
    for key, value in tables.items():
        add(writer, f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load(path).tokenizer


def test_the_tables_of_sentencepiece(tmp_path: Path) -> None:
    found = load(write(tmp_path / "m.gguf", "llama", KEYS, {})).tokenizer
    assert found.chat_template == "{{ messages[0].content }}"
    assert found.source.model == "llama"
    assert found.source.tokens == tuple(TOKENS)
    assert found.source.types == tuple(TYPES)
    assert found.source.scores == tuple(-float(index) for index in range(len(TOKENS)))
    assert found.source.special == {"bos": 1, "eos": 2, "unk": 0}
    assert found.source.options == {"add_bos_token": True}


def test_the_tables_of_byte_pairs(tmp_path: Path) -> None:
    tables = {"tokens": ["a", "b", "ab", "<end>"], "token_type": [1, 1, 1, 3], "merges": ["a b"]}
    tables |= {"pre": "qwen2", "padding_token_id": 3, "eos_token_id": 3}
    found = vocabulary(tmp_path / "m.gguf", "gpt2", tables).source
    assert (found.merges, found.scores) == (("a b",), ())
    assert found.special == {"pad": 3, "eos": 3}
    assert found.options == {"pre": "qwen2"}


def test_word_pieces_are_spelt_as_word_pieces(tmp_path: Path) -> None:
    tokens = ["[CLS]", "▁hello", "ing", "▁##", "▁[", "[UNK]"]
    found = vocabulary(tmp_path / "m.gguf", "bert", {"tokens": tokens}).source
    assert found.tokens == ("[CLS]", "hello", "##ing", "##", "[", "[UNK]")


def test_the_character_map_of_t5_is_bytes(tmp_path: Path) -> None:
    tables = {"tokens": ["</s>", "▁a"], "scores": [0.0, -1.5], "remove_extra_whitespaces": True}
    found = vocabulary(tmp_path / "m.gguf", "t5", {**tables, "precompiled_charsmap": b"\x00\xff"}).source
    assert found.scores == (0.0, -1.5)
    assert found.options == {"remove_extra_whitespaces": True, "precompiled_charsmap": b"\x00\xff"}


def test_a_file_may_have_no_tokenizer_or_that_of_hugging_face(tmp_path: Path) -> None:
    assert load(write(tmp_path / "1.gguf", "llama", KEYS, {}, vocabulary=False)).tokenizer is None
    assert vocabulary(tmp_path / "2.gguf", "no_vocab", {}) is None
    keys = {**KEYS, ".tokenizer.huggingface.json": "{}"}
    found = load(write(tmp_path / "3.gguf", "llama", keys, {}, vocabulary=False)).tokenizer
    assert (found.files, found.source) == ({"tokenizer.json": b"{}"}, None)


@pytest.mark.parametrize(
    ("model", "tables", "match"),
    [
        ("gpt2", {"tokens": ["a"]}, "merges': is missing, where an array of texts"),
        ("gpt2", {"tokens": ["a", "b"], "merges": ["a b"]}, "merge 0, which joins no two tokens to a third"),
        ("gpt2", {"tokens": ["a", "aa"], "merges": ["aa"]}, "merge 0, which joins no two tokens"),
        ("gpt2", {"tokens": ["a", "b"], "merges": [3]}, "where an array of texts"),
        ("llama", {"tokens": ["a"]}, "scores': is missing"),
        ("llama", {}, "tokens': is missing"),
        ("llama", {"tokens": "abc"}, "tokens': is 'abc', where an array of texts"),
        ("llama", {"tokens": ["a", "b"], "scores": [1.0]}, "1 elements for 2 tokens"),
        ("llama", {"tokens": ["a"], "scores": [float("nan")]}, "no finite number"),
        ("llama", {"tokens": ["a"], "scores": [1]}, "where an array of numbers"),
        ("bert", {"tokens": ["a", "b", "a"]}, "'a' as token 0 and as token 2"),
        ("bert", {"tokens": ["a", "b"], "token_type": [1]}, "1 elements for 2 tokens"),
        ("bert", {"tokens": ["a"], "token_type": [7]}, "the kind 7 for token 0"),
        ("bert", {"tokens": ["<0x-1>"], "token_type": [6]}, "token 0 a byte"),
        ("bert", {"tokens": ["<0x1FF>"], "token_type": [6]}, "token 0 a byte"),
        ("bert", {"tokens": ["a"], "bos_token_id": 1}, "is 1, where the id of one of 1 tokens"),
        ("bert", {"tokens": ["a"], "eos_token_id": -1}, "is -1, where the id"),
        ("bert", {"tokens": ["a"], "seperator_token_id": 2**32 - 1}, "is 4294967295, where the id"),
        ("bert", {"tokens": ["a"], "mask_token_id": "a"}, "is 'a', where the id"),
        ("bert", {"tokens": ["a"], "unknown_token_id": True}, "is True, where the id"),
    ],
)
def test_traps_in_vocabularies_are_errors(model: str, tables: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=match) as caught:
        vocabulary(tmp_path / "m.gguf", model, tables)
    assert caught.value.path is not None
    assert caught.value.remedy is not None


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="kind 'rwkv'"):
        vocabulary(tmp_path / "m.gguf", "rwkv", {"tokens": ["a"]})
