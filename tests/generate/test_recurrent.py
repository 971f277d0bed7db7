"""Recurrent language models: a letter LSTM writes as its file says, whatever runs beside a text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from educe.errors import InputError, ModelFileError, OptionError, UnsupportedModelError
from educe.formats import checkpoint
from educe.generate.generator import Generator
from educe.generate.recurrent import RecurrentRunner
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint
from tests.conftest import ROOT

FOLDER = ROOT / "zoo" / "charrnn_charlotte_bronte"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
PROMPT, GREEDY = EXPECTED["prompt"], EXPECTED["greedy"]
TEXT = "Reader, I was not a little strange; the fire had been out for an hour."


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return checkpoint.load(FOLDER)


@pytest.fixture(scope="module")
def runner(model: Checkpoint) -> RecurrentRunner:
    runner = RecurrentRunner(model, max_length=200)
    runner.allocate(8)
    return runner


@pytest.fixture(scope="module")
def generator(model: Checkpoint) -> Any:
    with Generator(model, max_sequences=8) as generator:
        yield generator


def ids_of(text: str) -> list[int]:
    table = json.loads((FOLDER / "vocab.json").read_text())
    return [table[character] for character in text]


def plain(ids: list[int]) -> np.ndarray:
    """Return the logits after each token, computed from the files as TensorFlow defines the network."""
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    w = {
        name.split("multi_rnn_cell/")[-1]: np.fromfile(FOLDER / entry["filename"], np.float32)
        .reshape(entry["shape"])
        .astype(np.float64)
        for name, entry in manifest.items()
    }
    states = [(np.zeros(128), np.zeros(128)) for _ in range(2)]
    logits = []
    for token in ids:
        x = w["embedding"][token]
        for layer, (c, h) in enumerate(states):
            cell = f"cell_{layer}/basic_lstm_cell"
            i, j, f, o = np.split(np.concatenate([x, h]) @ w[f"{cell}/kernel"] + w[f"{cell}/bias"], 4)
            c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
            x = np.tanh(c) * sigmoid(o)
            states[layer] = c, x
        logits.append(x @ w["rnnlm/softmax_w"] + w["rnnlm/softmax_b"])
    return np.array(logits)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_logits_are_those_of_the_network(runner: RecurrentRunner) -> None:
    ids = np.random.default_rng(5).integers(0, 108, 100).tolist()
    np.testing.assert_allclose(runner.run([Slice(ids, 0, [3], 100)]), plain(ids), atol=1e-4)
    likeliest = dict(zip(ids_of("".join(EXPECTED["next_char_top5"])), EXPECTED["logits"], strict=True))
    logits = runner.run([Slice(ids_of(PROMPT), 0, [3])])[0]
    for token, expected in likeliest.items():
        assert abs(logits[token] - expected) < 1e-3


def test_a_text_is_continued_letter_for_letter(generator: Generator) -> None:
    found = generator.generate(PROMPT, max_tokens=len(GREEDY) - len(PROMPT))
    assert PROMPT + found.text == GREEDY
    assert found.finish_reason == "length"
    pieces = [piece.text for piece in generator.stream(PROMPT, max_tokens=len(GREEDY) - len(PROMPT))]
    assert len(pieces) > 50
    assert PROMPT + "".join(pieces) == GREEDY


def test_bits_do_not_depend_on_what_runs_beside_a_text_nor_on_how_it_is_cut(runner: RecurrentRunner) -> None:
    rng = np.random.default_rng(7)
    texts = [rng.integers(0, 108, 60).tolist() for _ in range(5)]
    alone = [runner.run([Slice(text, 0, [0], 60)]) for text in texts]
    for cuts in ((1, 7, 13, 40, 59), (5, 5, 5, 5, 5), (59, 59, 1, 1, 1)):
        numbered = list(zip(range(5), texts, cuts, strict=True))
        parts = [
            runner.run([Slice(text[:cut], 0, [number], cut) for number, text, cut in numbered]),
            runner.run([Slice(text[cut:], cut, [number], 60 - cut) for number, text, cut in numbered]),
        ]
        first = np.split(parts[0], np.cumsum(cuts)[:-1])
        rest = np.split(parts[1], np.cumsum([60 - cut for cut in cuts])[:-1])
        for expected, *halves in zip(alone, first, rest, strict=True):
            np.testing.assert_array_equal(np.concatenate(halves), expected)


def test_one_thread_gives_the_same_bits(model: Checkpoint, runner: RecurrentRunner) -> None:
    other = RecurrentRunner(model, max_length=200, threads=1)
    other.allocate(4)
    slices = [Slice(ids_of(text), 0, [n], 3) for n, text in enumerate((TEXT, TEXT[:20], TEXT[5:]))]
    np.testing.assert_array_equal(other.run(slices), runner.run(slices))


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_texts_are_the_same_where_few_fit(generator: Generator, model: Checkpoint, num_blocks: int) -> None:
    prompts = [TEXT[start : start + 9] for start in range(6)]
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    expected = [generator.generate(prompt, **options).text for prompt in prompts]
    assert [str(each) for each in generator.batch(prompts, **options)] == expected
    with Generator(model, memory_bytes=num_blocks * 2048) as small:
        assert [str(each) for each in small.batch(prompts, **options)] == expected


def test_samples_of_one_prompt_begin_with_one_state(generator: Generator) -> None:
    several = generator.generate(TEXT, n=4, max_tokens=20)
    assert {output.text for output in several.outputs} == {generator.generate(TEXT, max_tokens=20).text}
    drawn = generator.generate(TEXT, n=4, max_tokens=20, temperature=1.0, seed=8)
    assert len({output.text for output in drawn.outputs}) == 4
    assert drawn.outputs == generator.generate(TEXT, n=4, max_tokens=20, temperature=1.0, seed=8).outputs


def test_scores_are_those_of_the_network(generator: Generator) -> None:
    ids = ids_of(TEXT)
    logits = plain(ids)[:-1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = logits[np.arange(len(ids) - 1), ids[1:]]
    found = [choice.logprob for choice in generator.score(TEXT).choices]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_text_that_fills_the_context_is_not_found_again(model: Checkpoint) -> None:
    with Generator(model, context=30) as small:
        first, second = (small.score(TEXT[:30]) for _ in range(2))
        assert first == second
        assert small.generate(TEXT[:29]).tokens == small.generate(TEXT[:29]).tokens
        with pytest.raises(InputError, match="30 tokens"):
            small.generate(TEXT[:30])


def test_a_context_may_be_longer_than_what_is_assumed(model: Checkpoint) -> None:
    with Generator(model, context=5_000) as long:
        assert long.context == 5_000
        assert len(long.generate(TEXT * 30, max_tokens=3).tokens) == 3


def test_characters_that_the_model_does_not_know_are_named(generator: Generator) -> None:
    with pytest.raises(InputError, match=r"character 7: .*'ж' \(U\+0436\)"):
        generator.generate("Reader\u0436")
    everything = "".join(json.loads((FOLDER / "vocab.json").read_text()))
    ids = generator.tokenizer.encode(everything)
    assert ids == ids_of(everything)
    assert generator.tokenizer.decode(ids) == everything


def test_what_recurrent_models_cannot_do_is_refused(model: Checkpoint) -> None:
    with pytest.raises(OptionError, match=r"precision: .*'int8'"):
        Generator(model, precision="int8")
    with pytest.raises(OptionError, match="neither guess nor verify"):
        Generator(model, draft=model)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"num_hidden_layers": 3}, ModelFileError, r"lstm\.weight_ih_l2"),
        ({"num_hidden_layers": 1}, UnsupportedModelError, r"lstm\.bias_hh_l1"),
        ({"hidden_size": 64}, ModelFileError, r"head\.weight is \[108, 128\]"),
        ({"hidden_size": 2**31}, ModelFileError, "hidden_size"),
        ({"num_hidden_layers": 10**6}, ModelFileError, "num_hidden_layers"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    model: Checkpoint, change: dict[str, int], kind: type[Exception], match: str
) -> None:
    broken = dataclasses.replace(model, config={**model.config, **change})
    with pytest.raises(kind, match=match):
        RecurrentRunner(broken, max_length=8)
