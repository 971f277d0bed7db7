"""Translations of the zoo's Transformers, in any company, and how a model is told its languages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from educe.errors import InputError, LimitError, ModelFileError, OptionError, UnsupportedModelError
from educe.formats import checkpoint
from educe.generate.translation import Translator
from educe.model.checkpoint import Vocabulary
from educe.text.languages import Languages
from educe.text.tokenizer import Tokenizer
from tests.conftest import ROOT

EXPECTED = json.loads((ROOT / "zoo" / "transliteration" / "expected.json").read_text())
FOLDERS = {"f32": "transliteration", "int8": "transliteration_int8"}
SOURCES = [case["source"] for case in EXPECTED["f32"]]


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator(checkpoint.load(ROOT / "zoo" / "transliteration"))


@pytest.mark.parametrize("kind", FOLDERS)
def test_words_are_those_that_the_zoo_expects(zoo: Path, kind: str) -> None:
    own = Translator(checkpoint.load(zoo / FOLDERS[kind]), max_sequences=4)
    for num_beams, name in ((1, "greedy"), (2, "beam2")):
        expected = [case[name] for case in EXPECTED[kind]]
        assert own.translate(SOURCES, num_beams=num_beams) == expected
    assert own.languages == []


def test_a_translation_does_not_depend_on_the_others(translator: Translator) -> None:
    many = [*SOURCES, *reversed(SOURCES)] * 3
    together = translator.translate(many, num_beams=5)
    alone = {source: translator.translate([source], num_beams=5)[0] for source in SOURCES}
    assert together == [alone[source] for source in many]
    assert translator.translate([]) == []


def test_what_cannot_be_translated_is_an_error(translator: Translator) -> None:
    with pytest.raises(InputError, match="expected 1 to 1,024 tokens, found 1,100"):
        translator.translate(["ا" * 1100])
    with pytest.raises(InputError, match="found 0"):
        translator.translate([""])
    with pytest.raises(OptionError, match="knows one direction"):
        translator.translate(SOURCES, target="en")
    with pytest.raises(LimitError, match="33 beams"):
        translator.translate(SOURCES, num_beams=33)
    with pytest.raises(OptionError, match="num_beams"):
        translator.translate(SOURCES, num_beams=0)


def test_models_that_do_not_translate_are_refused(zoo: Path) -> None:
    given = checkpoint.load(zoo / "transliteration")
    with pytest.raises(UnsupportedModelError, match="of the type 'llama'"):
        Translator(dataclasses.replace(given, model_type="llama"))
    with pytest.raises(ModelFileError, match="has no tokenizer"):
        Translator(dataclasses.replace(given, tokenizer=None))
    config = {**given.config, "decoder_start_token_id": None, "bos_token_id": None}
    with pytest.raises(ModelFileError, match="decoder_start_token_id"):
        Translator(dataclasses.replace(given, config=config, generation={}))
    weights = dict(given.weights)
    weights.pop("model.decoder.layers.2.encoder_attn.v_proj.bias")
    with pytest.raises(ModelFileError, match=r"lacks weights .*layers\.2\.encoder_attn\.v_proj\.bias"):
        Translator(dataclasses.replace(given, weights=weights))


def test_tokens_that_the_model_lacks_are_an_error_of_the_files(zoo: Path) -> None:
    given = checkpoint.load(zoo / "transliteration")
    files = given.tokenizer
    assert files is not None
    assert files.source is not None
    words = dataclasses.replace(files.source, tokens=(*files.source.tokens, "☃"))
    own = Translator(dataclasses.replace(given, tokenizer=dataclasses.replace(files, source=words)))
    with pytest.raises(ModelFileError, match=r"tokenizer: has token [\d,]+, and the model has [\d,]+ tokens"):
        own.translate([SOURCES[0], "☃"])
    assert own.translate(SOURCES[:1], num_beams=1) == [EXPECTED["f32"][0]["greedy"]]
    config = {**given.config, "decoder_start_token_id": 10**6, "bos_token_id": -1}
    with pytest.raises(ModelFileError, match=r"decoder_start_token_id.*does not say which of the model's"):
        Translator(dataclasses.replace(given, config=config, generation={}))


def languages(*tokens: str, **config: object) -> tuple[Languages, dict[str, int]]:
    words = ("<unk>", "</s>", "a", "b", *tokens)
    special = {token: index for index, token in enumerate(words) if index not in (2, 3)}
    vocabulary = Vocabulary("words", words, special={**special, "unk": 0})
    return Languages(Tokenizer.from_vocabulary(vocabulary), config), special


@pytest.mark.parametrize(("en", "fr"), [("__en__", "__fr__"), ("eng_Latn", "fra_Latn"), ("en_XX", "fr_XX")])
def test_languages_are_tokens_of_the_vocabulary(en: str, fr: str) -> None:
    found, ids = languages(en, fr)
    codes = [token.strip("_") for token in (en, fr)]
    assert found.codes == codes
    direction = found.direction(*codes)
    assert (direction.before, direction.forced, direction.prefix) == ((ids[en],), ids[fr], "")
    with pytest.raises(OptionError, match="language is missing"):
        found.direction(codes[0], None)
    with pytest.raises(OptionError, match=f"did you mean '{codes[0]}'"):
        found.direction(f"{codes[0]}x", codes[1])


def test_marian_is_told_what_to_write() -> None:
    found, ids = languages(">>fra<<", ">>spa<<")
    assert found.direction(None, "spa").before == (ids[">>spa<<"],)
    assert found.direction("eng", "fra").forced is None
    with pytest.raises(OptionError, match="language is missing"):
        found.direction("eng", None)


def test_t5_is_told_by_words() -> None:
    found, _ = languages(task_specific_params={"translation_en_to_de": {"prefix": "to German: "}, "x": 3})
    assert found.codes == ["de", "en"]
    assert found.direction("en", "de").prefix == "to German: "
    assert found.direction(None, None).prefix == ""
    with pytest.raises(OptionError, match="from de to en is not known"):
        found.direction("de", "en")
    with pytest.raises(OptionError, match="language is missing"):
        found.direction("en", None)


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        (SOURCES[0], "expected a list of texts, found one text"),
        (5, "expected a list of texts, found a int"),
        ({"a": "b"}, "expected a list of texts, found a dict"),
        ([SOURCES[0], None], r"texts\[1\]: is a NoneType, no text"),
        ([SOURCES[0], ""], r"texts\[1\]: expected at least 1 token.*leave out"),
        ([SOURCES[0], SOURCES[0], "ا" * 1100], r"texts\[2\]: expected 1 to 1,024 tokens"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_with_its_place(
    translator: Translator, texts: Any, cause: str
) -> None:
    with pytest.raises(InputError, match=cause):
        translator.translate(texts)


def test_an_unknown_option_of_a_translation_is_named(translator: Translator) -> None:
    with pytest.raises(OptionError, match=r"unknown option 'num_beam'.*did you mean 'num_beams'"):
        translator.translate(SOURCES, num_beam=2)
