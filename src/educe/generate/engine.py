"""`Engine`: the thread that runs a model's steps while there is work: plan, run, choose, commit, tell."""

from __future__ import annotations

import atexit
import gc
import threading
import time
import weakref
from collections.abc import Sequence as Tokens
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from educe.errors import EduceError, EngineError, OptionError
from educe.generate.base import StepRunner
from educe.generate.blocks import Copy
from educe.generate.draft import PromptLookup
from educe.generate.draft_model import DraftModel
from educe.generate.order import Order
from educe.generate.sampling import Choice
from educe.generate.scheduler import Scheduler
from educe.generate.sequence import FinishReason, Sequence
from educe.generate.step import Row, Step
from educe.generate.stream import Completion, Output, Seconds, Stream
from educe.generate.writing import Scoring, Writing
from educe.machine import renew_when_forked
from educe.pages import trim

# A thread without work ends after this long, so that a generator that nobody closes costs nothing.
_IDLE_SECONDS = 5.0
_PAUSE_SECONDS = 0.25


@dataclass(eq=False)
class _Request:
    """What one call has asked for, and how far it is."""

    stream: Stream
    num_prompt: int
    submitted: float
    num_open: int
    outputs: dict[int, Output] = field(default_factory=dict)
    num_cached: int | None = None
    started: float | None = None
    first_token: float | None = None

    def completion(self, now: float) -> Completion:
        moments = (self.started or now, self.first_token or now, now)
        seconds = Seconds(*(moment - self.submitted for moment in moments))
        ordered = tuple(self.outputs[index] for index in sorted(self.outputs))
        return Completion(ordered, self.num_prompt, self.num_cached or 0, seconds)


class Engine:
    """Many texts at once, each as if it were alone.

    Its methods may be called from any thread. The thread that runs the steps makes programs
    before there are any, and starts again with a request.

    Args:
        runner: The model, which nobody else runs.
        scheduler: The queues over the runner's blocks, which nobody else plans.
        draft: What guesses at texts in place of the lookup, if anything does.
    """

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        *,
        draft: DraftModel | None = None,
    ) -> None:
        self._runner, self._scheduler, self._draft = runner, scheduler, draft
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._jobs: dict[Sequence, tuple[_Request, int, Writing | Scoring]] = {}
        _ENGINES.add(self)
        renew_when_forked(self)
        with self._changed:
            self._start()

    def write(self, order: Order, *, lookup: bool = False) -> Stream:
        """Queue a prompt, and return what will be written after it.

        Args:
            order: What is to be written.
            lookup: Whether tokens are proposed from what stood before.

        Raises:
            InputError: prompt and text never fit.
            OptionError: the engine is closed, or more texts are wanted than may run at once.
        """
        stream = Stream(lambda: self._cancel(stream))
        with self._changed:
            samples = self._submit(order.sequence, len(order.states))
            request = _Request(stream, order.sequence.num_prompt, time.perf_counter(), len(samples))
            try:
                for index, (sample, state) in enumerate(zip(samples, order.states, strict=True)):
                    proposer = PromptLookup() if lookup else None
                    self._jobs[sample] = request, index, Writing(index, sample, state, order, proposer)
            except Exception:
                for sample in samples:
                    self._jobs.pop(sample, None)
                    self._scheduler.finish(sample, "failed")
                raise
        return stream

    def score(self, sequence: Sequence, count: int) -> tuple[Stream, Scoring]:
        """Queue a text to be read only; when the stream ends, the scoring has all its tokens' chances."""
        stream = Stream(lambda: self._cancel(stream))
        scoring = Scoring(sequence, count)
        with self._changed:
            self._submit(sequence, 1)
            request = _Request(stream, sequence.num_prompt, time.perf_counter(), 1)
            self._jobs[sequence] = request, 0, scoring
        return stream, scoring

    @property
    def max_sequences(self) -> int:
        """Most texts that are written at once."""
        return self._scheduler.max_sequences

    def close(self) -> None:
        """Cancel everything, end the thread, and give memory back; what is submitted later is refused."""
        with self._changed:
            self._closed = True
            for sequence in self._jobs:
                self._scheduler.cancel(sequence)
            thread = self._thread
            self._changed.notify_all()
        if thread is threading.current_thread():
            return
        if thread is not None:
            thread.join()
        # Others may close as well, and whoever is first collects.
        with suppress(AttributeError):
            del self._runner, self._draft
            gc.collect()
            trim()

    def renew(self) -> None:
        """Begin anew in a forked child, which has neither the thread nor what it was writing."""
        self._changed = threading.Condition()
        self._thread = None
        self._scheduler.clear()
        lost = {request for request, _, _ in self._jobs.values()}
        self._jobs = {}
        for request in lost:
            request.stream.put(EngineError("the process was forked meanwhile", remedy="ask again"))

    def _submit(self, sequence: Sequence, num_samples: int) -> list[Sequence]:
        if self._closed:
            raise OptionError("the generator is closed", remedy="make another")
        for model in (self._runner, self._draft):
            if model is not None:
                sequence.share_less(model.salt(sequence.span))
        self._start()
        samples = self._scheduler.submit(sequence, num_samples)
        self._changed.notify_all()
        return samples

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="educe-generator", daemon=True)
            self._thread.start()

    def _cancel(self, stream: Stream) -> None:
        with self._changed:
            for sequence, (request, _, _) in self._jobs.items():
                if request.stream is stream:
                    self._scheduler.cancel(sequence)
            self._changed.notify_all()

    def _work(self) -> None:
        while self._wait():
            try:
                self._step()
            except Exception as fault:
                self._fail_all(fault)

    def _wait(self) -> bool:
        """Wait for work, and meanwhile make programs; False where the thread is to end."""
        end = time.monotonic() + _IDLE_SECONDS
        while True:
            with self._changed:
                # Whoever asks again at once does not wait for a program that is in the making.
                if not (self._closed or self._scheduler.has_work):
                    self._changed.wait(_PAUSE_SECONDS)
                if self._scheduler.has_work:
                    return True
                if self._closed or time.monotonic() > end:
                    self._thread = None
                    return False
            while not (self._scheduler.has_work or self._closed) and self._prepare():
                end = time.monotonic() + _IDLE_SECONDS

    def _prepare(self) -> bool:
        """Make a program if one is left to be made; a step that needs one that fails says why."""
        try:
            return self._runner.prepare()
        except Exception:
            return False

    def _step(self) -> None:
        self._propose()
        with self._changed:
            step = self._scheduler.step()
            for sequence in step.cancelled:
                self._finish(sequence, "cancelled")
            self._note_starts(step)
        if not step.rows:
            return
        try:
            self._copy(step.copies)
            logits = self._runner.run(step.rows)
            if self._draft is not None:
                self._draft.read(step.rows)
        except Exception as fault:
            self._give_up(step, fault)
            return
        chosen, failed = self._choose(step, logits)
        with self._changed:
            for sequence, cause in failed.items():
                self._end_badly(sequence, cause)
            counts = {sequence: len(sequence.tokens) for sequence in chosen}
            tokens = {sequence: [choice.token for choice in taken] for sequence, taken in chosen.items()}
            self._scheduler.commit(step, tokens)
            for sequence, choices in chosen.items():
                try:
                    self._tell(sequence, choices[: len(sequence.tokens) - counts[sequence]])
                except Exception as broken:
                    self._end_badly(sequence, broken)

    def _propose(self) -> None:
        """Let guesses be made at what those that write will write next."""
        if self._draft is None:
            with self._changed:
                jobs = [job for sequence, (_, _, job) in self._jobs.items() if sequence.num_pending == 1]
            # A long text takes a while to index, in which others may ask.
            for job in jobs:
                if isinstance(job, Writing):
                    job.propose()
            return
        with self._changed:
            asked, copies = self._scheduler.look_ahead(self._draft.num_tokens)
        self._copy(copies)
        self._draft.propose(asked)

    def _copy(self, copies: Tokens[Copy]) -> None:
        self._runner.copy(copies)
        if self._draft is not None:
            self._draft.copy(copies)

    def _note_starts(self, step: Step) -> None:
        now = time.perf_counter()
        for row in step.rows:
            request = self._jobs[row.sequence][0]
            if request.started is None:
                request.started, request.num_cached = now, row.start

    def _choose(
        self, step: Step, logits: np.ndarray
    ) -> tuple[dict[Sequence, list[Choice]], dict[Sequence, Exception]]:
        """Return what each sample writes, and those for which nothing can be chosen."""
        chosen: dict[Sequence, list[Choice]] = {}
        failed: dict[Sequence, Exception] = {}
        end = 0
        for row in step.rows:
            part = logits[end : end + row.num_logits]
            end += row.num_logits
            for sample in self._readers(row):
                job = self._jobs[sample][2]
                try:
                    if isinstance(job, Scoring):
                        job.take(row.positions, part)
                        chosen[sample] = []
                    else:
                        draft = row.tokens[len(row.tokens) - row.num_drafts :]
                        chosen[sample] = job.choose(part[-1 - len(draft) :], draft)
                except Exception as fault:
                    failed[sample] = fault
        return chosen, failed

    def _readers(self, row: Row) -> Tokens[Sequence]:
        if row.samples or not isinstance(self._jobs[row.sequence][2], Scoring):
            return row.samples
        return (row.sequence,)

    def _tell(self, sequence: Sequence, choices: Tokens[Choice]) -> None:
        if sequence not in self._jobs:  # it has failed
            return
        request, _, job = self._jobs[sequence]
        if isinstance(job, Writing):
            piece = job.take(choices, sequence.finish_reason)
            request.first_token = request.first_token or time.perf_counter()
            request.stream.put(piece)
            if job.stopped:
                self._scheduler.finish(sequence, "stop")
        if sequence.finish_reason is not None:
            self._finish(sequence, "stop" if _stopped(job) else sequence.finish_reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a text that has ended out, and tell what became of its request when all have."""
        request, index, job = self._jobs[sequence]
        if isinstance(job, Writing):
            if reason == "cancelled":
                request.stream.put(job.take((), reason))
            request.outputs[index] = job.output(reason)
        self._end(sequence, None)

    def _end(self, sequence: Sequence, fault: Exception | None) -> None:
        request = self._jobs.pop(sequence)[0]
        request.num_open -= 1
        if fault is not None:
            request.stream.put(fault)
            self._cancel(request.stream)
        elif not request.num_open:
            request.stream.put(request.completion(time.perf_counter()))

    def _give_up(self, step: Step, fault: Exception) -> None:
        """Fail the sequences of a step that cannot be run; the others have steps of their own."""
        with self._changed:
            self._scheduler.rollback()
            for sequence in [each for row in step.rows for each in (row.sequence, *row.sequence.forks)]:
                self._end_badly(sequence, fault)

    def _fail_all(self, fault: Exception) -> None:
        with self._changed:
            self._scheduler.rollback()
            for sequence in list(self._jobs):
                self._end_badly(sequence, fault)

    def _end_badly(self, sequence: Sequence, fault: Exception) -> None:
        self._scheduler.finish(sequence, "failed")
        known = fault if isinstance(fault, EduceError) else EngineError(f"a step failed: {fault!r}")
        self._end(sequence, known)


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


# A thread that compiles while the process ends would meet a compiler that has ended.
@atexit.register
def _close_all() -> None:
    for engine in tuple(_ENGINES):
        engine.close()


def _stopped(job: Writing | Scoring) -> bool:
    return isinstance(job, Writing) and job.stopped
