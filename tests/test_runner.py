"""Steps of a language model: a real one continues its published story, whatever runs beside it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from educe.errors import ModelFileError, OptionError, UnsupportedModelError
from educe.formats import checkpoint
from educe.generate.packing import program_size
from educe.generate.runner import Runner
from educe.generate.runners import runner_for
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint, Weight
from tests.conftest import ROOT

STORIES = ROOT / "zoo" / "stories260K"
CASES = json.loads((STORIES / "expected.json").read_text())["cases"]
BLOCK, MAX_BLOCKS = 16, 32


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return checkpoint.load(STORIES / "stories260K.bin")


@pytest.fixture(scope="module")
def runner(model: Checkpoint) -> Runner:
    return runner_of(model, 4 * MAX_BLOCKS)


def runner_of(
    model: Checkpoint, num_blocks: int = MAX_BLOCKS, precision: str = "f32", cache: str = "f32"
) -> Runner:
    length = MAX_BLOCKS * BLOCK
    runner = Runner(model, max_length=length, block_size=BLOCK, precision=precision, cache=cache)
    runner.allocate(num_blocks)
    return runner


def blocks_of(number: int) -> range:
    return range(number * MAX_BLOCKS, (number + 1) * MAX_BLOCKS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prompt"] or "nothing")
def test_stories_are_continued_word_for_word(runner: Runner, case) -> None:
    ids = list(case["prompt_ids"])
    logits = runner.run([Slice(ids, 0, blocks_of(0))])[0]
    for token, expected in case["next_token_top5"]:
        assert abs(logits[token] - expected) < 1e-3
    while len(ids) < len(case["greedy_ids"]):
        ids.append(int(logits.argmax()))
        logits = runner.run([Slice(ids[-1:], len(ids) - 1, blocks_of(0))])[0]
    assert ids == case["greedy_ids"]


@pytest.mark.parametrize(
    ("precision", "cache", "cuts"),
    [
        ("f32", "f32", (1, 7, 33, 89)),
        ("f32", "bf16", (1, 33)),
        ("f32", "int8", (1, 33)),
        ("bf16", "bf16", (33,)),
        ("int8", "f32", (1, 33)),
        ("int4", "f32", (7,)),
    ],
)
def test_bits_do_not_depend_on_what_runs_beside_a_sequence_nor_on_how_it_is_cut(
    model: Checkpoint, precision: str, cache: str, cuts: tuple[int, ...]
) -> None:
    runner = runner_of(model, 4 * MAX_BLOCKS, precision, cache)
    texts = [case["greedy_ids"] for case in CASES]
    alone = [runner.run([Slice(text[:90], 0, blocks_of(0), 90)]) for text in texts]
    for cut in cuts:
        first = [Slice(text[:cut], 0, blocks_of(number), cut) for number, text in enumerate(texts)]
        rest = [Slice(text[cut:90], cut, blocks_of(number), 90 - cut) for number, text in enumerate(texts)]
        found = [runner.run(part) for part in (first, rest)]
        for number, expected in enumerate(alone):
            np.testing.assert_array_equal(found[0][number * cut : (number + 1) * cut], expected[:cut])
            size = 90 - cut
            np.testing.assert_array_equal(found[1][number * size : (number + 1) * size], expected[cut:])


@pytest.fixture(scope="module")
def texts(runner: Runner) -> list[tuple[list[int], np.ndarray]]:
    return [drawn(runner, seed) for seed in range(6)]


@pytest.mark.parametrize(
    ("how", "bound"),
    [
        ({"precision": "bf16"}, 0.001),
        ({"precision": "int8"}, 0.002),
        ({"precision": "int4"}, 0.14),
        ({"cache": "bf16"}, 0.0001),
        ({"cache": "int8"}, 0.004),
    ],
    ids=str,
)
def test_rounding_raises_the_perplexity_of_the_models_own_texts_little(
    model: Checkpoint, texts: list[tuple[list[int], np.ndarray]], how: dict[str, str], bound: float
) -> None:
    # On texts that f32 draws, the logarithm of perplexity rises by the divergence from f32 on the average.
    rounded = runner_of(model, **how)
    divergences = []
    for ids, logs in texts:
        found = log_chances(rounded.run([Slice(ids, 0, blocks_of(0), len(ids))]))
        divergences.append((np.exp(logs) * (logs - found)).sum(axis=1).mean())
    rise = np.expm1(np.mean(divergences))
    assert 0 < rise < bound


def drawn(runner: Runner, seed: int, length: int = 160) -> tuple[list[int], np.ndarray]:
    """Return a text that a model writes by chance, and the logarithms of all tokens' chances along it."""
    random, ids, logs = np.random.default_rng(seed), [1], []
    while len(ids) <= length:
        logs.append(log_chances(runner.run([Slice(ids[-1:], len(ids) - 1, blocks_of(0))]))[0])
        chances = np.exp(logs[-1])
        ids.append(int(random.choice(len(chances), p=chances / chances.sum())))
    return ids[:-1], np.array(logs)


def log_chances(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_windows_are_those_that_the_configuration_asks_for(model: Checkpoint, runner: Runner) -> None:
    ids = CASES[0]["greedy_ids"][:60]
    layers = range(model.config["num_hidden_layers"])
    projections = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in layers for part in "qkv"]
    sizes = {name: model.weights[f"{name}.weight"].shape[0] for name in projections}
    biases = [
        Weight(f"{name}.bias", (size,), "F32", np.zeros(4 * size, np.uint8)) for name, size in sizes.items()
    ]
    biased = with_weights(model, {**model.weights, **{weight.name: weight for weight in biases}})

    def logits(checkpoint: Checkpoint, model_type: str, **more: int | bool) -> np.ndarray:
        config = {**model.config, "sliding_window": 8, **more}
        changed = dataclasses.replace(checkpoint, model_type=model_type, config=config)
        return runner_of(changed).run([Slice(ids, 0, range(MAX_BLOCKS), 60)])

    whole = runner.run([Slice(ids, 0, range(MAX_BLOCKS), 60)])
    windowed = logits(model, "mistral")
    np.testing.assert_array_equal(windowed[:8], whole[:8])
    assert np.abs(windowed[8:] - whole[8:]).max() > 0.1
    np.testing.assert_array_equal(logits(biased, "qwen2", max_window_layers=0), whole)
    asked = {"use_sliding_window": True}
    np.testing.assert_array_equal(logits(biased, "qwen2", max_window_layers=0, **asked), windowed)
    np.testing.assert_array_equal(logits(biased, "qwen2", max_window_layers=len(layers), **asked), whole)


def test_weights_that_are_missing_or_left_over_are_named(model: Checkpoint) -> None:
    weights = dict(model.weights)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (1, 3)]
    found = [weights.pop(name) for name in names]
    with pytest.raises(ModelFileError, match=", ".join(names)):
        runner_of(with_weights(model, weights))
    extra = {**model.weights, "model.layers.5.mlp.up_proj.weight": found[0]}
    with pytest.raises(UnsupportedModelError, match=r"does not use: model\.layers\.5"):
        runner_of(with_weights(model, extra))


@pytest.mark.parametrize(
    ("how", "message"), [({"cache": "fp16"}, "unknown cache 'fp16'"), ({"block_size": 8}, "a multiple of 16")]
)
def test_caches_that_cannot_be_are_refused(model: Checkpoint, how, message) -> None:
    with pytest.raises(OptionError, match=message):
        Runner(model, max_length=64, **how)


def test_an_unknown_architecture_is_refused_with_those_near_it(model: Checkpoint) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mistrl'.*mistral"):
        runner_for(dataclasses.replace(model, model_type="mistrl"))


def with_weights(model: Checkpoint, weights) -> Checkpoint:
    return dataclasses.replace(model, weights=weights)


def test_sizes_grow_by_halves() -> None:
    assert [program_size(count) for count in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 17, 24, 25, 100)] == [
        1, 2, 3, 4, 6, 6, 8, 12, 12, 16, 24, 24, 32, 128,
    ]  # fmt: skip
