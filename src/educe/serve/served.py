"""The models of a server, each kind behind what the server needs of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, TypeAlias, TypeGuard, cast

import numpy as np

from educe.errors import EduceError, LimitError, each_or_error
from educe.generate.embedding import Embedder
from educe.generate.generator import Generator
from educe.generate.transcription import Transcriber
from educe.generate.translation import Translator
from educe.model import Signature, TensorType, ValueType
from educe.serve.rows import joined, rows_are_independent
from educe.tasks.base import TaskOptions
from educe.tasks.predictor import Opened, Predictor, Result

Feeds: TypeAlias = "dict[str, np.ndarray]"
LanguageModel: TypeAlias = "Generator | Embedder | Translator | Transcriber"

_FEW_BYTES = 16 * 2**10


@dataclass(frozen=True)
class Asked:
    """A request for answers about the items of a raw input.

    Attributes:
        options: What is asked of the answers.
        items: The items, or errors in their places.
        priority: Lower numbers go first.
    """

    options: TaskOptions
    items: Sequence[Opened | Result]
    priority: int = 0


class PredictorModel:
    """A model of one run: tensors to tensors, or raw input to answers.

    Args:
        predictor: The model, bound to its task and an engine.

    Attributes:
        kind: What it is, in the words of the server's interfaces.
        signature: Its inputs and outputs.
        shares_runs: Whether several requests' tensors can run together.
        most_items: Most raw inputs that can run together; None if any number.
    """

    kind: ClassVar[str] = "predictor"

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.signature: Signature = predictor.executable.signature
        self._prepare()
        self.shares_runs = rows_are_independent(predictor.executable)
        self.most_items = predictor.most_items
        first = 1 if self.shares_runs else 0
        self._rows_tell = all(_is_fixed(kind, first) for kind in self.signature.inputs.values())

    @property
    def task(self) -> str:
        """Its task's name."""
        return self.predictor.task.name

    @property
    def sha256(self) -> str:
        """The model's hash."""
        return self.predictor.task.model.sha256

    @property
    def memory_bytes(self) -> int:
        """The memory of its weights, which most of its memory is."""
        return self.predictor.task.model.size_bytes

    def group(self, feeds: Mapping[str, np.ndarray]) -> tuple[Hashable, int]:
        """Return what requests that can run with `feeds` have in common, and its rows, at least 1."""
        inputs = self.signature.inputs
        if not self.shares_runs or feeds.keys() != inputs.keys():
            return object(), 1
        rows, kinds = None, []
        for name, kind in inputs.items():
            array = feeds[name]
            if not array.size or not array.ndim or rows not in (None, len(array)) or _is_strange(array, kind):
                return object(), 1  # a run says what is wrong; the rows it claims may not be there
            rows = len(array)
            kinds.append((array.dtype, array.shape[1:]))
        return tuple(kinds), rows or 1

    def is_small(self, content: Any) -> bool:
        """Say whether a request has few numbers, and no text: what it takes is known by its rows."""
        return (
            self._rows_tell
            and isinstance(content, dict)
            and all(array.dtype.kind != "O" and array.nbytes <= _FEW_BYTES for array in content.values())
        )

    def open(self, source: Any, most: int) -> list[Opened | Result]:
        """Return the items of a raw input; its last is an error's result if it cannot be read to its end.

        Raises:
            LimitError: there are more than `most`.
        """
        items = list(islice(self.predictor.open(source), most + 1))
        if len(items) > most:
            raise LimitError(f"the input holds more than {most:,} items", remedy="send it in parts")
        return items

    def options(self, given: Mapping[str, Any]) -> TaskOptions:
        """Return the task's options with those in place that are `given`.

        Raises:
            OptionError: one does not take its value.
        """
        return replace(self.predictor.task.options, **given)

    def asked_group(self, asked: Asked) -> Hashable:
        """Return what requests have in common that can run together."""
        return asked.options if self.most_items is None else object()

    def run(self, group: Hashable, contents: Sequence[Any]) -> Sequence[Any]:
        """Return the results of some requests of one group, an error in the place of one that has none."""
        if isinstance(contents[0], dict):
            return each_or_error(self._infer, contents, EduceError)
        return self._answer(contents)

    def close(self) -> None:
        """Do nothing: its memory is free when the last reference is gone."""

    def _prepare(self) -> None:
        """Have the engine make what all runs need, if the inputs are numbers of one shape."""
        feeds = {}
        for name, kind in self.signature.inputs.items():
            if not _is_fixed(kind) or kind.dtype == "str":
                return
            feeds[name] = np.zeros(cast("tuple[int, ...]", kind.shape), kind.numpy_dtype)
        with suppress(EduceError):  # which a run raises where it is asked for
            self.predictor.executable.prepare(feeds)

    def _infer(self, requests: Sequence[Feeds]) -> Sequence[Any]:
        executable = self.predictor.executable
        if len(requests) == 1:
            return [executable.run(requests[0])]
        outputs = executable.run(joined(requests))
        ends = np.cumsum([len(next(iter(feeds.values()))) for feeds in requests])[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [{name: part[index] for name, part in parts.items()} for index in range(len(requests))]

    def _answer(self, requests: Sequence[Asked]) -> Sequence[list[Result] | EduceError]:
        """Return the results of each request's items, or the first one's error if none was answered."""
        items = [item for asked in requests for item in asked.items if isinstance(item, Opened)]
        answered = self._in_parts(items, requests[0].options)
        found = [
            [next(answered) if isinstance(item, Opened) else item for item in asked.items]
            for asked in requests
        ]
        return [_fault_of_all(results) or results for results in found]

    def _in_parts(self, items: Sequence[Opened], options: TaskOptions) -> Iterator[Result]:
        predictor = self.predictor.with_options(options)
        size = self.most_items or max(len(items), 1)
        for first in range(0, len(items), size):
            yield from predictor.answer(items[first : first + size])


def _is_fixed(kind: ValueType, first: int = 0) -> TypeGuard[TensorType]:
    """Say whether all inputs of a kind have one shape, from some axis on."""
    shape = kind.shape if isinstance(kind, TensorType) else None
    return shape is not None and all(isinstance(dim, int) for dim in shape[first:])


def _is_strange(array: np.ndarray, kind: ValueType) -> bool:
    return not isinstance(kind, TensorType) or kind.mismatch(array) is not None


def _fault_of_all(results: Sequence[Result]) -> EduceError | None:
    """Return the first result's error if none is an answer."""
    return None if any(result.error is None for result in results) else results[0].error


@dataclass(frozen=True)
class LanguageModelServed:
    """A language model, which plans its own runs.

    Attributes:
        kind: ``generator``, ``embedder``, ``translator`` or ``transcriber``.
        model: The model.
    """

    kind: str
    model: LanguageModel

    @property
    def task(self) -> str:
        """What it is for."""
        return _TASKS[self.kind]

    @property
    def sha256(self) -> str:
        """The hash of the model's files."""
        return self.model.checkpoint.digest.hexdigest()

    @property
    def memory_bytes(self) -> int:
        """The memory of its weights."""
        return self.model.checkpoint.size_bytes

    def close(self) -> None:
        """Return its memory."""
        if isinstance(self.model, Generator):
            self.model.close()


_TASKS = {
    "generator": "text-generation",
    "embedder": "feature-extraction",
    "translator": "translation",
    "transcriber": "automatic-speech-recognition",
}

Served: TypeAlias = "PredictorModel | LanguageModelServed"
