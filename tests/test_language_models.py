"""The benchmark's language models: the folder and the GGUF file are one model, and its tokenizer is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.language_models import SHAPES, Shape, make, make_gguf, tokenizer, weight

from educe.formats import checkpoint
from educe.generate.runner import Runner
from educe.generate.step import Slice
from educe.text.tokenizer import Tokenizer

SCALING = SHAPES["llama3.2-1b"].rope
SMALL = {
    "llama": Shape("llama", 64, 96, 2, 4, 2, 320, 300, ("<s>", "</s>"), 64, SCALING),
    "qwen2": Shape("qwen2", 64, 96, 2, 4, 2, 320, 300, ("<s>", "</s>"), 64, {"rope_theta": 1e6}),
}


@pytest.mark.parametrize("name", SMALL)
def test_folder_and_gguf_are_the_same_model(name: str, tmp_path: Path) -> None:
    shape = SMALL[name]
    folder = checkpoint.load(make(shape, tmp_path / "folder"))
    file = checkpoint.load(make_gguf(shape, tmp_path / "model.gguf", "Q8_0"))
    assert folder.weights.keys() == set(shape.weights)
    for key, found in folder.weights.items():
        np.testing.assert_array_equal(found.array(), weight(shape, key))
        assert np.abs(file.weights[key].array() - found.array()).max() < 1e-3
    logits, ids = [], [list(b"what it "), [299, 300, 4, 7]]
    for model in (folder, file):
        runner = Runner(model, max_length=32, block_size=16)
        runner.allocate(2)
        logits.append([runner.run([Slice(text, 0, range(2), len(text))]) for text in ids])
    for one, other in zip(*logits, strict=True):
        assert np.abs(one - other).max() < 0.02 * np.abs(one).max()


@pytest.mark.parametrize("name", SMALL)
def test_both_cut_texts_alike(name: str, tmp_path: Path) -> None:
    shape = SMALL[name]
    paths = make(shape, tmp_path / "folder"), make_gguf(shape, tmp_path / "model.gguf", "Q4_0")
    text = "Eat oats at ten, Ödön! 🦔 The rest is 1234."
    found = []
    for path in paths:
        files = checkpoint.load(path).tokenizer
        assert files is not None
        each = Tokenizer.from_files(files)
        found.append(each.encode(text))
        assert each.decode(found[-1]) == text
    assert found[0] == found[1]
    assert len(found[0]) < len(text.encode())


@pytest.mark.parametrize("name", SHAPES)
def test_a_tokenizer_has_as_many_tokens_as_its_model(name: str) -> None:
    shape = SHAPES[name]
    made = tokenizer(shape)
    assert made.get_vocab_size() == shape.words + len(shape.special) <= shape.vocabulary
    assert made.token_to_id(shape.special[-1]) == shape.config()["eos_token_id"]
