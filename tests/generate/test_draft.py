"""Prompt lookup: the latest continuation of the longest n-gram, and lengths that follow success."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest

from educe.formats import checkpoint
from educe.generate.draft import PromptIndex, PromptLookup
from educe.generate.runner import Runner
from educe.generate.step import Slice
from tests.stories import STORIES


def lookup(prompt: Sequence[int] = (), max_draft: int = 16, **sizes: int) -> PromptLookup:
    return PromptLookup(PromptIndex(prompt, **sizes), max_draft)


def test_the_latest_continuation_is_proposed() -> None:
    assert lookup().propose([1, 2, 3, 4, 5, 6, 9, 1, 2]) == [3, 4, 5, 6]
    assert lookup().propose([1, 2, 3, 7, 1, 2, 8, 8, 5, 4, 1, 2]) == [8, 8, 5, 4]


def test_the_longest_ngram_wins() -> None:
    assert lookup(max_draft=1).propose([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2]) == [7]


def test_nothing_is_proposed_where_nothing_repeats() -> None:
    assert lookup().propose([1, 2, 3, 4]) == []
    assert lookup().propose([7]) == []
    assert lookup(min_ngram=2).propose([1, 2, 3, 1]) == []
    assert lookup(min_ngram=1).propose([1, 2, 3, 1]) == [2, 3, 1, 2]


def test_a_repetition_goes_on_beyond_the_end() -> None:
    assert lookup().propose([1, 2, 1, 2, 1, 2]) == [1, 2, 1, 2]
    assert lookup().propose([4, 4, 4]) == [4, 4, 4, 4]


def test_a_draft_grows_while_it_holds_and_shrinks_when_it_fails() -> None:
    text = [1, 2] * 40
    own = lookup(max_draft=16)
    end, lengths = 16, []
    for _ in range(4):
        draft = own.propose(text[:end])
        lengths.append(len(draft))
        end += len(draft) + 1
    assert lengths == [4, 8, 16, 16]
    tokens = [1, 2] * 8
    own = lookup()
    assert len(own.propose(tokens)) == 4
    tokens += [1, 9, 1, 2]
    assert len(own.propose(tokens)) == 2
    tokens += [7, 1, 2]
    assert len(own.propose(tokens)) == 1


def test_a_draft_of_which_only_a_part_was_tried_has_not_failed() -> None:
    own = lookup()
    assert len(own.propose([1, 2] * 8)) == 4
    assert len(own.propose([1, 2] * 9)) == 4


@pytest.mark.parametrize("num_prompt", [0, 1, 2, 3, 5, 150])
def test_tokens_by_and_by_are_indexed_like_tokens_at_once(num_prompt: int) -> None:
    chance = random.Random(3)
    tokens = [chance.randrange(4) for _ in range(300)]
    own = lookup(tokens[:num_prompt], max_draft=1)
    for end in range(max(1, num_prompt), len(tokens)):
        assert own.propose(tokens[:end]) == lookup(max_draft=1).propose(tokens[:end]), end
        assert own.propose(tokens[:end]) == lookup(tokens[:end], max_draft=1).propose(tokens[:end]), end


def test_samples_share_the_index_of_their_prompt_which_is_small() -> None:
    chance = random.Random(5)
    tokens = [chance.randrange(50_000) for _ in range(20_000)]
    tokens += tokens[:4]
    tracemalloc.start()
    index = PromptIndex(tokens)
    samples = [PromptLookup(index, max_draft=1) for _ in range(50)]
    assert {tuple(sample.propose(tokens)) for sample in samples} == {(tokens[4],)}
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 48 * len(tokens)


@pytest.mark.parametrize("num_drafts", [1, 4, 16])
@pytest.mark.parametrize("num_texts", [1, 3, 4])
def test_steps_with_guesses_find_their_programs_made(runner: Runner, num_texts: int, num_drafts: int) -> None:
    while runner.prepare():
        pass
    before = runner._executable.compile_seconds()
    count = 1 + num_drafts
    runner.run([Slice([5] * count, 0, [number], num_logits=count) for number in range(num_texts)])
    assert runner._executable.compile_seconds() == before


@pytest.fixture(scope="module")
def runner() -> Runner:
    made = Runner(checkpoint.load(STORIES), max_length=64, max_sequences=4, max_tokens=128, block_size=64)
    made.allocate(4)
    return made
