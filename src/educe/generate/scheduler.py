"""`Scheduler`: which sequences run how many tokens in the next step; no arrays, no clock, no threads.

1. Every running sequence that writes gets its next token before any prompt gets one, so that no stream waits
   behind a prompt.
2. What is left of the budget, a share of it while others write, goes to prompts in the order of their rank:
   priority, then arrival. A waiting sequence is admitted in its turn, with blocks for all that it has, or it
   waits, and all behind it wait: the first is never passed by smaller ones.
3. Where blocks run out, the last in rank gives its blocks back and waits. A sequence that waits takes blocks
   only from lower priorities, and only if it then can run.
4. Drafts take what is left: blocks that are free, and the budget, or only the padding where prompts are read.

So the first in rank of all sequences makes progress in every step; each becomes the first after a bounded
number of steps, whatever arrives behind it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Tokens
from itertools import chain

from educe.errors import InputError, OptionError
from educe.generate.blocks import BlockManager, BlockTable, Copy
from educe.generate.sequence import FinishReason, Sequence, State
from educe.generate.step import Row, Step


class Scheduler:
    """The queues of one model, its blocks, and the plan of one step at a time.

    Each `step` is followed by the `commit` of each of its rows, or by `rollback` if it failed. One thread at
    a time; `cancel` alone may come from any thread.

    Args:
        blocks: The blocks of the KV cache; nobody else's.
        max_length: Most tokens of prompt and output together.
        token_budget: Most tokens of a step.
        max_sequences: Most sequences that run at once.
        prefill_share: What part of the budget prompts get while others write.
        sizes: The numbers of tokens for which there are programs; every number if empty.
        max_logits: Most tokens of a prompt that a step gives logits of.

    Raises:
        OptionError: numbers that do not fit each other.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_length: int,
        token_budget: int,
        max_sequences: int,
        prefill_share: float = 0.5,
        sizes: Iterable[int] = (),
        max_logits: int = 64,
    ) -> None:
        self.blocks = blocks
        self.max_length = min(max_length, blocks.num_blocks * blocks.block_size)
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        self.chunk = max(1, int(token_budget * prefill_share))
        self.sizes = sorted(sizes)
        self.max_logits = max_logits
        self._num_submitted = 0
        self._check(prefill_share)
        self._begin()

    def clear(self) -> None:
        """Forget all sequences and what blocks hold, in whatever state a step has left them."""
        self.blocks = BlockManager(self.blocks.num_blocks, self.blocks.block_size)
        self._begin()

    def _begin(self) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._plan: dict[Sequence, int] = {}
        self._copies: list[Copy] = []
        self._preempted: list[Sequence] = []
        self._in_flight: deque[Row] = deque()

    def _check(self, prefill_share: float) -> None:
        if not 1 <= self.max_sequences < self.token_budget:
            cause = f"expected 1 or more and fewer than the budget of {self.token_budget} tokens"
            raise OptionError(f"{cause}, found {self.max_sequences}", place="max_sequences")
        if not 0 < prefill_share <= 1:
            raise OptionError(
                f"expected more than 0 and at most 1, found {prefill_share}", place="prefill_share"
            )
        if self.sizes and not (self.sizes[0] >= 1 and self.token_budget <= self.sizes[-1]):
            cause = f"expected sizes from 1 up, and one for the budget of {self.token_budget} tokens"
            raise OptionError(f"{cause}, found {self.sizes[0]} to {self.sizes[-1]}", place="sizes")

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self.waiting or self.running)

    def submit(self, sequence: Sequence, num_samples: int = 1) -> list[Sequence]:
        """Queue a new sequence, and return it and its further samples, which share what it reads.

        Raises:
            InputError: prompt and output together never fit.
            OptionError: more samples than may run at once, or none.
        """
        if not 1 <= num_samples <= self.max_sequences:
            raise OptionError(
                f"is {num_samples:,}; 1 to {self.max_sequences:,} texts of one prompt are written at once",
                place="n",
                remedy="ask for fewer, or make the generator with more max_sequences",
            )
        if sequence.span > self.max_length:
            prompt, most = sequence.num_prompt, sequence.max_tokens
            cause = f"{prompt:,} tokens of prompt and {most:,} of output do not fit into {self.max_length:,}"
            raise InputError(
                cause,
                too_long=True,
                place="max_tokens" if most >= self.max_length else "prompt",
                remedy="shorten the prompt, lower or leave out max_tokens, or give more memory",
            )
        samples = [sequence, *(sequence.sibling() for _ in range(num_samples - 1))]
        for sample in samples:
            sample.arrival = self._num_submitted
            self._num_submitted += 1
        sequence.forks = samples[1:]
        _insert(self.waiting, sequence)
        return samples

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence with the next step, unless it ends before; safe from any thread."""
        sequence.is_cancelled = True

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence now and return its blocks; one that has ended keeps its first reason.

        Between a step and the commit of its row, what the step makes of the sequence is dropped.
        """
        if sequence.state is State.FINISHED:
            return
        if sequence.forks:
            self._replace(sequence, sequence.forks[0])
        elif not _remove(self.running, sequence) and not _remove(self.waiting, sequence):
            next(each for each in self._live() if sequence in each.forks).forks.remove(sequence)
        self.blocks.truncate(sequence.table, 0)
        sequence.state, sequence.finish_reason = State.FINISHED, reason

    def step(self) -> Step:
        """Plan the next step; it has no rows if nothing is left to do."""
        assert not self._in_flight, "a step is followed by the commit of all its rows, or by its rollback"
        cancelled = [
            each for each in chain(self._live(), *(s.forks for s in self._live())) if each.is_cancelled
        ]
        for sequence in cancelled:
            self.finish(sequence, "cancelled")
        self._plan, self._copies, self._preempted = {}, [], []
        self._plan_decodes()
        self._plan_prompts(self._prompt_room())
        self._plan_drafts()
        rows = tuple(self._row(sequence, num_tokens) for sequence, num_tokens in self._plan.items())
        size = self._size(sum(self._plan.values()))
        step = Step(rows, tuple(self._copies), size, tuple(cancelled), tuple(self._preempted))
        self._in_flight.extend(rows)
        return step

    def look_ahead(self, num_tokens: int) -> tuple[list[tuple[Sequence, int]], list[Copy]]:
        """Give those that write blocks for a guess, before the step that will verify it.

        It is for who guesses by a model, whose keys and values need a place, too. Blocks that others may need
        for their next token are left to them; what is not used is returned when the step is committed.

        Args:
            num_tokens: Most tokens of a guess.

        Returns:
            The sequences with how many tokens each may guess; and the copies to make at once.
        """
        asked: list[tuple[Sequence, int]] = []
        copies: list[Copy] = []
        for sequence in self.running:
            start, count = sequence.num_computed, min(num_tokens, sequence.num_remaining - 1)
            needed = self.blocks.blocks_for(1 + count) + 1
            if sequence.num_pending > 1 or count < 1 or sequence.forks:
                continue
            if self.blocks.num_free >= needed + len(self.running):
                copies += self.blocks.reserve(sequence.table, start, start + 1 + count) or []
                asked.append((sequence, count))
        return asked, copies

    def commit(self, row: Row, tokens: Mapping[Sequence, Tokens[int]]) -> None:
        """Take what a step gave for one of its rows, in their order.

        Args:
            row: The row, which has run.
            tokens: Of each of its `samples`, the tokens chosen: the draft as far as it holds, and one more;
                none for a sequence that writes nothing. It may lack those of a sequence that has ended.
        """
        expected = self._in_flight.popleft()
        assert row is expected
        if row.sequence.state is State.RUNNING:
            self._advance(row, tokens)

    def rollback(self) -> None:
        """Forget a step that failed: all that ran wait again, and nothing that it wrote is used.

        Whom the failure is owed to is then to `finish`; else the step is tried again.
        """
        self._in_flight.clear()
        while self.running:
            self._preempt(self.running[-1])

    def _plan_decodes(self) -> None:
        for sequence in [each for each in self.running if each.num_pending == 1]:
            while sequence.state is State.RUNNING and not self._reserve(sequence, 1):
                self._preempt(self.running[-1])

    def _plan_prompts(self, room: int) -> None:
        prompts = deque(each for each in self.running if each not in self._plan)
        queue_moves = True
        while room:
            head = self.waiting[0] if self.waiting and queue_moves else None
            if head and not (prompts and prompts[0].rank < head.rank):
                queue_moves = self._admit(head)
                sequence = head
            elif prompts:
                sequence = prompts.popleft()
            else:
                break
            if sequence.state is State.RUNNING:
                unread = max(0, sequence.next_logits - sequence.num_computed)
                self._plan[sequence] = min(sequence.num_pending, room, unread + self.max_logits)
                room -= self._plan[sequence]

    def _plan_drafts(self) -> None:
        used = sum(self._plan.values())
        reads_prompts = any(each.num_pending > 1 for each in self._plan)
        most = self._size(used) if reads_prompts else self.token_budget
        room = min(most, self.token_budget) - used
        for sequence in list(self._plan):
            num_drafts = min(len(sequence.draft), sequence.num_remaining - 1, room)
            if num_drafts > 0 and sequence.num_pending == 1 and not sequence.forks:
                room -= num_drafts * self._reserve(sequence, 1 + num_drafts)

    def _prompt_room(self) -> int:
        """Return how many tokens of prompts to read, so that the step fills a program if there are enough."""
        used = len(self._plan)
        most = min(self.token_budget, used + self.chunk) if used else self.token_budget
        fitting = bisect_right(self.sizes, most)
        if fitting and self.sizes[fitting - 1] > used:
            most = self.sizes[fitting - 1]
        return most - used

    def _size(self, num_tokens: int) -> int:
        return self.sizes[bisect_left(self.sizes, num_tokens)] if self.sizes and num_tokens else num_tokens

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        start = sequence.num_computed
        copies = self.blocks.reserve(sequence.table, start, start + num_tokens)
        if copies is None:
            return False
        self._copies += copies
        self._plan[sequence] = num_tokens
        return True

    def _admit(self, head: Sequence) -> bool:
        """Let the first that waits run, if it can, with blocks for all its tokens."""
        found = self.blocks.find(head.table, head.tokens)
        if self._is_being_read(head, len(found)):
            return False
        while (copies := self._start(head, found)) is None:
            if not self._can_make_room(head):
                return False
            self._preempt(self.running[-1])
        self._copies += copies
        self.waiting.remove(head)
        _insert(self.running, head)
        head.state = State.RUNNING
        return True

    def _start(self, head: Sequence, found: list[int]) -> list[Copy] | None:
        if _num_samples(self.running) + _num_samples([head]) > self.max_sequences:
            return None
        num_kept = min(len(found) * self.blocks.block_size, head.next_logits)
        spare = len(self.running)
        copies = self.blocks.start(head.table, found, num_kept, len(head.tokens), spare)
        if copies is not None:
            head.num_computed = num_kept
        return copies

    def _is_being_read(self, head: Sequence, num_found: int) -> bool:
        """Whether one that comes first is about to compute the next block that `head` needs.

        Then `head` waits for that block; before it could read it, the other one will have.
        """
        size, digests = self.blocks.block_size, head.table.digests
        if num_found * size >= head.next_logits or num_found >= len(digests):
            return False
        return any(
            other.rank < head.rank
            and other.num_computed < (num_found + 1) * size
            and other.table.digests[num_found : num_found + 1] == [digests[num_found]]
            for other in self.running
        )

    def _can_make_room(self, head: Sequence) -> bool:
        """Whether `head` fits if all of lower priority give their blocks back."""
        staying = [each for each in self.running if each.priority <= head.priority]
        held = set(chain.from_iterable(each.table.blocks for each in staying))
        num_blocks = len(held) + self.blocks.blocks_for(len(head.tokens)) + len(staying)
        return (
            len(staying) < len(self.running)
            and num_blocks <= self.blocks.num_blocks
            and _num_samples(staying) + _num_samples([head]) <= self.max_sequences
        )

    def _preempt(self, sequence: Sequence) -> None:
        _remove(self.running, sequence)
        self._plan.pop(sequence, None)
        self.blocks.truncate(sequence.table, 0)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.state = State.WAITING
        _insert(self.waiting, sequence)
        self._preempted.append(sequence)

    def _row(self, sequence: Sequence, num_tokens: int) -> Row:
        start = sequence.num_computed
        end = start + num_tokens
        num_drafts = max(0, num_tokens - sequence.num_pending)
        return Row(
            sequence=sequence,
            tokens=(*sequence.tokens[start:end], *sequence.draft[:num_drafts]),
            start=start,
            blocks=tuple(sequence.table.blocks[: self.blocks.blocks_for(end)]),
            num_logits=max(0, end - max(start, sequence.next_logits)),
            span=sequence.span,
            num_drafts=num_drafts,
            samples=(sequence, *sequence.forks) if end >= len(sequence.tokens) else (),
        )

    def _advance(self, row: Row, tokens: Mapping[Sequence, Tokens[int]]) -> None:
        sequence = row.sequence
        sequence.num_computed = row.positions.stop - row.num_drafts
        sequence.next_logits = max(sequence.next_logits, sequence.num_computed)
        sequence.draft = ()
        self.blocks.seal(sequence.table, sequence.tokens, sequence.num_computed)
        if row.samples:
            forks, sequence.forks = sequence.forks, []
            for fork in forks:
                self._start_fork(fork, sequence)
            for sample in (sequence, *forks):
                assert len(tokens[sample]) <= row.num_drafts + 1
                self._append(sample, tokens[sample])

    def _start_fork(self, fork: Sequence, sequence: Sequence) -> None:
        fork.table = self.blocks.fork(sequence.table)
        fork.num_computed, fork.next_logits = sequence.num_computed, sequence.next_logits
        fork.state = State.RUNNING
        _insert(self.running, fork)

    def _append(self, sequence: Sequence, tokens: Tokens[int]) -> None:
        """Take the tokens chosen; the next step reads the last of them. Blocks of a failed guess return."""
        assert tokens or not sequence.max_tokens
        before = len(sequence.tokens)
        reason = sequence.append(tokens)
        sequence.num_computed += max(0, len(sequence.tokens) - before - 1)
        sequence.next_logits = sequence.num_computed
        self.blocks.seal(sequence.table, sequence.tokens, sequence.num_computed)
        self.blocks.truncate(sequence.table, sequence.num_computed)
        if reason:
            self.finish(sequence, reason)

    def _live(self) -> Iterable[Sequence]:
        return chain(self.running, self.waiting)

    def _replace(self, sequence: Sequence, heir: Sequence) -> None:
        """Give one's place, blocks and further samples to one of its samples."""
        heir.forks, sequence.forks = sequence.forks[1:], []
        heir.table, sequence.table = sequence.table, BlockTable(sequence.salt)
        heir.num_computed, heir.next_logits = sequence.num_computed, sequence.next_logits
        heir.state = sequence.state
        queue = self.running if sequence.state is State.RUNNING else self.waiting
        queue[queue.index(sequence)] = heir


def _insert(queue: list[Sequence], sequence: Sequence) -> None:
    insort(queue, sequence, key=lambda each: each.rank)


def _remove(queue: list[Sequence], sequence: Sequence) -> bool:
    if sequence not in queue:
        return False
    queue.remove(sequence)
    return True


def _num_samples(sequences: Iterable[Sequence]) -> int:
    return sum(1 + len(each.forks) for each in sequences)
