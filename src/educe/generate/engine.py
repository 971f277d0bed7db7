"""`Engine`: the thread that runs a model's steps while there is work: plan, run, choose, commit, tell."""

from __future__ import annotations

import atexit
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from educe.errors import EduceError, EngineError, OptionError
from educe.generate.base import StepRunner
from educe.generate.blocks import Copy
from educe.generate.draft import PromptIndex, PromptLookup
from educe.generate.draft_model import DraftModel
from educe.generate.order import Order
from educe.generate.sampling import Choice
from educe.generate.scheduler import Scheduler
from educe.generate.sequence import FinishReason, Sequence
from educe.generate.statistics import Statistics
from educe.generate.step import Row, Step
from educe.generate.stream import Completion, Inbox, Output, Seconds, Stream
from educe.generate.writing import Scoring, Writing
from educe.machine import renew_when_forked
from educe.pages import trim

# A thread without work ends after this long, so that a generator that nobody closes costs nothing.
_IDLE_SECONDS = 5.0
_PAUSE_SECONDS = 0.25


@dataclass(eq=False)
class _Request:
    """What one call has asked for, and how far it is."""

    inbox: Inbox
    num_prompt: int
    submitted: float
    open: list[Sequence]
    outputs: dict[int, Output] = field(default_factory=dict)
    num_cached: int | None = None
    started: float | None = None
    first_token: float | None = None
    is_cancelled: bool = False

    def completion(self, now: float) -> Completion:
        moments = (self.started or now, self.first_token or now, now)
        seconds = Seconds(*(moment - self.submitted for moment in moments))
        ordered = tuple(self.outputs[index] for index in sorted(self.outputs))
        return Completion(ordered, self.num_prompt, self.num_cached or 0, seconds)


class Engine:
    """Many texts at once, each as if it were alone.

    Its methods may be called from any thread. The thread that runs the steps makes programs
    before there are any, and starts again with a request. It ends with the engine, which its streams hold.

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
        self._idle_since = 0.0
        self._step_began: float | None = None
        # Whether the last turn made a program, and whether none is left to be made.
        self._is_preparing = self._is_prepared = False
        self._jobs: dict[Sequence, tuple[_Request, Writing | Scoring]] = {}
        # What has been done, by the fields of `Statistics`.
        self._totals: Counter[str] = Counter()
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
        # Here, and not by the thread that others wait for.
        prompt = PromptIndex(order.sequence.tokens) if lookup else None
        with self._changed:
            samples = self._submit(order.sequence, len(order.states))
            request = _Request(Inbox(), order.sequence.num_prompt, time.perf_counter(), samples)
            try:
                for index, (sample, state) in enumerate(zip(samples, order.states, strict=True)):
                    proposer = PromptLookup(prompt) if prompt is not None else None
                    self._jobs[sample] = request, Writing(index, sample, state, order, proposer)
            except Exception as fault:
                self._fail(request, fault)
                raise
            return self._stream(request)

    def score(self, sequence: Sequence, count: int) -> tuple[Stream, Scoring]:
        """Queue a text to be read only; when the stream ends, the scoring has all its tokens' chances."""
        scoring = Scoring(sequence, count)
        with self._changed:
            samples = self._submit(sequence, 1)
            request = _Request(Inbox(), sequence.num_prompt, time.perf_counter(), samples)
            self._jobs[sequence] = request, scoring
            return self._stream(request), scoring

    def prepare(self) -> None:
        """Wait until no program is left to be made, which is done while there is no work.

        Raises:
            OptionError: the engine is closed.
        """
        with self._changed:
            self._check_open()
            self._start()
            self._changed.wait_for(lambda: self._is_prepared or self._closed)
            self._check_open()

    @property
    def max_sequences(self) -> int:
        """Most texts that are written at once."""
        return self._scheduler.max_sequences

    @property
    def running_seconds(self) -> float:
        """For how long the present step has lasted; 0 if there is none."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def statistics(self) -> Statistics:
        """Return what it does at this moment, and has done so far."""
        with self._changed:
            running, blocks = len(self._scheduler.running), self._scheduler.blocks
            return Statistics(
                num_running=running,
                num_waiting=len(self._jobs) - running,
                num_blocks=blocks.num_blocks,
                num_used_blocks=blocks.num_used,
                block_size=blocks.block_size,
                **self._totals,
            )

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
        self._thread = self._step_began = None
        self._scheduler.clear()
        self._totals = Counter()
        lost = {request for request, _ in self._jobs.values()}
        self._jobs = {}
        for request in lost:
            request.inbox.put(EngineError("the process was forked meanwhile", remedy="ask again"))

    def _stream(self, request: _Request) -> Stream:
        return Stream(request.inbox, partial(self._cancel, tuple(request.open)))

    def _check_open(self) -> None:
        if self._closed:
            raise OptionError("the generator is closed", remedy="make another")

    def _submit(self, sequence: Sequence, num_samples: int) -> list[Sequence]:
        self._check_open()
        for model in (self._runner, self._draft):
            if model is not None:
                sequence.share_less(model.salt(sequence.span))
        self._start()
        samples = self._scheduler.submit(sequence, num_samples)
        self._totals["num_requests"] += 1
        self._changed.notify_all()
        return samples

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._idle_since, self._is_preparing = time.monotonic(), False
            self._thread = threading.Thread(
                target=_work, args=(weakref.ref(self),), name="educe-generator", daemon=True
            )
            self._thread.start()

    def _cancel(self, samples: Tokens[Sequence]) -> None:
        """Cancel texts, without a lock: whoever drops a stream may hold any."""
        for sample in samples:
            self._scheduler.cancel(sample)

    def turn(self) -> bool:
        """Run a step, or make a program, or wait a moment for work; False where the thread is to end."""
        with self._changed:
            # Whoever asks again at once does not wait for a program that is in the making.
            if not (self._closed or self._scheduler.has_work or self._is_preparing):
                self._changed.wait(_PAUSE_SECONDS)
            works = self._scheduler.has_work
            if not works and (self._closed or time.monotonic() > self._idle_since + _IDLE_SECONDS):
                self._thread = None
                return False
        if works:
            self._run()
        else:
            self._is_preparing = self._prepare()
            self._note_prepared()
        if works or self._is_preparing:
            self._idle_since = time.monotonic()
        return True

    def _run(self) -> None:
        self._step_began = time.monotonic()
        try:
            self._step()
        except Exception as fault:
            self._fail_all(fault)
        finally:
            self._step_began = None

    def _note_prepared(self) -> None:
        with self._changed:
            self._is_prepared = not self._is_preparing
            self._changed.notify_all()

    def _prepare(self) -> bool:
        """Make a program if one is left to be made; a step that needs one that fails says why."""
        try:
            return self._runner.prepare() or (self._draft is not None and self._draft.prepare())
        except Exception:
            return False

    def _step(self) -> None:
        self._propose()
        with self._changed:
            step = self._scheduler.step()
            for sequence in step.cancelled:
                self._tell(sequence, ())
            self._note(step)
        if not step.rows:
            return
        try:
            self._copy(step.copies)
            logits = self._runner.run(step.rows)
        except Exception as fault:
            self._give_up(step, fault)
            return
        end = 0
        for row in step.rows:
            end += row.num_logits
            self._take(row, logits[end - row.num_logits : end])
        if self._draft is not None:
            self._draft.read(step.rows)

    def _propose(self) -> None:
        """Let guesses be made at what those that write will write next."""
        if self._draft is not None:
            self._ask(self._draft)
            return
        with self._changed:
            jobs = [job for sequence, (_, job) in self._jobs.items() if sequence.num_pending == 1]
        for job in jobs:
            if isinstance(job, Writing):
                job.propose()

    def _ask(self, draft: DraftModel) -> None:
        if draft.works:
            with self._changed:
                asked, copies = self._scheduler.look_ahead(draft.num_tokens)
            self._copy(copies)
            draft.propose(asked)

    def _copy(self, copies: Tokens[Copy]) -> None:
        self._runner.copy(copies)
        if self._draft is not None:
            self._draft.copy(copies)

    def _note(self, step: Step) -> None:
        """Note which requests begin with a step, and count."""
        now = time.perf_counter()
        for row in step.rows:
            request, _ = self._jobs[row.sequence]
            if request.started is None:
                request.started, request.num_cached = now, row.start
                self._totals["num_prompt_tokens"] += request.num_prompt
                self._totals["num_cached_tokens"] += row.start
        self._totals["num_steps"] += 1 if step.rows else 0
        self._totals["num_preemptions"] += len(step.preempted)

    def _take(self, row: Row, logits: np.ndarray) -> None:
        """Have a row's samples choose, and tell what they chose before those of the next row do.

        A fault costs their request its texts, and no other.
        """
        chosen: dict[Sequence, list[Choice]] = {}
        if row.sequence in self._jobs:  # it has not failed by another row
            request, _ = self._jobs[row.sequence]
            try:
                chosen = self._choose(row, logits)
            except Exception as fault:
                self._fail(request, fault)
        with self._changed:
            counts = {sample: len(sample.tokens) for sample in chosen}
            tokens = {sample: [choice.token for choice in taken] for sample, taken in chosen.items()}
            self._scheduler.commit(row, tokens)
            self._count(row, tokens)
            for sample, choices in chosen.items():
                self._tell(sample, choices[: len(sample.tokens) - counts[sample]])

    def _count(self, row: Row, tokens: Mapping[Sequence, Tokens[int]]) -> None:
        self._totals["num_tokens"] += sum(len(each) for each in tokens.values())
        self._totals["num_draft_tokens"] += row.num_drafts
        if row.num_drafts and row.sequence in tokens:
            self._totals["num_accepted_tokens"] += len(tokens[row.sequence]) - 1

    def _choose(self, row: Row, logits: np.ndarray) -> dict[Sequence, list[Choice]]:
        """Return what each sample of a row writes."""
        _, job = self._jobs[row.sequence]
        if isinstance(job, Scoring):
            job.take(row.positions, logits)
            return {row.sequence: []}
        draft = row.tokens[len(row.tokens) - row.num_drafts :]
        chosen: dict[Sequence, list[Choice]] = {}
        for sample in row.samples:
            _, job = self._jobs[sample]
            assert isinstance(job, Writing)
            chosen[sample] = job.choose(logits[-1 - len(draft) :], draft) if sample.max_tokens else []
        return chosen

    def _tell(self, sequence: Sequence, choices: Tokens[Choice]) -> None:
        """Hand on what a text has gained, and take it out if it has ended."""
        if sequence not in self._jobs:  # another of its request has failed
            return
        request, job = self._jobs[sequence]
        reason = sequence.finish_reason
        try:
            if isinstance(job, Writing):
                piece = job.take(choices, reason)
                if choices:
                    request.first_token = request.first_token or time.perf_counter()
                request.inbox.put(piece)
                if job.stopped:
                    self._scheduler.finish(sequence, "stop")
                    reason = "stop"
            if reason is not None:
                self._finish(sequence, reason)
        except Exception as fault:
            self._fail(request, fault)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take out a text that has ended, and tell what became of its request when all have."""
        request, job = self._jobs[sequence]
        if isinstance(job, Writing):
            request.outputs[job.index] = job.output(reason)
        del self._jobs[sequence]
        request.open.remove(sequence)
        request.is_cancelled |= reason == "cancelled"
        if not request.open:
            self._totals["num_cancelled" if request.is_cancelled else "num_completed"] += 1
            request.inbox.put(request.completion(time.perf_counter()))

    def _give_up(self, step: Step, fault: Exception) -> None:
        """Fail the requests of a step that cannot be run; the others have steps of their own."""
        with self._changed:
            self._scheduler.rollback()
            for request in {self._jobs[row.sequence][0] for row in step.rows}:
                self._fail(request, fault)

    def _fail_all(self, fault: Exception) -> None:
        with self._changed:
            self._scheduler.rollback()
            for request in {request for request, _ in self._jobs.values()}:
                self._fail(request, fault)

    def _fail(self, request: _Request, fault: Exception) -> None:
        """End all texts of a request, and tell why."""
        with self._changed:
            for sequence in request.open:
                self._scheduler.finish(sequence, "failed")
                self._jobs.pop(sequence, None)
            self._totals["num_failed"] += 1
        request.inbox.put(
            fault if isinstance(fault, EduceError) else EngineError(f"a step failed: {fault!r}")
        )


def _work(reference: weakref.ref[Engine]) -> None:
    """Run an engine, which is held for a turn at a time, so that it ends where nobody else holds it."""
    while (engine := reference()) is not None and engine.turn():
        del engine
    if engine is None:
        gc.collect()
        trim()


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


# A thread that compiles while the process ends would meet a compiler that has ended.
@atexit.register
def _close_all() -> None:
    for engine in tuple(_ENGINES):
        engine.close()
