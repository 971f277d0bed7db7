"""Searches against all texts there are, and the rules of what may stand in a text."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.errors import EngineError, ModelFileError, OptionError
from educe.generate.beam import BeamSearch, Sampling, Search, search
from educe.generate.search import SearchOptions, allowed
from educe.model.checkpoint import Checkpoint

WORDS, END = 4, 3


class Chances:
    """A model whose next token depends on the last two."""

    def __init__(self, rng: np.random.Generator) -> None:
        logits = rng.standard_normal((WORDS, WORDS, WORDS)).astype(np.float32) * 2
        self.table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def row(self, tokens: tuple[int, ...]) -> np.ndarray:
        before = tokens[-2] if len(tokens) > 1 else 0
        return self.table[before, tokens[-1]]

    def score(self, tokens: tuple[int, ...]) -> float:
        return float(sum(self.row(tokens[:end])[tokens[end]] for end in range(1, len(tokens))))


def run(found: Search, chances: Chances) -> tuple[tuple[int, ...], float]:
    while found.running:
        rows = np.stack([chances.row(text.tokens) for text in found.running])
        found.step(found.scores(rows))
    best = found.best()
    return best.tokens, best.score


def every_text(longest: int) -> list[tuple[int, ...]]:
    texts = []
    for count in range(1, longest):
        for middle in itertools.product(range(WORDS - 1), repeat=count - 1):
            texts.append((0, *middle, END))
    texts += [(0, *rest) for rest in itertools.product(range(WORDS - 1), repeat=longest - 1)]
    return texts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_enough_beams_find_the_best_of_all_texts(seed: int, penalty: float) -> None:
    chances, longest = Chances(np.random.default_rng(seed)), 5
    options = SearchOptions(
        num_beams=64, length_penalty=penalty, max_length=longest, early_stopping="never", eos_token_ids={END}
    )
    found, score = run(search([0], options), chances)
    ranked = sorted(
        ((chances.score(text) / (len(text) - 1) ** penalty, text) for text in every_text(longest)),
        reverse=True,
    )
    assert found == ranked[0][1]
    assert score == pytest.approx(ranked[0][0], abs=1e-5)


def test_one_beam_takes_the_likeliest_token_each_time(rng) -> None:
    chances = Chances(rng)
    found, score = run(search([0], SearchOptions(max_length=9, eos_token_ids={END})), chances)
    tokens = (0,)
    while tokens[-1] != END and len(tokens) < 9:
        tokens = (*tokens, int(chances.row(tokens).argmax()))
    assert found == tokens
    assert score == pytest.approx(chances.score(tokens) / (len(tokens) - 1), abs=1e-5)


def test_tokens_are_drawn_by_their_chances_at_a_temperature() -> None:
    scores = np.log(np.array([[0.5, 0.3, 0.2, 1e-9]], np.float32))
    for temperature in (0.5, 1.0):
        found = Sampling([0], SearchOptions(max_length=1500, eos_token_ids={END}), temperature)
        while found.running:
            found.step(found.scores(scores))
        tokens = found.best().tokens[1:]
        weights = np.exp(scores[0].astype(np.float64) / temperature)
        shares = np.bincount(tokens, minlength=WORDS) / len(tokens)
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.05)
        assert found.best().score == pytest.approx(float(scores[0][list(tokens)].mean()), abs=1e-4)


def test_texts_are_continued_by_who_they_came_from(rng) -> None:
    chances = Chances(rng)
    found = BeamSearch([0], SearchOptions(num_beams=3, max_length=8, eos_token_ids={END}))
    while found.running:
        before = list(found.running)
        found.step(np.stack([chances.row(text.tokens) for text in before]))
        assert len(found.running) <= 3
        for text in found.running:
            assert text.tokens[:-1] == before[text.parent].tokens


def test_what_never_comes_is_never_chosen() -> None:
    never = -math.inf
    found = BeamSearch([0], SearchOptions(num_beams=4, max_length=4, eos_token_ids={END}))
    found.step(np.array([[never, 0.0, never, never]], np.float32))
    assert [text.tokens for text in found.running] == [(0, 1)]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("row", "cause"),
    [([0, math.nan, 1, 2], "no finite number"), ([-math.inf] * WORDS, "no token is allowed")],
)
def test_scores_of_which_none_can_be_chosen_are_errors(num_beams: int, row: list[float], cause: str) -> None:
    found = search([0], SearchOptions(num_beams=num_beams, max_length=4, eos_token_ids={END}))
    with pytest.raises(EngineError, match=cause):
        found.step(found.scores(np.array([row], np.float32)))


def test_texts_that_end_are_the_answer_where_the_others_cannot_go_on() -> None:
    never = -math.inf
    found = BeamSearch([0], SearchOptions(num_beams=2, max_length=9, eos_token_ids={END}))
    found.step(np.array([[never, 0.0, never, 0.5]], np.float32))
    found.step(np.full((1, WORDS), never, np.float32))
    assert not found.running
    assert found.best().tokens == (0, END)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_rules_that_leave_nothing_are_errors(num_beams: int) -> None:
    found = search([0], SearchOptions(num_beams=num_beams, max_length=4, eos_token_ids={END}))
    with pytest.raises(EngineError, match="no token is allowed"):
        found.step(np.full((1, WORDS), -math.inf, np.float32))


@pytest.mark.parametrize(
    ("fields", "tokens", "expected"),
    [
        ({"no_repeat_ngram_size": 1}, (0, 2), {0, 2}),
        ({"no_repeat_ngram_size": 2}, (0, 1, 2, 0), {1}),
        ({"no_repeat_ngram_size": 3}, (0, 1, 2, 0, 1), {2}),
        ({"no_repeat_ngram_size": 3}, (0,), set()),
        ({"bad_words_ids": [[2], [0, 1], [1, 1]]}, (2, 0), {1, 2}),
        ({"bad_words_ids": [[0, 1, 2]]}, (1,), set()),
        ({"min_length": 3, "eos_token_ids": {END}}, (0, 1), {END}),
        ({"min_length": 2, "eos_token_ids": {END}}, (0, 1), set()),
        ({"suppress_tokens": [1], "begin_suppress_tokens": [2]}, (0,), {1, 2}),
        ({"suppress_tokens": [1], "begin_suppress_tokens": [2]}, (0, 0), {1}),
        ({"forced_bos_token_id": 2}, (0,), {0, 1, 3}),
        ({"forced_bos_token_id": 2}, (0, 2), set()),
        ({"forced_eos_token_ids": [END], "max_length": 3}, (0, 1), {0, 1, 2}),
    ],
)
def test_rules_say_what_may_not_come(fields, tokens, expected) -> None:
    scores = np.linspace(-2, 1, WORDS, dtype=np.float32)
    before = scores.copy()
    found = allowed(scores, tokens, 1, SearchOptions(**fields))
    assert set(np.flatnonzero(found == -np.inf)) == expected
    np.testing.assert_array_equal(scores, before)


def test_what_a_text_has_is_penalised() -> None:
    found = allowed(np.array([-2, 2, 4, 1], np.float32), (0, 1, 1), 1, SearchOptions(repetition_penalty=2.0))
    np.testing.assert_array_equal(found, [-4, 1, 4, 1])


def model(config: dict[str, Any], generation: dict[str, Any]) -> Checkpoint:
    return Checkpoint("bart", {"vocab_size": 10, **config}, {}, None, generation, Path("folder"), ())


def test_options_are_those_of_the_files() -> None:
    config = {"num_beams": 2, "eos_token_id": 5, "max_length": 700, "length_penalty": 0.5}
    generation = {"num_beams": 4, "eos_token_id": [6, 7], "early_stopping": True, "bad_words_ids": [[9]]}
    found = SearchOptions.of_model(model(config, generation), 512)
    assert (found.num_beams, found.max_length, found.length_penalty, found.early_stopping) == (
        4,
        512,
        0.5,
        True,
    )
    assert found.eos_token_ids == {6, 7}
    assert found.bad_words_ids == ((9,),)


@pytest.mark.parametrize(
    "fields",
    [{"num_beams": 0}, {"num_beams": 65}, {"max_length": 0}, {"early_stopping": 3}, {"min_length": -1}],
)
def test_options_that_cannot_be_are_errors(fields) -> None:
    with pytest.raises(OptionError):
        SearchOptions(**fields)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("num_beams", "4", "'4'"),
        ("length_penalty", [], "[]"),
        ("length_penalty", 200, "a number from -5 to 5 is expected"),
        ("length_penalty", -30.0, "a number from -5 to 5 is expected"),
        ("repetition_penalty", 1e300, "a number from 0.01 to 100 is expected"),
        ("repetition_penalty", 1e-300, "a number from 0.01 to 100 is expected"),
        ("early_stopping", "soon", "'soon'"),
        ("eos_token_id", "x", "'x'"),
        ("eos_token_id", [2, 10], "10"),
        ("forced_bos_token_id", -1, "-1"),
        ("forced_eos_token_id", 10, "10"),
        ("suppress_tokens", [3, 2**40], str(2**40)),
        ("begin_suppress_tokens", [True], "True"),
        ("bad_words_ids", [[1], [2, 10]], "10"),
        ("bad_words_ids", [3], "[3]"),
    ],
)
@pytest.mark.parametrize("file", ["config", "generation"])
def test_files_that_cannot_be_are_errors(name: str, value: object, shown: str, file: str) -> None:
    given = {"config": {}, "generation": {}, file: {name: value}}
    with pytest.raises(ModelFileError, match=re.escape(shown)) as caught:
        SearchOptions.of_model(model(given["config"], given["generation"]), 100)
    assert caught.value.path == "folder"
    assert f"field {name!r} of generation_config.json or config.json" in str(caught.value.place)


def test_the_language_written_has_tokens_of_its_own() -> None:
    found = SearchOptions.of_model(model({"decoder_vocab_size": 5}, {"eos_token_id": 4}), 100)
    assert found.eos_token_ids == {4}
    with pytest.raises(ModelFileError, match="tokens from 0 to 4"):
        SearchOptions.of_model(model({"decoder_vocab_size": 5}, {"eos_token_id": 5}), 100)


@pytest.mark.parametrize("penalty", [-5.0, 5.0])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_the_penalties_of_longest_texts_stay_within_floats(penalty: float, num_beams: int) -> None:
    options = SearchOptions(num_beams=num_beams, length_penalty=penalty, max_length=5000, eos_token_ids={END})
    found = search([0], options)
    while found.running:
        logits = np.zeros((len(found.running), WORDS), np.float32)
        logits[:, END] = -30 if len(found.running[0].tokens) < 4990 else 30
        found.step(found.scores(logits))
    assert math.isfinite(found.best().score)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("length_penalty", 200),
        ("length_penalty", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", "x"),
    ],
)
def test_penalties_beyond_their_bounds_are_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"{name}: .*it has to be a number from"):
        SearchOptions(**{name: value})
