"""A letter translator of two LSTMs: its published answers, alone and beside others."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref

import numpy as np
import pytest

from educe.errors import InputError, ModelFileError, OptionError, UnsupportedModelError
from educe.formats import checkpoint
from educe.generate.architectures.recurrent import lstm_encoder
from educe.generate.recurrent import Recurrence
from educe.generate.translation import Translator
from educe.model.checkpoint import Checkpoint
from tests.conftest import ROOT

FOLDER = ROOT / "zoo" / "en_fr_char_lstm"
PAIRS = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return checkpoint.load(FOLDER)


@pytest.fixture(scope="module")
def translator(model: Checkpoint) -> Translator:
    return Translator(model)


def test_sentences_are_translated_as_expected(translator: Translator) -> None:
    assert translator.translate([pair["en"] for pair in PAIRS]) == [pair["fr"] for pair in PAIRS]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_translation_does_not_depend_on_its_neighbours(
    model: Checkpoint, translator: Translator, num_beams: int
) -> None:
    texts = [pair["en"] for pair in PAIRS] * 3
    expected = [translator.translate([text], num_beams=num_beams)[0] for text in texts[:8]] * 3
    assert translator.translate(texts, num_beams=num_beams) == expected
    other = Translator(model, threads=1, max_sequences=7)
    assert other.translate(texts[::-1], num_beams=num_beams) == expected[::-1]


def test_several_beams_find_what_is_likelier(translator: Translator) -> None:
    assert translator.translate(["How old are you?"], num_beams=4) == ["Quel âge avez-vous ?"]


def plain_states(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the states after a sentence, computed from the files as Keras defines the layer."""
    model = json.loads((FOLDER / "model.json").read_text())
    content = np.fromfile(FOLDER / "group1-shard1of1", np.float32)
    weights, position = {}, 0
    for entry in model["weightsManifest"][0]["weights"]:
        size = int(np.prod(entry["shape"]))
        weights[entry["name"]] = content[position : position + size].reshape(entry["shape"])
        position += size
    table = json.loads((FOLDER / "metadata.json").read_text())["input_token_index"]
    h = c = np.zeros(256)
    for place in range(32):
        x = np.zeros(81)
        if place < len(text):
            x[table[text[place]]] = 1
        gates = x @ weights["lstm_1/kernel"] + h @ weights["lstm_1/recurrent_kernel"] + weights["lstm_1/bias"]
        i, f, g, o = np.split(gates, 4)
        c = hard(f) * c + hard(i) * np.tanh(g)
        h = hard(o) * np.tanh(c)
    return h, c


def hard(x: np.ndarray) -> np.ndarray:
    return np.clip(0.2 * x + 0.5, 0, 1)


def test_what_was_read_is_the_state_that_keras_computes(model: Checkpoint) -> None:
    table = json.loads((FOLDER / "metadata.json").read_text())["input_token_index"]
    texts = ["Go.", "How old are you?", "x" * 32]
    rows = [[table[letter] for letter in text] + [81] * (32 - len(text)) for text in texts]
    found = Recurrence(lstm_encoder, model).read(rows)
    for row, text in enumerate(texts):
        for state, expected in zip(found.values(), plain_states(text), strict=True):
            np.testing.assert_allclose(state[row, 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "at least 1 token, found 0"), ("a" * 33, "found 33"), ("\u0416", r"U\+0416"), ("\ud800", "half")],
)
def test_sentences_that_cannot_be_read_are_refused(translator: Translator, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        translator.translate(["Go.", text])


def test_other_precisions_are_refused(model: Checkpoint) -> None:
    with pytest.raises(OptionError, match="'int4'"):
        Translator(model, precision="int4")


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"recurrent_activation": "relu"}, UnsupportedModelError, "relu"),
        ({"hidden_size": 255}, ModelFileError, "encoder"),
        ({"vocab_size": 80}, ModelFileError, r"encoder\.weight_ih_l0"),
        ({"max_source_length": 0}, ModelFileError, "max_source_length"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    model: Checkpoint, change: dict[str, int], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        Translator(dataclasses.replace(model, config={**model.config, **change}))


def test_a_weight_that_is_left_over_is_named(model: Checkpoint) -> None:
    extra = model.weights["head.bias"].renamed("attention.bias")
    with pytest.raises(UnsupportedModelError, match=r"attention\.bias"):
        Translator(dataclasses.replace(model, weights={**model.weights, "attention.bias": extra}))


def test_a_text_that_cannot_be_translated_costs_no_other(translator: Translator) -> None:
    texts = [PAIRS[0]["en"], "", PAIRS[1]["en"], "x" * 5000]
    first, empty, second, long = translator.batch(texts)
    assert (first, second) == (PAIRS[0]["fr"], PAIRS[1]["fr"])
    for number, error in ((1, empty), (3, long)):
        assert isinstance(error, InputError)
        assert error.place == f"texts[{number}]"
    assert translator.batch([]) == []
    with pytest.raises(InputError, match="found one text"):
        translator.batch("Go.")
    with pytest.raises(OptionError, match="num_beams"):
        translator.batch(texts, num_beams=0)


def test_translations_are_bounded(translator: Translator) -> None:
    text = PAIRS[0]["en"]
    assert translator.translate([text], max_tokens=3) == [PAIRS[0]["fr"][:3].strip()]
    assert translator.translate([text], max_tokens=10**9) == [PAIRS[0]["fr"]]
    short, long = (translator.translate([text], num_beams=4, length_penalty=each)[0] for each in (-5, 5))
    assert len(short) <= len(long)
    for option in ({"max_tokens": 0}, {"max_tokens": 1.5}, {"length_penalty": 6}, {"length_penalty": "x"}):
        with pytest.raises(OptionError, match=next(iter(option))):
            translator.translate([text], **option)


def test_a_closed_translator_says_so(model: Checkpoint) -> None:
    with Translator(model) as translator:
        assert repr(translator).startswith("<Translator lstm_translation ")
        held = weakref.ref(translator._writer)
    gc.collect()
    assert held() is None
    translator.close()
    with pytest.raises(OptionError, match="the translator is closed"):
        translator.translate(["Go."])
