"""`Predictor`: a task bound to an executable; raw input in, answers out."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from educe.engines.base import Executable
from educe.errors import EduceError, InputError, OptionError, each_or_error
from educe.model import TensorType
from educe.tasks.answer import Answer, CardId, ModelId, StageSeconds
from educe.tasks.base import Feeds, Findings, Item, Outputs, Task, TaskOptions


@dataclass(frozen=True)
class Result:
    """What became of one item: an answer, or the error that kept it from one.

    Attributes:
        input: The input's name.
        item: The item, if the input could be opened.
    """

    input: str
    item: Item[Any] | None
    answer: Answer | None
    error: EduceError | None


@dataclass(frozen=True)
class Named:
    """A source with the name that its answers carry, for sources that have none, such as standard input."""

    name: str
    source: Any


@dataclass(frozen=True)
class Opened:
    """An item that was read, and waits for its answer.

    Attributes:
        name: The input's name.
        item: The item.
        seconds: How long reading it took.
    """

    name: str
    item: Item[Any]
    seconds: float


class Predictor:
    """Answers about raw input. It is immutable, and may be used by several threads at once.

    Args:
        task: Turns input into arrays, and arrays into answers.
        executable: The compiled model.
        batch: Items run at once; the task's default where the model lets the batch vary, else what the
            model fixes.

    Raises:
        OptionError: the model fixes another batch.
    """

    def __init__(self, task: Task[Any], executable: Executable, batch: int | None = None) -> None:
        self.task = task
        self.executable = executable
        self._constants = task.constants()
        self._fixed_batch = self._find_fixed_batch()
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise OptionError(f"batch={batch!r} is not a positive integer", remedy="use 1 or more")
        if batch is not None and self._fixed_batch not in (None, batch):
            raise OptionError(
                f"batch={batch}, but the model takes exactly {self._fixed_batch} at once",
                remedy="leave the batch out, or export the model with a dynamic batch",
            )
        if batch is not None and task.largest_batch is not None and batch > task.largest_batch:
            raise OptionError(
                f"batch={batch}, but one answer would depend on another beyond {task.largest_batch}",
                remedy="leave the batch out; docs/cards.md says how a card lets texts run together",
            )
        self.batch = batch or self._fixed_batch or task.largest_batch or task.default_batch
        origin = task.model.card_origin
        self._model_id = ModelId(task.model.name, task.model.sha256)
        self._card_id = CardId(origin.source, origin.guessed)

    def with_options(self, options: TaskOptions) -> Predictor:
        """Return a predictor of the same executable whose answers have other options."""
        changed = copy.copy(self)
        changed.task = self.task.with_options(options)
        return changed

    @property
    def most_items(self) -> int | None:
        """Most items that may be run at once without one changing another's answer; None if any number."""
        return self.task.largest_batch if self.task.feeds_are_rows and not self.task.stepwise else 1

    def __call__(self, source: Any) -> Answer:
        """Return the answer about one input.

        Args:
            source: A path, bytes, or an object that the task takes.

        Raises:
            InputError: the input cannot be read; or it holds several items, such as a video or a table,
                whose answers `stream` yields.
        """
        results = self.results([source])
        first = next(results, None)
        if first is None:
            raise InputError("holds nothing to answer about", path=self._name(source))
        if next(results, None) is not None:
            raise InputError(
                "holds several items",
                path=self._name(source),
                remedy="iterate over predictor.stream(...), which yields an answer for each",
            )
        return _answer_or_raise(first)

    def stream(self, source: Any) -> Iterator[Answer]:
        """Yield an answer for each item in one input: the frames of a video, the rows of a table.

        Raises:
            EduceError: an item cannot be answered.
        """
        return (_answer_or_raise(result) for result in self.results([source]))

    def map(self, sources: Iterable[Any]) -> Iterator[Answer]:
        """Yield the answers about many inputs, in their order, run in batches.

        Raises:
            EduceError: an item cannot be answered.
        """
        return (_answer_or_raise(result) for result in self.results(sources))

    def results(self, sources: Iterable[Any]) -> Iterator[Result]:
        """Yield what became of every item in every input, in order; one that fails stops no other."""
        waiting: list[Opened] = []
        for source in sources:
            for opened in self.open(source):
                if isinstance(opened, Result):
                    yield from self.answer(waiting)
                    waiting.clear()
                    yield opened
                    continue
                waiting.append(opened)
                if len(waiting) == self.batch:
                    yield from self.answer(waiting)
                    waiting.clear()
        yield from self.answer(waiting)

    def open(self, source: Any) -> Iterator[Opened | Result]:
        """Yield the items in one input, and the error that ends them, if one does, as a result."""
        name = self._name(source)
        content = source.source if isinstance(source, Named) else source
        start = time.perf_counter()
        try:
            for item in self.task.open(content):
                yield Opened(name, item, time.perf_counter() - start)
                start = time.perf_counter()
        except EduceError as error:
            yield Result(name, None, None, _located(error, name))
        except OSError as fault:
            unread = InputError(
                f"cannot be read: {fault.strerror or fault}", path=name, remedy="check the disk"
            )
            yield Result(name, None, None, unread)

    def answer(self, batch: Sequence[Opened]) -> Iterator[Result]:
        """Yield what becomes of some items, which are run at once, in their order."""
        if not batch:
            return
        for opened, found in zip(batch, each_or_error(self._answers, batch, EduceError), strict=True):
            if isinstance(found, EduceError):
                yield Result(opened.name, opened.item, None, _located(found, opened.name))
            else:
                yield Result(opened.name, opened.item, found, None)

    def _answers(self, batch: Sequence[Opened]) -> list[Answer]:
        items = [opened.item for opened in batch]
        start = time.perf_counter()
        feeds = self.task.preprocess(items)
        ready, before = time.perf_counter(), self.executable.compile_seconds()
        outputs = self._run_steps(feeds) if self.task.stepwise else self._run(feeds)
        done, compiling = time.perf_counter(), self.executable.compile_seconds() - before
        findings = self.task.postprocess(outputs, items)
        end = time.perf_counter()
        share = 1 / len(batch)
        return [
            self._make_answer(
                opened,
                found,
                StageSeconds(
                    opened.seconds + (ready - start) * share,
                    (done - ready - compiling) * share,
                    (end - done) * share,
                    *([compiling * share] if compiling else []),
                ),
            )
            for opened, found in zip(batch, findings, strict=True)
        ]

    def _run(self, feeds: Feeds) -> Outputs:
        """Run the model over all rows of `feeds`, as many at once as the batch allows."""
        size, fixed = self.batch, self._fixed_batch is not None
        rows = len(next(iter(feeds.values()))) if self.task.feeds_are_rows else size
        if rows == size or (rows < size and not fixed):
            return self.executable.run({**feeds, **self._constants})
        parts = []
        for first in range(0, rows, size):
            part = {name: array[first : first + size] for name, array in feeds.items()}
            count = len(next(iter(part.values())))
            if fixed:
                part = {name: _padded(array, size) for name, array in part.items()}
            outputs = self.executable.run({**part, **self._constants})
            parts.append({name: array[:count] for name, array in outputs.items() if _has_rows(array, count)})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_steps(self, feeds: Feeds) -> Outputs:
        steps = len(next(iter(feeds.values())))
        state = self.executable.new_state()
        outputs = []
        for step in range(steps):
            inputs = {name: array[step] for name, array in feeds.items()}
            outputs.append(self.executable.run({**inputs, **self._constants}, state))
        return {name: np.stack([each[name] for each in outputs]) for name in outputs[0]}

    def _make_answer(self, opened: Opened, found: Findings, seconds: StageSeconds) -> Answer:
        item = opened.item
        return Answer(
            input=opened.name,
            task=self.task.name,
            predictions=msgspec.UNSET if found.outputs is not None else found.predictions,
            outputs=found.outputs,
            model=self._model_id,
            engine=self.executable.engine,
            card=self._card_id,
            seconds=seconds,
            frame=item.frame,
            row=item.row,
            time_seconds=item.time_seconds,
        )

    def _find_fixed_batch(self) -> int | None:
        """Return the size that the model fixes for the first axis of its content inputs, if it does."""
        card = self.task.card
        if self.task.stepwise or not self.task.feeds_are_rows:
            return None
        sizes = {
            value.shape[0]
            for name, value in self.executable.signature.inputs.items()
            if name not in card.state and name not in card.constants
            if isinstance(value, TensorType) and value.shape
        }
        size = next(iter(sizes)) if len(sizes) == 1 else None
        return size if isinstance(size, int) else None

    def _name(self, source: Any) -> str:
        if isinstance(source, Named):
            return source.name
        if isinstance(source, os.PathLike) or (isinstance(source, str) and not self.task.takes_text):
            return os.fspath(source)
        return f"<{type(source).__name__}>"

    def __repr__(self) -> str:
        return f"<Predictor {self.task.name} {self.task.model.name} on {self.executable.engine}>"


def _answer_or_raise(result: Result) -> Answer:
    if result.error is not None:
        raise result.error
    assert result.answer is not None
    return result.answer


def _located(error: EduceError, name: str) -> EduceError:
    return error if name.startswith("<") else error.located(name)


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and len(value) >= count


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
