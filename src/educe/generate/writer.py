"""`Writer`: the texts that a search finds about sources, many side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from educe.errors import LimitError
from educe.generate.beam import Hypothesis, Search, search
from educe.generate.blocks import BlockManager, BlockTable, Copy
from educe.generate.capacity import cache_bytes, num_blocks
from educe.generate.encoder_decoder import Source, Target
from educe.generate.search import SearchOptions, allowed
from educe.limits import format_bytes


class Model(Protocol):
    """What writes about sources, in blocks of which each text has its own; such as an `EncoderDecoder`."""

    block_size: int
    max_sequences: int
    max_source: int

    @property
    def source_block_bytes(self) -> int:
        """Memory of a block of sources."""

    @property
    def target_block_bytes(self) -> int:
        """Memory of a block of texts."""

    def allocate(self, num_source_blocks: int, num_target_blocks: int) -> None:
        """Give the caches of sources and of texts so many blocks; one takes memory when it is first used."""

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks so many tokens take."""

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of texts, from and to, in their order."""

    def decode(self, targets: Sequence[Target]) -> np.ndarray:
        """Run tokens of texts, and return the logits after the last of each, f32[texts, vocabulary]."""


class _Job:
    """The search for the text about one source, and its blocks."""

    def __init__(
        self, number: int, length: int, found: Search, options: SearchOptions, most_bytes: int
    ) -> None:
        self.number, self.length, self.options = number, length, options
        self.search, self.most_bytes = found, most_bytes
        self.prompt = len(found.running[0].tokens)
        self.source = BlockTable(b"")
        self.tables = [BlockTable(b"")]
        self.num_run = 0


class Writer:
    """Writes texts about sources. One thread at a time.

    As many sources are under way as their searches have room; where one ends, the next begins. A text does
    not depend on what is written beside it. What fails leaves no blocks behind.

    Args:
        model: The model; its cache is the writer's own from now on.
        longest: Most tokens of a text.
        memory_bytes: Memory of what is under way; if absent, what as many sources and texts as a step has
            room for can need, up to a quarter of the machine's.

    Raises:
        OptionError: the memory holds no block.
    """

    def __init__(self, model: Model, longest: int, memory_bytes: int | None = None) -> None:
        self._model = model
        self._source_bytes, self._target_bytes = model.source_block_bytes, model.target_block_bytes
        sequences, size = model.max_sequences, model.block_size
        per_source = model.blocks_for(model.max_source) * self._source_bytes
        per_text = model.blocks_for(longest) * self._target_bytes
        self._memory_bytes = cache_bytes(sequences * (per_source + per_text), memory_bytes)
        counts = [
            num_blocks(block_bytes, size, most, sequences, self._memory_bytes)
            for block_bytes, most in (
                (self._source_bytes, model.max_source),
                (self._target_bytes, longest),
            )
        ]
        self._sources, self._targets = (BlockManager(count, size) for count in counts)
        self._held_bytes = 0
        model.allocate(*counts)

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
            LimitError: one search alone has more beams than a step has room for, or needs too much memory.
            EngineError: a logit is no number, or no token may come next.
        """
        self._check_beams(options.num_beams)
        waiting = deque(
            self._job(number, length, search(prompt, options), options)
            for number, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
        )
        for job in waiting:
            # Before anything is read: what was written of others would be lost.
            self._has_room(job, ())
        found: dict[int, Hypothesis] = {}
        running: list[_Job] = []
        try:
            while waiting or running:
                self._start(waiting, running, read)
                self._step(running)
                for job in [job for job in running if not job.search.running]:
                    found[job.number] = job.search.best()
                    running.remove(job)
                    self._release(job)
        finally:
            for job in running:
                self._release(job)
        return [found[number] for number in range(len(found))]

    @contextmanager
    def reading(self, length: int, read: Callable[[Sequence[int]], object]) -> Iterator[Source]:
        """Hold a source as the encoder has read it, for any number of searches about it.

        Args:
            length: How many rows the encoder makes of it.
            read: Has the encoder read it into some blocks.

        Raises:
            LimitError: there is not enough memory for it.
        """
        table = BlockTable(b"")
        source_bytes = self._bytes_of_source(length)
        needed = self._held_bytes + source_bytes
        if needed > self._memory_bytes or self._sources.start(table, [], 0, length, 0) is None:
            raise self._too_small("a source", needed, "shorten it")
        self._held_bytes += source_bytes
        try:
            read(table.blocks)
            yield Source(length, table.blocks)
        finally:
            self._held_bytes -= source_bytes
            self._sources.truncate(table, 0)

    def search(
        self, source: Source, prompt: Sequence[int], options: SearchOptions, temperature: float = 0.0
    ) -> Hypothesis:
        """Return a text about a source that is held.

        Args:
            source: What `reading` holds.
            prompt: What the text begins with.
            options: How it is searched.
            temperature: At which its tokens are drawn, see `Sampling`; of use for one beam.

        Raises:
            LimitError: the search has more beams than a step has room for, or needs too much memory.
            EngineError: a logit is no number, or no token may come next.
        """
        self._check_beams(options.num_beams)
        job = _Job(
            0, source.length, search(prompt, options, temperature), options, self._bytes_of_texts(options)
        )
        self._has_room(job, ())
        job.source = self._sources.fork(BlockTable(b"", list(source.blocks)))
        try:
            while job.search.running:
                self._step([job])
        finally:
            self._release(job)
        return job.search.best()

    def logits(self, source: Source, tokens: Sequence[int]) -> np.ndarray:
        """Return the logits after some tokens of a text about a source that is held, f32[vocabulary].

        Raises:
            LimitError: there is not enough memory for the text.
        """
        table = BlockTable(b"")
        if self._targets.reserve(table, 0, len(tokens)) is None:
            needed = self._model.blocks_for(len(tokens)) * self._target_bytes
            raise self._too_small(f"a text of {len(tokens):,} tokens", needed, "shorten it")
        try:
            logits: np.ndarray = self._model.decode([Target(tokens, 0, table.blocks, source=source)])[0]
            return logits
        finally:
            self._targets.truncate(table, 0)

    def _start(
        self,
        waiting: deque[_Job],
        running: list[_Job],
        read: Callable[[Sequence[int], Sequence[Sequence[int]]], object],
    ) -> None:
        """Begin with as many jobs as there is room for, and have their sources read."""
        started: list[_Job] = []
        while waiting and self._has_room(waiting[0], running):
            job = waiting.popleft()
            running.append(job)
            copies = self._sources.start(job.source, [], 0, job.length, 0)
            assert copies == []
            started.append(job)
        if started:
            read([job.number for job in started], [job.source.blocks for job in started])

    def _check_beams(self, num_beams: int) -> None:
        if num_beams > self._model.max_sequences:
            raise LimitError(
                f"{num_beams} beams, where a step has {self._model.max_sequences} texts",
                remedy="search with fewer beams",
            )

    def _has_room(self, job: _Job, running: Sequence[_Job]) -> bool:
        """Say whether a job may begin beside others, with all that each can need until it ends.

        Raises:
            LimitError: there is no room for it alone.
        """
        together = [*running, job]
        num_texts = sum(each.options.num_beams for each in together)
        needed = self._held_bytes + sum(each.most_bytes for each in together)
        if num_texts <= self._model.max_sequences and needed <= self._memory_bytes:
            return True
        if running:
            return False
        texts = f"a text of up to {job.options.max_length:,} tokens and {num_texts} beams"
        raise self._too_small(texts, needed, "search with fewer beams")

    def _too_small(self, what: str, needed: int, remedy: str) -> LimitError:
        return LimitError(
            f"{what} needs {format_bytes(needed)}, and {format_bytes(self._memory_bytes)} are given",
            place="memory_bytes",
            remedy=f"{remedy}, or give more memory",
        )

    def _job(self, number: int, length: int, found: Search, options: SearchOptions) -> _Job:
        """Return a job that knows the most memory that it takes."""
        most_bytes = self._bytes_of_source(length) + self._bytes_of_texts(options)
        return _Job(number, length, found, options, most_bytes)

    def _bytes_of_source(self, length: int) -> int:
        return self._model.blocks_for(length) * self._source_bytes

    def _bytes_of_texts(self, options: SearchOptions) -> int:
        """Return the most memory of the texts of a search: they share blocks, but may come to share none."""
        return options.num_beams * self._model.blocks_for(options.max_length) * self._target_bytes

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

    def _release(self, job: _Job) -> None:
        """Return all blocks of a job."""
        self._sources.truncate(job.source, 0)
        for table in job.tables:
            self._targets.truncate(table, 0)
