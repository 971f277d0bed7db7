"""Prompt lookup: the latest continuation of the longest n-gram, and lengths that follow success."""

from __future__ import annotations

import random

from educe.generate.draft import PromptLookup


def test_the_latest_continuation_is_proposed() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5, 6, 9, 1, 2]) == [3, 4, 5, 6]
    assert PromptLookup().propose([1, 2, 3, 7, 1, 2, 8, 8, 5, 4, 1, 2]) == [8, 8, 5, 4]


def test_the_longest_ngram_wins() -> None:
    assert PromptLookup(max_draft=1).propose([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2]) == [7]


def test_nothing_is_proposed_where_nothing_repeats() -> None:
    assert PromptLookup().propose([1, 2, 3, 4]) == []
    assert PromptLookup().propose([7]) == []
    assert PromptLookup(min_ngram=2).propose([1, 2, 3, 1]) == []
    assert PromptLookup(min_ngram=1).propose([1, 2, 3, 1]) == [2, 3, 1, 2]


def test_a_repetition_goes_on_beyond_the_end() -> None:
    assert PromptLookup().propose([1, 2, 1, 2, 1, 2]) == [1, 2, 1, 2]
    assert PromptLookup().propose([4, 4, 4]) == [4, 4, 4, 4]


def test_a_draft_grows_while_it_holds_and_shrinks_when_it_fails() -> None:
    text = [1, 2] * 40
    lookup = PromptLookup(max_draft=16)
    end, lengths = 16, []
    for _ in range(4):
        draft = lookup.propose(text[:end])
        lengths.append(len(draft))
        end += len(draft) + 1
    assert lengths == [4, 8, 16, 16]
    tokens = [1, 2] * 8
    lookup = PromptLookup()
    assert len(lookup.propose(tokens)) == 4
    tokens += [1, 9, 1, 2]
    assert len(lookup.propose(tokens)) == 2
    tokens += [7, 1, 2]
    assert len(lookup.propose(tokens)) == 1


def test_a_draft_of_which_only_a_part_was_tried_has_not_failed() -> None:
    lookup = PromptLookup()
    assert len(lookup.propose([1, 2] * 8)) == 4
    assert len(lookup.propose([1, 2] * 9)) == 4


def test_tokens_by_and_by_are_indexed_like_tokens_at_once() -> None:
    chance = random.Random(3)
    tokens = [chance.randrange(4) for _ in range(300)]
    lookup = PromptLookup(max_draft=1)
    for end in range(1, len(tokens)):
        assert lookup.propose(tokens[:end]) == PromptLookup(max_draft=1).propose(tokens[:end]), end
