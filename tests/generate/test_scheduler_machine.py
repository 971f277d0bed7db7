"""The scheduler as a state machine: whatever happens in whatever order, the accounts are right.

`--hypothesis-profile=deep` runs 10,000 steps.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from educe.errors import InputError
from educe.generate.sequence import Sequence, State
from educe.generate.step import Step
from tests.generate.plain_cache import VOCABULARY, PlainCache, plain

MAX_LENGTH = 40
REASONS = {"stop", "length", "cancelled", "failed"}
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=9)
choices = st.integers(0, 10**6)


class Generation(RuleBasedStateMachine):
    """Submits, cancels, finishes, drafts and steps at random, over a plain model of the cache."""

    num_steps = 0
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.sequences: list[Sequence] = []
        self.ended: dict[Sequence, str] = {}
        self.in_flight = False

    @initialize(
        shape=st.sampled_from([(24, 1), (9, 3), (8, 4), (12, 4)]),
        sizes=st.sampled_from([(), (4, 8, 16), (24,)]),
        share=st.sampled_from([0.1, 0.5, 1.0]),
    )
    def begin(self, shape: tuple[int, int], sizes: tuple[int, ...], share: float) -> None:
        self.cache: PlainCache = plain(
            *shape, max_length=MAX_LENGTH, max_sequences=5, sizes=sizes, prefill_share=share
        )
        self.scheduler = self.cache.scheduler

    @rule(
        repeats=st.integers(0, 4),
        ends=st.lists(tokens, min_size=1, max_size=3),
        num_samples=st.sampled_from([1, 1, 1, 2, 4]),
        max_tokens=st.sampled_from([0, 1, 5, 9, 14, 19]),
        priority=st.integers(0, 2),
        salt=st.sampled_from([b"", b"", b"other"]),
        stops=st.integers(0, 3).map(lambda number: number == 0),
        scores=st.integers(0, 3).map(lambda number: number == 0),
    )
    def submit(
        self,
        repeats: int,
        ends: list[list[int]],
        num_samples: int,
        max_tokens: int,
        priority: int,
        salt: bytes,
        stops: bool,
        scores: bool,
    ) -> None:
        for end in ends:
            sequence = Sequence(
                [*([1, 2, 3, 0] * repeats), *(end or [0])],
                max_tokens=max_tokens,
                stop_ids=[0] if stops else [],
                priority=priority,
                salt=salt,
                logits_from=0 if scores else None,
            )
            if sequence.num_prompt + max_tokens <= self.scheduler.max_length:
                self.seen["submitted"] += 1
                self.sequences += self.cache.submit(sequence, num_samples)
            else:
                self.seen["refused"] += 1
                with pytest.raises(InputError):
                    self.scheduler.submit(sequence, num_samples)

    def pick(self, choice: int) -> Sequence | None:
        return self.sequences[choice % len(self.sequences)] if self.sequences else None

    @rule(choice=choices)
    def cancel(self, choice: int) -> None:
        if sequence := self.pick(choice):
            self.scheduler.cancel(sequence)

    @rule(choice=choices, reason=st.sampled_from(["stop", "failed"]))
    def finish(self, choice: int, reason: str) -> None:
        if sequence := self.pick(choice):
            self.scheduler.finish(sequence, reason)  # type: ignore[arg-type]

    @rule(count=st.integers(1, 4), guess=tokens, num_right=st.integers(0, 6))
    def run(self, count: int, guess: list[int], num_right: int) -> None:
        for _ in range(count if self.scheduler.has_work else 0):
            for sequence in self.scheduler.running:
                right = self.cache.expected(sequence)[len(sequence.output) :]
                sequence.draft = [*right[:num_right], *guess]
            step = self.plan()
            self.cache.commit(step)
            self.check()

    @rule(choice=choices, num_before=st.integers(0, 3))
    def finish_in_flight(self, choice: int, num_before: int) -> None:
        step = self.plan()
        chosen = self.cache.run(step)
        for number, row in enumerate(step.rows):
            if number == num_before and (sequence := self.pick(choice)):
                self.scheduler.finish(sequence, "failed")
            self.scheduler.commit(row, chosen)

    @rule()
    def step_that_fails(self) -> None:
        self.cache.run(self.plan())
        self.scheduler.rollback()
        assert not self.scheduler.running

    def plan(self) -> Step:
        """Plan a step, and check its policy."""
        asked = [each for each in self.sequences if each.is_cancelled and each.state is not State.FINISHED]
        before = set(self.scheduler.running)
        self.in_flight = True
        step = self.scheduler.step()
        assert set(step.cancelled) == set(asked)
        self.check_policy(step, before - {*step.cancelled})
        type(self).num_steps += bool(step.rows)
        self.seen["preempted"] += len(step.preempted)
        self.seen["copied"] += len(step.copies)
        self.seen["drafted"] += sum(row.num_drafts for row in step.rows)
        self.seen["forked"] += sum(len(row.samples) > 1 for row in step.rows)
        self.seen["chunked"] += sum(not row.samples for row in step.rows)
        self.seen["shared"] += sum(
            row.positions.start > 0 and row.sequence not in before for row in step.rows
        )
        return step

    def check_policy(self, step: Step, before: set[Sequence]) -> None:
        scheduler = self.scheduler
        live = [*scheduler.running, *scheduler.waiting]
        rows = {row.sequence: row for row in step.rows}
        if live:
            assert min(live, key=lambda each: each.rank) in rows
        writing = [each for each in scheduler.running if each in before and each.num_pending == 1]
        assert all(each in rows for each in writing)
        prompts = [row for row in step.rows if row.sequence.num_pending > 1]
        if writing:
            assert sum(len(row.tokens) for row in prompts) <= scheduler.chunk
        for gone in step.preempted:
            assert gone.state is State.RUNNING or all(each.rank < gone.rank for each in scheduler.running)
        if scheduler.sizes and step.rows:
            assert step.size in scheduler.sizes
            assert step.num_padding >= 0
            assert not any(step.num_tokens <= size < step.size for size in scheduler.sizes)
        else:
            assert step.num_padding == 0

    @invariant()
    def check(self) -> None:
        self.in_flight = False
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        held = set(chain.from_iterable(each.table.blocks for each in scheduler.running))
        assert blocks.num_used == len(held)
        assert blocks.num_free + blocks.num_used == blocks.num_blocks
        live = [*scheduler.running, *scheduler.waiting]
        places = Counter([*live, *chain.from_iterable(each.forks for each in live)])
        assert sum(1 + len(each.forks) for each in scheduler.running) <= scheduler.max_sequences
        for queue, state in ((scheduler.running, State.RUNNING), (scheduler.waiting, State.WAITING)):
            assert [each.rank for each in queue] == sorted(each.rank for each in queue)
            assert all(each.state is state for each in queue)
        for sequence in self.sequences:
            is_over = sequence.state is State.FINISHED
            assert places[sequence] == (0 if is_over else 1)
            assert (sequence.finish_reason in REASONS) == is_over
            assert sequence.state is State.RUNNING or not sequence.table.blocks
            if is_over:
                assert self.ended.setdefault(sequence, str(sequence.finish_reason)) == sequence.finish_reason

    def teardown(self) -> None:
        if not hasattr(self, "scheduler") or self.in_flight:
            return
        left = sum(len(each.tokens) + each.num_remaining + 1 for each in self.sequences)
        while self.scheduler.has_work:
            self.run(1, [], 0)
            left -= 1
            assert left > 0
        assert self.scheduler.blocks.num_used == 0
        assert len(self.ended) == len(self.sequences)
        for sequence in self.sequences:
            expected = self.cache.expected(sequence)
            if sequence.finish_reason == "length":
                assert sequence.output == expected
            assert sequence.output == expected[: len(sequence.output)]


def test_the_scheduler_under_everything_at_once() -> None:
    is_deep = settings().max_examples > settings.get_profile("default").max_examples
    Generation.num_steps, Generation.seen = 0, Counter()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Generation,
        settings=settings(
            max_examples=400 if is_deep else 60,
            stateful_step_count=60 if is_deep else 40,
            derandomize=not is_deep,
            deadline=None,
            database=None,
            suppress_health_check=settings.get_profile("default").suppress_health_check,
        ),
    )
    assert Generation.num_steps > (10_000 if is_deep else 300)
    kinds = {"submitted", "refused", "preempted", "copied", "drafted", "forked", "chunked", "shared"}
    assert not is_deep or all(Generation.seen[kind] > 100 for kind in kinds), Generation.seen
