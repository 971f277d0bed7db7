"""File types: the head and tail of a file to the bytes that Magika sees, its scores to a type.

The method is that of Fratantonio et al., Magika: AI-Powered Content-Type Detection (2024), in the form of
the models with `begin` and `end` blocks and its high-confidence answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from educe.errors import InputError
from educe.files import open_regular
from educe.model import Model
from educe.model.card import FileInput
from educe.tasks.answer import Prediction
from educe.tasks.base import Feeds, Findings, Item, Outputs, Task, TaskOptions
from educe.tasks.scores import class_scores, ranked_rows

EMPTY, TEXT, UNKNOWN = "empty", "txt", "unknown"
"""Answers that no model is needed for, or that it is not sure enough to better."""


@dataclass(frozen=True)
class Ends:
    """The first and the last bytes of a file; both are all of it if it is small."""

    head: bytes
    tail: bytes


class FileType(Task[Ends]):
    """Says what type a file is of, from its first and last bytes, whatever its name and size.

    An empty file and one of few bytes that are not white space are settled by rule, with the score 1; they
    go through the model all the same, so that every item has its row of scores.
    """

    name = "file-type"
    default_batch: ClassVar[int] = 32

    def __init__(self, model: Model, options: TaskOptions) -> None:
        """Settle input and output.

        Raises:
            CardError: the card has no ``[file]``, or does not fit the model.
        """
        super().__init__(model, options)
        if self.card.file is None:
            raise self.card_error("the card has no section [file]", "say how a file becomes the input")
        self.file: FileInput = self.card.file
        self._input_name, value = self.tensor_input(self.file.input)
        self._dtype = value.numpy_dtype
        if self._dtype.kind in "iu" and np.iinfo(self._dtype).max < max(255, self.file.padding):
            raise self.card_error(
                f"the input {self._input_name!r} is {value}, which cannot hold a byte or the padding "
                f"{self.file.padding}",
                "correct [file] padding",
            )
        self._output_name = self.tensor_output(self.card.scores.output)

    def open(self, source: Any) -> Iterator[Item[Ends]]:
        """Yield the one file in `source`: a path, of which only the ends are read, or a file's content."""
        if isinstance(source, bytes):
            yield Item(Ends(source[: self.file.block], source[-self.file.block :]))
        elif isinstance(source, (str, Path)):
            yield Item(_read_ends(Path(source), self.file.block))
        else:
            raise InputError(
                f"expected a file, found {type(source).__name__}",
                remedy="give a path, or the content as bytes",
            )

    def preprocess(self, items: Sequence[Item[Ends]]) -> Feeds:
        """Return the bytes of each file [files, begin + end], padded between the two."""
        begin, end = self.file.begin, self.file.end
        rows = np.full((len(items), begin + end), self.file.padding, self._dtype)
        for row, item in zip(rows, items, strict=True):
            head = np.frombuffer(item.content.head.lstrip()[:begin], np.uint8)
            tail = np.frombuffer(item.content.tail.rstrip()[-end:], np.uint8)
            row[: len(head)] = head
            row[begin + end - len(tail) :] = tail
        return {self._input_name: rows}

    def postprocess(self, outputs: Outputs, items: Sequence[Item[Ends]]) -> list[Findings]:
        """Return the type of each file; with `top` above 1 the model's next classes after it."""
        scores = class_scores(outputs[self._output_name], self.card.scores.activation)
        if len(scores) != len(items):
            raise self.card_error(
                f"the output {self._output_name!r} has {len(scores)} rows for {len(items)} files",
                "name another",
            )
        top = 1 if self.options.top is None else self.options.top
        classes = ranked_rows(self.card, scores, max(1, top), None)
        return [self._finding(item.content, best, top) for item, best in zip(items, classes, strict=True)]

    def _finding(self, ends: Ends, classes: list[Prediction], top: int) -> Findings:
        rule = self._by_rule(ends)
        if rule is not None:
            return Findings([Prediction(label=rule, score=1.0)][:top])
        lowest = self.options.threshold
        others = [other for other in classes[1:] if lowest is None or (other.score or 0.0) >= lowest]
        return Findings([self._sure(classes[0]), *others][:top])

    def _by_rule(self, ends: Ends) -> str | None:
        """Return the type of a file with too few bytes for the model; None if it has enough."""
        if not ends.head:
            return EMPTY
        if len(ends.head.lstrip()) >= self.file.min_bytes:
            return None
        try:
            ends.head.decode("utf-8")
        except UnicodeDecodeError:
            return UNKNOWN
        return TEXT

    def _sure(self, best: Prediction) -> Prediction:
        """Return `best` by its other name if it has one, or as text or unknown if its score is too low."""
        found, score = best.label or UNKNOWN, best.score or 0.0
        label = self.file.rename.get(found, found)
        lowest = self.options.threshold
        if lowest is None:
            lowest = self.file.thresholds.get(found, self.file.score_threshold)
        if score >= lowest:
            return Prediction(label=label, index=best.index, score=score)
        generic = TEXT if label == TEXT or label in self.file.text_labels else UNKNOWN
        return Prediction(label=generic, index=best.index if generic == found else None, score=score)


def _read_ends(path: Path, block: int) -> Ends:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(block)
        file.seek(max(0, size - block))
        return Ends(head, file.read(block))
