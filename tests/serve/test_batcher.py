"""The policy of batches: what runs together, when, and who is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from educe.serve.batcher import Batch, Batcher, Ticket
from educe.serve.cost import CostCurve
from educe.serve.faults import DeadlineExceeded, Overloaded


def batcher(**changes: object) -> Batcher:
    return Batcher(**{"max_rows": 8, "max_waiting": 100, **changes})  # type: ignore[arg-type]


def ticket(group: str = "a", rows: int = 1, arrival: float = 0.0, **fields: float) -> Ticket:
    return Ticket(group, rows, arrival, **fields)  # type: ignore[arg-type]


def learnt(seconds_of_rows: dict[int, float], **changes: object) -> Batcher:
    found = batcher(**changes)
    for rows, seconds in seconds_of_rows.items():
        found.cost.learn(rows, seconds)
    return found


def ended(planned: Batcher, batch: Batch, rows: int, seconds: float) -> None:
    planned.ended(batch)
    planned.learn(batch, rows, seconds)


def test_an_idle_engine_never_waits_without_a_target() -> None:
    planned = learnt({1: 0.01, 8: 0.011})
    planned.offer(ticket(), 5.0)
    assert planned.start_at(5.0) == 5.0


def test_requests_of_one_group_run_together_when_that_costs_no_more() -> None:
    planned = learnt({1: 0.01, 8: 0.011})
    tickets = [ticket() for _ in range(5)]
    for each in tickets:
        planned.offer(each, 0.0)
    assert planned.take(0.0).tickets == tickets
    assert planned.waiting == []


def test_requests_run_one_by_one_when_rows_cost_as_much_together() -> None:
    planned = learnt({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08})
    tickets = [ticket() for _ in range(5)]
    for each in tickets:
        planned.offer(each, 0.0)
    assert planned.take(0.0).tickets == tickets[:1]


def test_groups_do_not_mix_and_the_first_goes_first() -> None:
    planned = learnt({1: 0.01, 8: 0.01})
    mixed = [ticket("a"), ticket("b"), ticket("a"), ticket("b")]
    for each in mixed:
        planned.offer(each, 0.0)
    batch = planned.take(0.0)
    assert batch.tickets == [mixed[0], mixed[2]]
    ended(planned, batch, 2, 0.01)
    assert planned.take(0.0).tickets == [mixed[1], mixed[3]]


def test_a_run_has_no_more_rows_than_it_may_but_one_request_may_have_more() -> None:
    planned = learnt({1: 0.01, 8: 0.01})
    for rows in (5, 3, 1):
        planned.offer(ticket(rows=rows), 0.0)
    assert [each.rows for each in planned.take(0.0).tickets] == [5, 3]
    large = batcher()
    large.offer(ticket(rows=50), 0.0)
    assert [each.rows for each in large.take(0.0).tickets] == [50]


def test_lower_priorities_go_first_and_equals_in_their_order() -> None:
    planned = batcher(max_rows=1)
    late, early, first = ticket(priority=1), ticket(priority=0), ticket(priority=-1)
    second = ticket(priority=-1)
    for each in (late, early, first, second):
        planned.offer(each, 0.0)
    order = []
    while planned.waiting:
        batch = planned.take(0.0)
        order += batch.tickets
        ended(planned, batch, 1, 0.01)
    assert order == [first, second, early, late]


def test_too_many_are_refused_with_the_time_that_the_queue_takes() -> None:
    planned = learnt({1: 0.5}, max_waiting=2)
    planned.offer(ticket(), 0.0)
    planned.offer(ticket(), 0.0)
    with pytest.raises(Overloaded) as refused:
        planned.offer(ticket(), 0.0)
    assert refused.value.retry_after == pytest.approx(1.0)


def test_a_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    planned = learnt({1: 0.5})
    planned.offer(ticket(), 0.0)
    with pytest.raises(DeadlineExceeded):
        planned.offer(ticket(deadline=0.9), 0.0)
    planned.offer(ticket(deadline=1.1), 0.0)
    assert len(planned.waiting) == 2


def test_who_would_wait_longer_than_the_target_is_refused() -> None:
    planned = learnt({1: 0.04}, target_seconds=0.2)
    for _ in range(3):
        planned.offer(ticket(), 0.0)
    with pytest.raises(Overloaded):
        planned.offer(ticket(), 0.0)


def test_waiting_pays_only_if_more_are_expected_in_what_it_saves() -> None:
    planned = learnt({1: 0.010, 2: 0.011}, target_seconds=0.1)
    for number in range(50):  # one comes each millisecond
        planned.offer(ticket(arrival=number / 1000), number / 1000)
        ended(planned, planned.take(number / 1000), 1, 0.010)
    planned.offer(ticket(arrival=0.05), 0.05)
    start = planned.start_at(0.05)
    assert start is not None
    assert 0.05 < start <= 0.05 + 0.009 + 1e-9
    rare = learnt({1: 0.010, 2: 0.011}, target_seconds=0.1)
    for number in range(50):  # one comes each second
        rare.offer(ticket(arrival=number), number)
        ended(rare, rare.take(number), 1, 0.010)
    rare.offer(ticket(arrival=50.0), 50.0)
    assert rare.start_at(50.0) == 50.0


requests = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.integers(-1, 1)), min_size=1, max_size=40
)


@given(requests, st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1.0), max_size=6), st.booleans())
def test_each_request_runs_exactly_once_in_runs_that_fit(
    wanted: list[tuple[str, int, int]], costs: dict[int, float], has_target: bool
) -> None:
    planned = learnt(costs, max_rows=8, target_seconds=1e9 if has_target else None)
    tickets = [ticket(group, rows, priority=priority) for group, rows, priority in wanted]
    for each in tickets:
        planned.offer(each, 0.0)
    seen = []
    now = 0.0
    while planned.waiting:
        start = planned.start_at(now)
        assert start is not None
        assert start >= now
        now = start
        batch = planned.take(now)
        assert batch.tickets
        assert len({each.group for each in batch.tickets}) == 1
        assert batch.rows <= 8 or len(batch.tickets) == 1
        seen += batch.tickets
        ended(planned, batch, batch.rows, 0.001)
    assert sorted(map(id, seen)) == sorted(map(id, tickets))


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 10.0)), max_size=50), st.integers(1, 400))
def test_costs_are_finite_and_positive_once_anything_is_known(
    runs: list[tuple[int, float]], rows: int
) -> None:
    curve = CostCurve()
    assert curve.seconds(rows) == 0.0
    for size, seconds in runs:
        curve.learn(size, seconds)
    found = curve.seconds(rows)
    assert math.isfinite(found)
    assert (found > 0) == bool(runs)
    assert curve.least_row_seconds <= curve.seconds(1) or not runs


def test_the_first_run_of_a_size_does_not_spoil_it() -> None:
    curve = CostCurve()
    for _ in range(20):
        curve.learn(1, 0.001)
    curve.learn(8, 5.0)
    assert curve.seconds(8) == pytest.approx(0.008)
    for _ in range(60):
        curve.learn(8, 0.002)
    assert curve.seconds(8) == pytest.approx(0.002, rel=0.05)


def test_inputs_that_are_being_read_count_as_waiting() -> None:
    planned = learnt({1: 0.010}, target_seconds=0.075)
    planned.read(0.010)
    planned.num_reading = 2
    assert planned.admit(0.0, 1) == pytest.approx(0.040)
    planned.num_reading = 3
    with pytest.raises(Overloaded):
        planned.admit(0.0, 1)
    full = learnt({1: 0.010}, max_waiting=2)
    full.num_reading = 2
    with pytest.raises(Overloaded):
        full.admit(0.0, 1)


def test_an_idle_engine_takes_a_request_whatever_the_target() -> None:
    planned = learnt({1: 0.5}, target_seconds=0.05)
    planned.offer(ticket(), 0.0)
    assert planned.take(0.0).tickets


def test_expected_waits_follow_those_that_were_met() -> None:
    planned = learnt({1: 0.010}, max_rows=1)
    now = 0.0
    for _ in range(60):  # each request waits twice as long as its run is known to take
        planned.offer(ticket(arrival=now), now)
        first = planned.take(now)
        planned.offer(ticket(arrival=now), now)
        expected = planned.waiting[0].expected_seconds
        now += 0.020
        ended(planned, first, 1, 0.010)
        second = planned.take(now)
        now += 0.010
        ended(planned, second, 1, 0.010)
    assert expected == pytest.approx(0.020, rel=0.1)


def test_runs_are_beside_each_other_only_if_they_would_follow_and_there_are_enough() -> None:
    follow, together = {1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08}, {1: 0.01, 8: 0.011}
    for costs, num_waiting, expected in (
        (follow, 2, 1),  # fewer than cores: one after the other, each on all of them
        (follow, 3, 4),
        (follow, 9, 4),
        (together, 8, 1),
    ):
        planned = learnt(costs, max_runs=4)
        planned.offer(ticket(), 0.0)
        planned.take(0.0)
        for _ in range(num_waiting):
            planned.offer(ticket(), 0.0)
        while planned.start_at(0.0) is not None:
            planned.take(0.0)
        assert len(planned.running) == expected


def test_long_runs_are_one_after_the_other() -> None:
    planned = learnt({1: 0.06, 2: 0.12}, max_runs=2)
    for _ in range(4):
        planned.offer(ticket(), 0.0)
    planned.take(0.0)
    assert planned.start_at(0.0) is None
    beside = learnt({1: 0.01, 2: 0.02, 8: 2.0}, max_runs=4)
    for rows in (1, 1, 1, 1, 8, 8):
        beside.offer(ticket(rows=rows), 0.0)
    first = beside.take(0.0)
    while beside.start_at(0.0) is not None:
        beside.take(0.0)
    assert [batch.rows for batch in beside.running] == [1] * 4
    beside.ended(first)
    assert beside.start_at(0.0) is None


def test_requests_that_cannot_run_together_run_beside_each_other() -> None:
    planned = learnt({1: 0.01, 8: 0.01}, max_runs=2)
    for group in "aabc":
        planned.offer(ticket(group), 0.0)
    assert [each.group for each in planned.take(0.0).tickets] == ["a", "a"]
    assert planned.start_at(0.0) == 0.0
    assert [each.group for each in planned.take(0.0).tickets] == ["b"]
    assert planned.start_at(0.0) is None


def test_a_run_beside_another_costs_as_much_of_the_machine_as_one_alone() -> None:
    planned = learnt({1: 0.010}, max_runs=2)
    for _ in range(4):
        planned.offer(ticket(), 0.0)
    first, second = planned.take(0.0), planned.take(0.0)
    assert (first.until, second.until) == (0.010, 0.020)
    assert planned.wait_seconds(0.0) == pytest.approx(0.010 + 0.020)
    ended(planned, first, 1, 0.020)
    third = planned.take(0.0)
    ended(planned, second, 1, 0.020)
    ended(planned, third, 1, 0.015)
    assert planned.cost.seconds(1) == pytest.approx(0.010, rel=0.1)
