"""`Writer`: the texts that a search finds about sources, many side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from educe.errors import LimitError
from educe.generate.beam import Hypothesis, Search, search
from educe.generate.blocks import BlockManager, BlockTable, Copy
from educe.generate.encoder_decoder import Source, Target
from educe.generate.search import SearchOptions, allowed


class Model(Protocol):
    """What writes about sources, in blocks of which each text has its own; such as an `EncoderDecoder`."""

    block_size: int
    max_sequences: int
    max_source: int

    def allocate(self, num_source_blocks: int, num_target_blocks: int) -> None:
        """Give the caches of sources and of texts so many blocks."""

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks so many tokens take."""

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of texts, from and to, in their order."""

    def decode(self, targets: Sequence[Target]) -> np.ndarray:
        """Run tokens of texts, and return the logits after the last of each, f32[texts, vocabulary]."""


class _Job:
    """One source, the search for its text, and the blocks of both."""

    def __init__(self, number: int, length: int, prompt: Sequence[int], options: SearchOptions) -> None:
        self.number, self.length, self.options = number, length, options
        self.prompt = len(prompt)
        self.search: Search = search(prompt, options)
        self.source = BlockTable(b"")
        self.tables = [BlockTable(b"")]
        self.num_run = 0


class Writer:
    """Writes texts about sources. One thread at a time.

    As many sources are under way as their searches have room; where one ends, the next begins. A text does
    not depend on what is written beside it.

    Args:
        model: The model; its cache is the writer's own from now on.
        longest: Most tokens of a text.
    """

    def __init__(self, model: Model, longest: int) -> None:
        self._model = model
        sequences, size = model.max_sequences, model.block_size
        num_source = sequences * model.blocks_for(model.max_source)
        # While a text is continued by another, both have blocks of their own.
        num_target = 2 * sequences * model.blocks_for(longest)
        self._sources, self._targets = BlockManager(num_source, size), BlockManager(num_target, size)
        model.allocate(num_source, num_target)

    def write(
        self,
        lengths: Sequence[int],
        read: Callable[[Sequence[int], Sequence[Sequence[int]]], object],
        prompts: Sequence[Sequence[int]],
        options: SearchOptions,
    ) -> list[Hypothesis]:
        """Return the text about each source, in their order.

        Args:
            lengths: How many rows the encoder makes of each source.
            read: Has the encoder read the sources of some numbers, into the blocks of each.
            prompts: What each text begins with.
            options: How texts are searched.

        Raises:
            LimitError: one search alone has more beams than a step has room for.
        """
        if options.num_beams > self._model.max_sequences:
            raise LimitError(
                f"{options.num_beams} beams, where a step has {self._model.max_sequences} texts",
                remedy="search with fewer beams",
            )
        waiting = deque(
            _Job(number, length, prompt, options)
            for number, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
        )
        found: dict[int, Hypothesis] = {}
        running: list[_Job] = []
        while waiting or running:
            running += self._started(waiting, len(running) * options.num_beams, read)
            self._step(running)
            for job in [job for job in running if not job.search.running]:
                found[job.number] = job.search.best()
                self._sources.truncate(job.source, 0)
                running.remove(job)
        return [found[number] for number in range(len(found))]

    def _started(
        self,
        waiting: deque[_Job],
        num_texts: int,
        read: Callable[[Sequence[int], Sequence[Sequence[int]]], object],
    ) -> list[_Job]:
        """Return the jobs that begin now, whose sources are read."""
        jobs: list[_Job] = []
        while waiting and num_texts + waiting[0].options.num_beams <= self._model.max_sequences:
            job = waiting.popleft()
            copies = self._sources.start(job.source, [], 0, job.length, 0)
            assert copies == []
            num_texts += job.options.num_beams
            jobs.append(job)
        if jobs:
            read([job.number for job in jobs], [job.source.blocks for job in jobs])
        return jobs

    def _step(self, jobs: Sequence[_Job]) -> None:
        """Run the last tokens of all texts, and have the searches continue."""
        targets = []
        for job in jobs:
            source = Source(job.length, job.source.blocks)
            for text, table in zip(job.search.running, job.tables, strict=True):
                copies = self._targets.reserve(table, job.num_run, len(text.tokens))
                assert copies is not None
                self._model.copy(copies)
                tokens = text.tokens[job.num_run :]
                targets.append(Target(tokens, job.num_run, table.blocks, source=source))
        logits = self._model.decode(targets)
        first = 0
        for job in jobs:
            texts = job.search.running
            rows = job.search.scores(logits[first : first + len(texts)])
            first += len(texts)
            scores = [
                allowed(row, text.tokens, job.prompt, job.options)
                for row, text in zip(rows, texts, strict=True)
            ]
            job.num_run = len(texts[0].tokens)
            job.search.step(np.stack(scores))
            self._continue(job)

    def _continue(self, job: _Job) -> None:
        """Give each text the blocks of the one that it continues."""
        before = job.tables
        job.tables = [self._targets.fork(before[text.parent]) for text in job.search.running]
        for table in before:
            self._targets.truncate(table, 0)
