"""Decoders against plain NumPy: Gemma's windows, bounds and norms, Qwen's experts; hostile configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.errors import EduceError, ModelFileError, UnsupportedModelError
from educe.generate.architectures import ARCHITECTURES
from educe.generate.runner import Runner
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint, Weight

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, VOCABULARY, LENGTH = 32, 40, 4, 2, 8, 50, 30
BLOCK, WINDOW, EPSILON = 16, 5, 1e-6
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH,
    "rms_norm_eps": EPSILON,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
GEMMA = {
    **SIZES,
    "sliding_window": WINDOW,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 12,
}
EXPERTS = {
    **SIZES,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}

Arrays = dict[str, np.ndarray]


def arrays(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    return {f"{name}.weight": rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def attention_shapes(at: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}.q_proj": (HEADS * WIDTH, HIDDEN),
        f"{at}.k_proj": (KV_HEADS * WIDTH, HIDDEN),
        f"{at}.v_proj": (KV_HEADS * WIDTH, HIDDEN),
        f"{at}.o_proj": (HIDDEN, HEADS * WIDTH),
    }


def gated_shapes(at: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}.gate_proj": (inner, HIDDEN),
        f"{at}.up_proj": (inner, HIDDEN),
        f"{at}.down_proj": (HIDDEN, inner),
    }


def gemma_weights(rng: np.random.Generator) -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= attention_shapes(f"{at}.self_attn") | gated_shapes(f"{at}.mlp", INNER)
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        shapes |= {f"{at}.{norm}_layernorm": (HIDDEN,) for norm in norms}
    return arrays(rng, shapes)


def qwen_weights(rng: np.random.Generator) -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= attention_shapes(f"{at}.self_attn") | {f"{at}.mlp.gate": (5, HIDDEN)}
        shapes |= {f"{at}.self_attn.{part}_norm": (WIDTH,) for part in "qk"}
        shapes |= {f"{at}.{norm}_layernorm": (HIDDEN,) for norm in ("input", "post_attention")}
        for expert in range(5):
            shapes |= gated_shapes(f"{at}.mlp.experts.{expert}", 24)
    return arrays(rng, shapes)


def checkpoint(model_type: str, config: Mapping[str, Any], weights: Arrays) -> Checkpoint:
    found = {
        name: Weight(name, array.shape, "F32", array.reshape(-1).view(np.uint8))
        for name, array in weights.items()
    }
    return Checkpoint(model_type, config, found, None, {}, Path("here"), [b""])


# The plain version -----------------------------------------------------------------------------------------


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight


def turned(x: np.ndarray) -> np.ndarray:
    """Return [T, heads, features] turned by positions 0, 1, ..."""
    angles = np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH))[:, None]
    a, b = np.split(x, 2, -1)
    return np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    )


def attention(
    x: np.ndarray, w: Arrays, at: str, scale: float, window: int, bound: float, normed: bool
) -> np.ndarray:
    q, k, v = ((x @ w[f"{at}.{part}_proj.weight"].T).reshape(len(x), -1, WIDTH) for part in "qkv")
    if normed:
        q, k = norm(q, w[f"{at}.q_norm.weight"]), norm(k, w[f"{at}.k_norm.weight"])
    q, k, v = turned(q), *(each.repeat(HEADS // KV_HEADS, 1) for each in (turned(k), v))
    scores = np.einsum("qhf,khf->hqk", q, k) * scale
    scores = bound * np.tanh(scores / bound) if bound else scores
    distance = np.subtract.outer(np.arange(len(x)), np.arange(len(x)))
    seen = (distance >= 0) & (distance < (window or len(x)))
    weights = np.exp(np.where(seen, scores, -np.inf))
    mixed = np.einsum("hqk,khf->qhf", weights / weights.sum(-1, keepdims=True), v)
    return mixed.reshape(len(x), -1) @ w[f"{at}.o_proj.weight"].T


def gated(x: np.ndarray, w: Arrays, at: str, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    gate, up = (x @ w[f"{at}.{part}_proj.weight"].T for part in ("gate", "up"))
    return (activation(gate) * up) @ w[f"{at}.down_proj.weight"].T


def gemma(tokens: list[int], w: Arrays) -> np.ndarray:
    def gelu(x: np.ndarray) -> np.ndarray:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = w["model.embed_tokens.weight"][tokens].astype(float) * HIDDEN**0.5
    for layer in range(2):
        at = f"model.layers.{layer}"
        before, after, before_gates, after_gates = (
            1 + w[f"{at}.{name}_layernorm.weight"]
            for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")
        )
        window = WINDOW if layer == 0 else 0
        seen = attention(norm(x, before), w, f"{at}.self_attn", 12**-0.5, window, 2.0, normed=False)
        x = x + norm(seen, after)
        x = x + norm(gated(norm(x, before_gates), w, f"{at}.mlp", gelu), after_gates)
    logits = norm(x, 1 + w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T
    return 3.0 * np.tanh(logits / 3.0)


def qwen(tokens: list[int], w: Arrays) -> np.ndarray:
    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    x = w["model.embed_tokens.weight"][tokens].astype(float)
    for layer in range(2):
        at = f"model.layers.{layer}"
        h = norm(x, w[f"{at}.input_layernorm.weight"])
        x = x + attention(h, w, f"{at}.self_attn", WIDTH**-0.5, 0, 0.0, normed=True)
        h = norm(x, w[f"{at}.post_attention_layernorm.weight"])
        scores = np.exp(h @ w[f"{at}.mlp.gate.weight"].T)
        for row, shares in enumerate(scores):
            best = np.argsort(-shares)[:2]
            for expert in best:
                given = gated(h[row], w, f"{at}.mlp.experts.{expert}", silu)
                x[row] += shares[expert] / shares[best].sum() * given
    return norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T


@pytest.mark.parametrize(
    ("model_type", "config", "weights", "plain"),
    [("gemma2", GEMMA, gemma_weights, gemma), ("qwen3_moe", EXPERTS, qwen_weights, qwen)],
)
def test_logits_are_those_of_the_plain_version(
    model_type: str, config: dict[str, Any], weights: Any, plain: Any, rng: np.random.Generator
) -> None:
    given = weights(rng)
    runner = Runner(checkpoint(model_type, config, given), max_length=2 * LENGTH, block_size=BLOCK, threads=2)
    runner.allocate(16)
    tokens = rng.integers(0, VOCABULARY, LENGTH).tolist()
    right = plain(tokens, given)
    whole = runner.run([Slice(tokens, 0, range(4), LENGTH)])
    np.testing.assert_allclose(whole, right, atol=1e-4 * np.abs(right).max())
    cut = [Slice(tokens[:11], 0, range(4), 11), Slice(tokens[:7], 0, range(4, 8), 7)]
    np.testing.assert_array_equal(runner.run(cut), np.concatenate([whole[:11], whole[:7]]))
    for place in range(11, 14):
        one = [Slice(tokens[place : place + 1], place, range(4))]
        np.testing.assert_array_equal(runner.run(one)[0], whole[place])


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.05), ("int4", 0.4)])
def test_experts_of_few_bits_stay_close(precision: str, tolerance: float, rng: np.random.Generator) -> None:
    given, tokens = qwen_weights(rng), rng.integers(0, VOCABULARY, LENGTH).tolist()
    for name, array in given.items():
        if "experts" in name:
            # Each expert has numbers of its own size, so that none can stand for another.
            array *= 1 + int(name.split(".")[5])
    found = []
    for each in ("f32", precision):
        runner = Runner(
            checkpoint("qwen3_moe", EXPERTS, given), max_length=64, block_size=BLOCK, precision=each
        )
        runner.allocate(8)
        found.append(runner.run([Slice(tokens, 0, range(4), LENGTH)]))
        one = runner.run([Slice(tokens[4:5], 4, range(4))])
        np.testing.assert_array_equal(one[0], found[-1][4])
    differences = np.abs(found[1] - found[0]).max(axis=1)
    assert np.median(differences) < tolerance * np.abs(found[0]).max()


def test_angles_that_older_files_hold_are_not_needed(rng: np.random.Generator) -> None:
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(WIDTH // 2, np.float32)}
    Runner(checkpoint("gemma2", GEMMA, gemma_weights(rng) | angles), max_length=16)


# Hostile configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"num_hidden_layers": 10**9}, ModelFileError, "'num_hidden_layers'.*from 1 to 4,096"),
        ({"num_hidden_layers": 4096}, ModelFileError, "lacks weights"),
        ({"num_hidden_layers": 3}, ModelFileError, r"lacks weights.*model\.layers\.2"),
        ({"num_hidden_layers": 1}, UnsupportedModelError, r"does not use: model\.layers\.1"),
        ({"hidden_size": "32"}, ModelFileError, "'hidden_size'.*is '32', where a whole number"),
        ({"hidden_size": True}, ModelFileError, "'hidden_size'.*is True"),
        ({"hidden_size": 2**31}, ModelFileError, "'hidden_size'"),
        ({"hidden_size": 2**31 - 1}, ModelFileError, "other shapes"),
        ({"vocab_size": None}, ModelFileError, "'vocab_size'.*is missing"),
        ({"num_key_value_heads": 3}, ModelFileError, "does not divide 4 heads"),
        (
            {"num_attention_heads": 10**9, "head_dim": None},
            ModelFileError,
            "'num_key_value_heads'|shapes|pairs",
        ),
        ({"head_dim": 7}, ModelFileError, "turns 7 of 7 features"),
        ({"head_dim": 10**6}, ModelFileError, "'head_dim'.*from 1 to 65,536"),
        ({"rms_norm_eps": "1e-6"}, ModelFileError, "'rms_norm_eps'"),
        ({"rope_scaling": [1]}, ModelFileError, r"'rope_scaling'.*is \[1\], where an object"),
        ({"layer_types": ["full_attention"]}, ModelFileError, "1 items for 2 layers"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            UnsupportedModelError,
            "'linear_attention'",
        ),
        ({"hidden_activation": "gelu_pytorch_tan"}, UnsupportedModelError, "gelu_pytorch_tanh"),
        ({"use_bidirectional_attention": True}, UnsupportedModelError, "not run yet"),
        ({"query_pre_attn_scalar": 0}, ModelFileError, "'query_pre_attn_scalar'.*above 0"),
    ],
)
def test_fields_that_cannot_be_are_typed_errors(
    changed: dict[str, Any], error: type[EduceError], match: str, rng: np.random.Generator
) -> None:
    with pytest.raises(error, match=match):
        Runner(checkpoint("gemma2", {**GEMMA, **changed}, gemma_weights(rng)), max_length=16)


@pytest.mark.parametrize("changed", [{"num_experts_per_tok": 6}, {"num_experts": 10**9}, {"num_experts": 0}])
def test_experts_that_cannot_be_are_typed_errors(changed: dict[str, Any], rng: np.random.Generator) -> None:
    with pytest.raises(ModelFileError):
        Runner(checkpoint("qwen3_moe", {**EXPERTS, **changed}, qwen_weights(rng)), max_length=16)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_names_what_an_empty_configuration_lacks(model_type: str) -> None:
    with pytest.raises(ModelFileError, match="of the configuration: is missing"):
        Runner(checkpoint(model_type, {}, {}), max_length=16)
