"""Guesses by a model: texts are the same as without, whatever is guessed, and blocks are all returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from educe.errors import OptionError
from educe.formats import checkpoint
from educe.generate.blocks import BlockManager
from educe.generate.generator import Generator
from educe.generate.scheduler import Scheduler
from educe.generate.sequence import Sequence
from educe.model.checkpoint import Checkpoint, Weight
from tests.conftest import ROOT

STORIES = ROOT / "zoo" / "stories260K" / "stories260K.bin"
OPTIONS = [{}, {"temperature": 0.9, "seed": 5}, {"temperature": 1.0, "seed": 2, "n": 3}]


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return checkpoint.load(STORIES)


@pytest.fixture(scope="module")
def plain(model: Checkpoint) -> Iterator[Generator]:
    with Generator(model, lookup=False) as made:
        yield made


def noisy(model: Checkpoint) -> Checkpoint:
    """Return a model that often guesses otherwise."""
    rng, weights = np.random.default_rng(0), dict(model.weights)
    for name, weight in weights.items():
        array = weight.array() + rng.normal(0, 0.05, weight.shape).astype(np.float32)
        weights[name] = Weight(name, weight.shape, "F32", array.reshape(-1).view(np.uint8))
    return dataclasses.replace(model, weights=weights)


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "seeded", "several"])
@pytest.mark.parametrize("draft", ["itself", "noisy"])
def test_texts_are_those_without_guesses(model: Checkpoint, plain: Generator, draft: str, options) -> None:
    prompts = ["Once upon a time", "The dog", "Lily saw a big", "One day, Tom"]
    options = {"max_tokens": 60, **options}
    guesser = model if draft == "itself" else noisy(model)
    with Generator(model, draft=guesser, num_draft_tokens=3) as quick:
        for one, other in zip(plain.batch(prompts, **options), quick.batch(prompts, **options), strict=True):
            assert not isinstance(one, Exception)
            assert not isinstance(other, Exception)
            assert one.outputs == other.outputs


def test_a_model_that_agrees_is_believed(model: Checkpoint) -> None:
    with Generator(model, draft=model, num_draft_tokens=4) as quick:
        sizes = [len(piece.tokens) for piece in quick.stream("Once upon a time", max_tokens=60)]
    assert sorted(sizes)[len(sizes) // 2] == 5


@pytest.mark.parametrize("method", ["run", "copy"])
@pytest.mark.parametrize("num_before", [0, 1, 5])
def test_one_that_fails_is_given_up_once_and_costs_no_text(
    model: Checkpoint,
    plain: Generator,
    method: str,
    num_before: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[object] = []

    def fail(given: object) -> object:
        calls.append(given)
        if len(calls) > num_before:
            raise MemoryError("no room")
        return works(given)

    prompts = ["Once upon a time", "The dog", "Lily saw a big"]
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 2, "n": 3}
    with Generator(model, draft=model, num_draft_tokens=3) as quick:
        runner = quick._engine._draft._runner  # type: ignore[union-attr]
        works = getattr(runner, method)
        monkeypatch.setattr(runner, method, fail)
        expected = [each.outputs for each in plain.batch(prompts, **options)]  # type: ignore[union-attr]
        for _ in range(2):
            assert [each.outputs for each in quick.batch(prompts, **options)] == expected  # type: ignore[union-attr]
    assert len(calls) == num_before + 1
    (record,) = caplog.records
    assert "texts are written without guesses: MemoryError('no room')" in record.getMessage()


def test_one_that_guesses_has_the_same_vocabulary(model: Checkpoint) -> None:
    other = dataclasses.replace(model, config={**model.config, "vocab_size": 100})
    with pytest.raises(OptionError, match=r"it has 100 tokens, .* 512"):
        Generator(model, draft=other)


def test_blocks_for_guesses_are_returned_and_never_those_that_others_need() -> None:
    blocks = BlockManager(6, 4)
    scheduler = Scheduler(blocks, max_length=24, token_budget=16, max_sequences=4)
    one, two = (Sequence(range(7), max_tokens=9), Sequence(range(50, 57), max_tokens=9))
    for sequence in (one, two):
        scheduler.submit(sequence)
    for row in scheduler.step().rows:
        scheduler.commit(row, {one: [7], two: [57]})
    assert blocks.num_free == 2
    assert scheduler.look_ahead(4) == ([], [])
    scheduler.finish(two, "stop")
    asked, copies = scheduler.look_ahead(4)
    assert (asked, copies) == ([(one, 4)], [])
    assert blocks.num_free == 3
    (row,) = scheduler.step().rows
    scheduler.commit(row, {one: [8]})
    assert blocks.num_free == 4
