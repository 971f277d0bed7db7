"""A plain model of the KV cache: what each slot must hold, and what each text must become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Tokens
from itertools import chain
from zlib import crc32

from educe.generate.blocks import BlockManager
from educe.generate.scheduler import Scheduler
from educe.generate.sequence import Sequence
from educe.generate.step import Row, Step

VOCABULARY = 4


def contents(salt: bytes, tokens: Tokens[int]) -> list[int]:
    """Return for each position a number that stands for its keys and values: those of all tokens so far."""
    found = [crc32(salt)]
    for token in tokens:
        found.append(hash((found[-1], token)))
    return found[1:]


class PlainCache:
    """Runs steps on a dictionary from slots to contents, and checks everything that a step promises."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.size = scheduler.blocks.block_size
        self.memory: dict[int, int] = {}
        self.number: dict[Sequence, int] = {}
        self.num_logits: Counter[Sequence] = Counter()
        self.num_read = 0

    def submit(self, sequence: Sequence, num_samples: int = 1) -> list[Sequence]:
        samples = self.scheduler.submit(sequence, num_samples)
        self.number.update({sample: number for number, sample in enumerate(samples)})
        return samples

    def choose(self, sequence: Sequence, tokens: Tokens[int]) -> int:
        key = contents(sequence.salt, tokens)[-1]
        return hash((key, self.number[sequence])) % VOCABULARY

    def expected(self, sequence: Sequence) -> list[int]:
        """Return what the sequence writes if nothing runs beside it."""
        tokens = sequence.tokens[: sequence.num_prompt]
        for _ in range(sequence.max_tokens):
            tokens.append(self.choose(sequence, tokens))
            if tokens[-1] in sequence.stop_ids:
                break
        return tokens[sequence.num_prompt :]

    def run(self, step: Step) -> dict[Sequence, list[int]]:
        """Run a step, and return the tokens to commit."""
        self._check_rows(step)
        for source, target in step.copies:
            for place in range(self.size):
                self.memory[target * self.size + place] = self.memory.get(source * self.size + place, 0)
        for row in step.rows:
            self._write(row)
        for row in step.rows:
            self._read(row)
        return {sample: self._verify(sample, row) for row in step.rows for sample in row.samples}

    def go(self) -> Step:
        """Plan, run and commit a step."""
        step = self.scheduler.step()
        self.commit(step)
        return step

    def commit(self, step: Step) -> None:
        """Run a step, and commit its rows."""
        tokens = self.run(step)
        for row in step.rows:
            self.scheduler.commit(row, tokens)

    def finish(self) -> list[Step]:
        """Run to the end of all sequences; there is one, since the first in rank goes on in every step."""
        steps = []
        everyone = {*self.number}
        left = sum(len(each.tokens) + each.num_remaining + 1 for each in everyone)
        while self.scheduler.has_work:
            steps.append(self.go())
            assert len(steps) <= left
        return steps

    def _check_rows(self, step: Step) -> None:
        slots = list(chain.from_iterable(map(self._slots, step.rows)))
        assert len(slots) == len(set(slots)) == step.num_tokens <= self.scheduler.token_budget
        holders = Counter(chain.from_iterable(each.table.blocks for each in self.scheduler.running))
        assert all(holders[slot // self.size] == 1 for slot in slots)

    def _write(self, row: Row) -> None:
        sequence, count = row.sequence, len(row.tokens)
        whole = [*sequence.tokens[: row.positions.start], *row.tokens]
        assert count > 0
        assert len(row.blocks) == self.scheduler.blocks.blocks_for(row.positions.stop)
        assert row.tokens[: count - row.num_drafts] == tuple(
            sequence.tokens[row.positions.start : row.positions.stop - row.num_drafts]
        )
        self.memory.update(zip(self._slots(row), contents(sequence.salt, whole)[-count:], strict=True))
        self.num_read += count
        self.num_logits[sequence] += row.num_logits

    def _slots(self, row: Row) -> list[int]:
        return [
            row.blocks[position // self.size] * self.size + position % self.size for position in row.positions
        ]

    def _read(self, row: Row) -> None:
        whole = [*row.sequence.tokens[: row.positions.start], *row.tokens]
        held = [
            self.memory[row.blocks[position // self.size] * self.size + position % self.size]
            for position in range(row.positions.stop)
        ]
        assert held == contents(row.sequence.salt, whole)

    def _verify(self, sample: Sequence, row: Row) -> list[int]:
        assert row.num_logits > row.num_drafts
        tokens, draft = list(sample.tokens), row.tokens[len(row.tokens) - row.num_drafts :]
        if not sample.max_tokens:
            return []
        for guess in (*draft, None):
            tokens.append(self.choose(sample, tokens))
            if tokens[-1] != guess:
                break
        return tokens[len(sample.tokens) :]


def plain(
    num_blocks: int = 16, block_size: int = 4, max_length: int = 64, token_budget: int = 16, **options: object
) -> PlainCache:
    """Return a cache of sixteen blocks of four tokens, with a scheduler of up to eight sequences."""
    blocks = BlockManager(num_blocks, block_size)
    options = {"max_sequences": 8, **options}
    return PlainCache(Scheduler(blocks, max_length=max_length, token_budget=token_budget, **options))  # type: ignore[arg-type]
