"""The scheduler: who runs what, who waits, and what a step says."""

from __future__ import annotations

import pytest

from educe.errors import InputError, OptionError
from educe.generate.blocks import BlockManager
from educe.generate.scheduler import Scheduler
from educe.generate.sequence import Sequence, State
from educe.generate.step import Row, Step
from tests.generate.plain_cache import PlainCache, plain


def prompt(length: int, first: int = 0) -> list[int]:
    """Return a prompt that begins like no other of another `first`."""
    return [first, *[number % 4 for number in range(length - 1)]]


def sequence(length: int, max_tokens: int = 8, first: int = 0, **options: object) -> Sequence:
    return Sequence(prompt(length, first), max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def counts(step: Step) -> dict[Sequence, int]:
    return {row.sequence: len(row.tokens) for row in step.rows}


def only(step: Step) -> Row:
    (row,) = step.rows
    return row


def submitted(cache: PlainCache, *sequences: Sequence) -> tuple[Sequence, ...]:
    for each in sequences:
        cache.submit(each)
    return sequences


def test_a_step_says_all_that_the_model_needs() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(6))
    row = only(cache.go())
    assert (row.tokens, row.positions) == (tuple(one.tokens[:6]), range(6))
    first, second = row.blocks
    assert first != second
    assert (row.num_logits, row.num_drafts, row.samples) == (1, 0, (one,))
    row = only(cache.go())
    assert (row.tokens, row.positions, row.blocks) == ((one.tokens[6],), range(6, 7), (first, second))


def test_texts_do_not_depend_on_what_runs_beside_them() -> None:
    cache = plain()
    sequences = submitted(cache, *(sequence(3 + 4 * number, first=number % 3) for number in range(7)))
    cache.finish()
    for each in sequences:
        assert each.finish_reason == "length"
        assert each.output == cache.expected(each)
    assert cache.scheduler.blocks.num_used == 0


def test_a_stop_token_ends_a_text_and_is_part_of_it() -> None:
    cache = plain(max_length=64)
    (one,) = submitted(cache, sequence(5, 40, stop_ids=[2]))
    cache.finish()
    assert one.finish_reason == "stop"
    assert one.output.index(2) == len(one.output) - 1


def test_no_stream_waits_behind_a_long_prompt() -> None:
    cache = plain(prefill_share=0.25)
    writers = submitted(cache, *(sequence(2, 30, number) for number in range(3)))
    cache.go()
    (long,) = submitted(cache, sequence(25, 4))
    chunks = []
    while long.num_computed < 25:
        step = cache.go()
        assert [row.sequence for row in step.rows] == [*writers, long]
        chunks.append(counts(step)[long])
        assert step.rows[-1].num_logits == (long.num_computed == 25)
    assert chunks == [4, 4, 4, 4, 4, 4, 1]


def test_a_prompt_alone_has_the_whole_budget() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(40))
    assert [counts(cache.go())[one] for _ in range(3)] == [16, 16, 8]


def test_prompts_go_first_come_first_served() -> None:
    cache = plain()
    one, two, three = submitted(cache, *(sequence(10, 1, number) for number in range(3)))
    assert counts(cache.go()) == {one: 10, two: 6}
    assert counts(cache.go()) == {two: 4, three: 10}


def test_a_lower_number_goes_before_what_already_runs() -> None:
    cache = plain()
    (low,) = submitted(cache, sequence(30, priority=1))
    cache.go()
    (high,) = submitted(cache, sequence(10, first=1, priority=0))
    assert counts(cache.go()) == {high: 10, low: 6}


def test_a_small_one_does_not_pass_a_large_one() -> None:
    cache = plain(num_blocks=8)
    one, large, small = submitted(cache, sequence(16, 8), sequence(20, 4, first=1), sequence(2, 1, first=2))
    for _ in range(5):
        cache.go()
        assert (large.state, small.state) == (State.WAITING, State.WAITING)
    cache.finish()
    assert {each.finish_reason for each in (one, large, small)} == {"length"}


def test_the_latest_of_the_lowest_priority_gives_way() -> None:
    cache = plain(num_blocks=7)
    first, low, last = submitted(
        cache, sequence(4, 20), sequence(4, 20, first=1, priority=1), sequence(4, 20, first=2)
    )
    gone: list[Sequence] = []
    while len(gone) < 2:
        gone += cache.go().preempted
    assert gone == [low, last]
    assert (low.num_computed, low.table.blocks, low.state) == (0, [], State.WAITING)
    cache.finish()
    for each in (first, low, last):
        assert each.output == cache.expected(each)


def test_a_higher_priority_takes_blocks_only_if_it_then_runs() -> None:
    cache = plain(num_blocks=8)
    high, low = submitted(cache, sequence(12, 12), sequence(4, 4, first=1, priority=2))
    cache.go()
    (too_large,) = submitted(cache, sequence(24, 4, first=2, priority=1))
    assert cache.go().preempted == ()
    (fits,) = submitted(cache, sequence(4, 2, first=3, priority=0))
    submitted(cache, sequence(13, 2, first=3, priority=1))
    cache.finish()
    assert (
        too_large.finish_reason == fits.finish_reason == high.finish_reason == low.finish_reason == "length"
    )


def test_a_preempted_sequence_reads_again_only_what_is_lost() -> None:
    cache = plain(num_blocks=8)
    (low,) = submitted(cache, sequence(14, 4, priority=1))
    cache.go()
    (high,) = submitted(cache, sequence(20, 1, first=1))
    assert cache.go().preempted == (low,)
    while low.state is State.WAITING:
        step = cache.go()
    assert counts(step)[low] < 14
    assert high.finish_reason == "length"


def test_a_cached_beginning_is_not_read_again() -> None:
    cache = plain()
    submitted(cache, sequence(10, 1))
    cache.finish()
    (again,) = submitted(cache, Sequence([*prompt(10), 3, 3], max_tokens=1))
    row = only(cache.go())
    assert row.positions == range(8, 12)
    assert row.num_logits == 1
    assert again.finish_reason == "length"


def test_a_prompt_that_is_cached_to_the_end_reads_its_last_token() -> None:
    cache = plain()
    submitted(cache, sequence(8, 1))
    cache.finish()
    submitted(cache, sequence(8, 1))
    step = cache.go()
    assert only(step).positions == range(7, 8)
    assert len(step.copies) == 1


def test_another_salt_reads_everything() -> None:
    cache = plain()
    submitted(cache, sequence(8, 1, salt=b"one"))
    cache.finish()
    submitted(cache, sequence(8, 1, salt=b"two"))
    assert only(cache.go()).positions == range(8)


def test_the_output_is_cached_too() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(6, 7))
    cache.finish()
    submitted(cache, Sequence([*one.tokens, 1], max_tokens=1))
    assert only(cache.go()).positions == range(12, 14)


def test_prompts_that_begin_alike_are_read_once_even_at_once() -> None:
    cache = plain(num_blocks=32)
    shared = prompt(32)
    ends = submitted(cache, *(Sequence([*shared, number, 1], max_tokens=2) for number in range(4)))
    cache.finish()
    assert cache.num_read == 32 + 4 * 2 + 4
    assert all(each.output == cache.expected(each) for each in ends)


def test_a_higher_priority_does_not_wait_for_another_to_read_its_beginning() -> None:
    cache = plain(token_budget=9)
    submitted(cache, sequence(30, priority=1))
    cache.go()
    (high,) = submitted(cache, sequence(30))
    assert high in counts(cache.go())


def test_what_has_been_read_but_is_not_cached_is_not_waited_for() -> None:
    cache = plain()
    low, high = sequence(24, 20, priority=1), sequence(24, 1)
    submitted(cache, low)
    cache.go()
    submitted(cache, high)
    assert counts(cache.go()) == {high: 8, low: 8}
    submitted(cache, sequence(32, 1, first=1, priority=1))
    while len(cache.scheduler.running) + len(cache.scheduler.waiting) > 1:
        cache.go()
    (again,) = submitted(cache, sequence(24, 1, priority=1))
    step = cache.go()
    assert next(row.positions for row in step.rows if row.sequence is again) == range(16, 24)


def test_blocks_are_left_for_those_that_write() -> None:
    cache = plain(num_blocks=5)
    writer, waiting = submitted(cache, sequence(4, 8), sequence(12, 1, first=1))
    assert counts(cache.go()) == {writer: 4, waiting: 12}
    cache.finish()
    cache = plain(num_blocks=4)
    writer, waiting = submitted(cache, sequence(4, 8), sequence(12, 1, first=1))
    assert counts(cache.go()) == {writer: 4}


def test_samples_of_one_prompt_read_it_once_and_part_by_copies() -> None:
    cache = plain()
    samples = cache.submit(sequence(6, 5), 3)
    step = cache.go()
    assert only(step).samples == tuple(samples)
    assert cache.scheduler.blocks.num_used == 2
    step = cache.go()
    assert counts(step) == dict.fromkeys(samples, 1)
    shared = {source for source, _ in step.copies}
    assert (len(step.copies), len(shared)) == (2, 1)
    assert cache.scheduler.blocks.num_used == 4
    cache.finish()
    assert [each.output for each in samples] == [cache.expected(each) for each in samples]


def test_samples_outlive_the_one_that_reads_for_them() -> None:
    cache = plain(token_budget=9)
    first, second, third = cache.submit(sequence(20, 3), 3)
    cache.go()
    cache.scheduler.cancel(first)
    cache.scheduler.cancel(third)
    step = cache.go()
    assert set(step.cancelled) == {first, third}
    assert only(step).positions == range(9, 18)
    cache.finish()
    assert (second.finish_reason, second.output) == ("length", cache.expected(second))


def test_cancellation_takes_effect_with_the_next_step() -> None:
    cache = plain()
    running, waiting = submitted(cache, sequence(40), sequence(20, first=1))
    cache.go()
    for each in (running, waiting):
        cache.scheduler.cancel(each)
    step = cache.go()
    assert (step.rows, set(step.cancelled)) == ((), {running, waiting})
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert not cache.scheduler.has_work
    assert cache.scheduler.blocks.num_used == 0


def test_an_end_keeps_its_first_reason() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(4))
    cache.go()
    cache.scheduler.finish(one, "stop")
    cache.scheduler.cancel(one)
    cache.scheduler.finish(one, "failed")
    assert cache.go().cancelled == ()
    assert one.finish_reason == "stop"


def test_what_a_failed_step_wrote_is_not_used() -> None:
    cache = plain()
    good, bad = submitted(cache, sequence(10, 6), sequence(10, 6, first=1))
    cache.go()
    cache.scheduler.step()
    cache.scheduler.rollback()
    cache.scheduler.finish(bad, "failed")
    assert (good.state, good.num_computed) == (State.WAITING, 0)
    cache.finish()
    assert good.output == cache.expected(good)


def test_the_agreeing_part_of_a_draft_is_kept_and_the_rest_returns() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(4, 12))
    cache.go()
    right = cache.expected(one)
    one.draft = [*right[1:4], 3 - right[4], 0, 0]
    row = only(cache.go())
    assert (len(row.tokens), row.num_drafts, row.num_logits) == (7, 6, 7)
    assert one.output == right[:5]
    assert (one.num_pending, len(one.table.blocks), one.draft) == (1, 2, ())
    cache.finish()
    assert one.output == right


def test_a_draft_does_not_reach_beyond_the_last_token() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(4, 3))
    cache.go()
    one.draft = [0] * 9
    assert only(cache.go()).num_drafts == 1


def test_no_draft_follows_a_prompt_of_several_samples() -> None:
    cache = plain()
    samples = cache.submit(sequence(1, 8), 2)
    samples[0].draft = cache.expected(samples[0])
    assert (only(cache.go()).num_drafts, samples[0].draft) == (0, ())


def test_a_draft_takes_no_block_that_another_needs() -> None:
    cache = plain(num_blocks=3)
    one, two = submitted(cache, sequence(4, 4), sequence(3, 4, first=1))
    cache.go()
    one.draft = [0, 0, 0]
    step = cache.go()
    assert counts(step) == {one: 3, two: 1}
    assert step.preempted == ()
    cache = plain(num_blocks=4)
    one, two = submitted(cache, sequence(4, 8), sequence(4, 8, first=1))
    cache.go()
    one.draft = [0] * 5
    assert counts(cache.go()) == {one: 1, two: 1}


def test_a_stop_token_in_a_draft_ends_the_text_there() -> None:
    cache = plain()
    (one,) = submitted(cache, sequence(5, 40, stop_ids=[2]))
    cache.go()
    one.draft = [*cache.expected(one)[1:], 1, 1]
    cache.go()
    assert (one.finish_reason, one.output) == ("stop", cache.expected(one))


def test_tokens_fill_programs() -> None:
    cache = plain(token_budget=32, sizes=[4, 8, 16, 32], prefill_share=0.5)
    submitted(cache, sequence(2, 30), sequence(1, 30, first=1), sequence(2, 30, first=2))
    step = cache.go()
    assert (step.num_tokens, step.size, step.num_padding) == (5, 8, 3)
    (long,) = submitted(cache, sequence(30, 4))
    step = cache.go()
    assert (counts(step)[long], step.size, step.num_padding) == (13, 16, 0)
    cache.scheduler.running[0].draft = [0, 0, 0]
    step = cache.go()
    assert (counts(step)[long], step.size, step.num_padding) == (13, 16, 0)
    cache.scheduler.running[0].draft = [0, 0, 0]
    step = cache.go()
    assert (counts(step)[long], step.num_tokens, step.size) == (4, 8, 8)


def test_a_score_wants_the_logits_of_every_position() -> None:
    cache = plain()
    submitted(cache, sequence(20, 0))
    cache.finish()
    (one,) = submitted(cache, sequence(20, 0, logits_from=5))
    assert only(cache.go()).positions == range(5, 20)
    assert cache.num_logits[one] == 15
    assert (one.finish_reason, one.output) == ("length", [])


def test_what_can_never_fit_is_refused_before_any_work() -> None:
    cache = plain(num_blocks=4, block_size=4, max_length=64)
    with pytest.raises(InputError, match="10 tokens of prompt and 7 of output do not fit into 16") as caught:
        cache.submit(sequence(10, 7))
    assert caught.value.remedy
    assert not cache.scheduler.has_work
    cache.submit(sequence(10, 6))
    with pytest.raises(OptionError, match="n: is 9; 1 to 8 texts of one prompt are written"):
        cache.submit(sequence(2, 1), 9)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {"max_tokens": 1}, "the prompt has no tokens"),
        ([1, -1], {"max_tokens": 1}, "expected tokens from 0, found -1 to 1"),
        ([2**40], {"max_tokens": 1}, "expected tokens from 0"),
        ([1], {"max_tokens": -1}, "max_tokens: expected 0 or more"),
        ([1], {"max_tokens": 1, "logits_from": 1}, "logits_from: expected a position of the prompt"),
    ],
)
def test_what_is_no_sequence(tokens: list[int], options: dict[str, int], message: str) -> None:
    with pytest.raises((InputError, OptionError), match=message):
        Sequence(tokens, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"max_sequences": 0}, "max_sequences"),
        ({"max_sequences": 16}, "max_sequences"),
        ({"prefill_share": 0.0}, "prefill_share"),
        ({"prefill_share": 1.5}, "prefill_share"),
        ({"sizes": [0, 16]}, "sizes"),
        ({"sizes": [4, 8]}, "sizes"),
    ],
)
def test_numbers_that_do_not_fit_each_other(options: dict[str, object], place: str) -> None:
    options = {"max_length": 64, "token_budget": 16, "max_sequences": 8, **options}
    with pytest.raises(OptionError) as caught:
        Scheduler(BlockManager(8, 4), **options)  # type: ignore[arg-type]
    assert caught.value.place == place
