"""A model with more ids than its tokenizer has tokens: what it reads, scores, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import educe
from educe.errors import InputError, ModelFileError, OptionError
from educe.formats import checkpoint
from educe.generate.generator import Generator
from educe.generate.logits import log_softmax
from educe.generate.runner import Runner
from educe.generate.step import Slice
from tests.stories import write_chat_model

KNOWN, COUNT = 512, 520
GAP = 400
NAMELESS = {GAP, *range(KNOWN, COUNT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the model of stories with rows for eight more ids, and a tokenizer that has lost a token."""
    folder = write_chat_model(tmp_path_factory.mktemp("padded"))
    weights = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(3)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            rows = weights[name]
            more = rng.normal(size=(COUNT - KNOWN, rows.shape[1])) * 3 * rows.std()
            weights[name] = np.concatenate([rows, more.astype(np.float32)])
    save_file(weights, folder / "model.safetensors")
    for name, change in (("config", lose_nothing), ("tokenizer", lose_a_token)):
        content = json.loads((folder / f"{name}.json").read_text())
        change(content)
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def lose_nothing(config: dict[str, Any]) -> None:
    config["vocab_size"] = COUNT


def lose_a_token(tokenizer: dict[str, Any]) -> None:
    model = tokenizer["model"]
    (lost,) = [token for token, index in model["vocab"].items() if index == GAP]
    del model["vocab"][lost]
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if lost not in (*pair, "".join(pair))]


@pytest.fixture(scope="module")
def writer(folder: Path) -> Any:
    with educe.generator(folder, precision="f32", cache="f32") as generator:
        yield generator


def test_ids_without_a_token_are_read_like_any_other(writer: Generator) -> None:
    assert writer.tokenizer.ids.tolist() == sorted({*range(COUNT)} - NAMELESS)
    prompt = [1, GAP, *range(20, 60), KNOWN, *range(60, 100), COUNT - 1]
    for options in (
        {},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.0, "temperature": 1.0, "seed": 1},
    ):
        completion = writer.generate(prompt, max_tokens=8, **options)
        assert completion.num_tokens == 8
        assert not set(completion.tokens) & NAMELESS


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 2}, {"regex": "[a-z ]*"}], ids=str)
def test_ids_without_a_token_are_never_written(writer: Generator, options: dict[str, Any]) -> None:
    bias = dict.fromkeys(NAMELESS, 100.0)
    plain = writer.generate("Once upon a time", max_tokens=20, **options)
    biased = writer.generate("Once upon a time", max_tokens=20, logit_bias=bias, **options)
    assert biased.tokens == plain.tokens


def test_chances_are_shares_of_all_rows(writer: Generator, folder: Path) -> None:
    """As transformers' log-softmax of a model's logits, in every way to ask for them."""
    prompt = writer.encode("Once upon a time")
    written = writer.generate(prompt, max_tokens=12, logprobs=3).outputs[0]
    ids = [*prompt, *written.tokens]
    runner = Runner(checkpoint.load(folder), max_length=512, block_size=64, cache="f32")
    runner.allocate(8)
    rows = log_softmax(runner.run([Slice(ids, 0, range(8), len(ids))])[:-1])
    assert rows.shape[1] == COUNT
    expected = rows[np.arange(len(ids) - 1), ids[1:]]
    nameless = np.exp(rows[:, sorted(NAMELESS)].astype(np.float64)).sum(axis=1)
    assert nameless.max() > 1e-3  # what the two rules would differ by
    scored = [choice.logprob for choice in writer.score(ids).choices]
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    chosen = [choice.logprob for choice in written.logprobs]
    np.testing.assert_allclose(chosen, expected[len(prompt) - 1 :], atol=1e-5)
    weighed = writer.perplexity("Once upon a time there was").logprobs
    np.testing.assert_array_equal(
        weighed, [choice.logprob for choice in writer.score("Once upon a time there was").choices]
    )


def test_ids_that_the_model_lacks_are_refused(writer: Generator) -> None:
    for call in (writer.generate, writer.encode, writer.score):
        for prompt in ([1, COUNT], [COUNT, *range(100)], [-1, 5]):
            with pytest.raises(InputError, match=r"none of the model's .*from 0 to 519") as caught:
                call(prompt)
            assert caught.value.place == "prompt"
    with pytest.raises(OptionError, match="token 520 is none of the model's") as refused:
        writer.stream("x", logit_bias={5: 1.0, COUNT: 1.0})
    assert refused.value.place == "logit_bias"


@pytest.mark.parametrize(
    ("file", "said", "place", "cause"),
    [
        ("config.json", {"eos_token_id": COUNT}, "field 'eos_token_id' of config.json", "has 520"),
        ("generation_config.json", {"eos_token_id": [2, -1]}, "field 'eos_token_id' of generation", "has -1"),
        ("generation_config.json", {"do_sample": True, "top_p": 2}, "generation_config.json", "top_p is 2"),
        ("generation_config.json", {"max_new_tokens": "x"}, "generation_config.json", "max_tokens is 'x'"),
    ],
)
def test_files_that_cannot_be_are_errors(
    folder: Path, tmp_path: Path, file: str, said: dict[str, Any], place: str, cause: str
) -> None:
    for each in folder.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    fields = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (tmp_path / file).write_text(json.dumps({**fields, **said}))
    with pytest.raises(ModelFileError, match=cause) as caught:
        educe.generator(tmp_path)
    assert str(caught.value.place).startswith(place)
    assert caught.value.path == str(tmp_path)
