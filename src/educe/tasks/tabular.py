"""Tables: named columns to the model's matrix or inputs, its outputs to classes or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
import numpy as np

from educe.errors import InputError
from educe.media.columns import Column
from educe.media.table import TableSource, missing_column, read_table
from educe.model import MapType, Model, SequenceType, TensorType
from educe.model.card import Card, TableInput
from educe.tasks.answer import Prediction
from educe.tasks.base import Feeds, Findings, Item, Outputs, Task, TaskOptions
from educe.tasks.scores import both_classes, check_finite, class_scores, ranked_rows

Row: TypeAlias = Sequence[Any]
"""The cells of one row in the order of the card's columns, as text or as numbers."""


class Tabular(Task[Row]):
    """What classification and regression of tables share: the rows and the inputs.

    Each row is an item; the item's memory holds the ``line`` of the file where it begins.
    """

    default_batch: ClassVar[int] = 4096
    suffixes = frozenset({".csv", ".tsv"})
    takes_stream = True

    def __init__(self, model: Model, options: TaskOptions) -> None:
        super().__init__(model, options)
        if model.card.table is None:
            raise self.card_error("the card has no [table] section", "add one that lists the columns")
        self.table: TableInput = model.card.table
        self._columns = [
            Column(name, self.table.categories.get(name), self.table.missing) for name in self.table.columns
        ]
        self._inputs = self._column_inputs()

    def open(self, source: Any) -> Iterator[Item[Row]]:
        """Yield the rows of `source`.

        Args:
            source: The path of a CSV file, its content as bytes, or an open stream; or in Python one
                row as a dict of column to value, an iterable of such dicts, or an array [rows, columns]
                of the card's columns.
        """
        if isinstance(source, (str, Path, bytes)) or hasattr(source, "readline"):
            return self._file_rows(Path(source) if isinstance(source, str) else source)
        if isinstance(source, np.ndarray):
            return self._array_rows(source)
        if isinstance(source, Mapping):
            return self._mapped_rows([source])
        if isinstance(source, Iterable):
            return self._mapped_rows(source)
        raise _no_table(source)

    def preprocess(self, items: Sequence[Item[Row]]) -> Feeds:
        """Return one matrix [rows, columns], or one array [rows, 1] for each column.

        Raises:
            InputError: a cell cannot be used; the error names line or row, and column.
        """
        feeds: Feeds = {}
        cells = list(zip(*(item.content for item in items), strict=True))
        for name, (value, positions) in self._inputs.items():
            dtype = value.numpy_dtype
            matrix = np.empty((len(items), len(positions)), dtype)
            for place, position in enumerate(positions):
                column = self._columns[position]
                matrix[:, place] = column.array(cells[position], dtype, lambda row: _place(items[row]))
            feeds[name] = matrix[:, 0] if value.shape is not None and len(value.shape) == 1 else matrix
        return feeds

    def _column_inputs(self) -> dict[str, tuple[TensorType, list[int]]]:
        """Return for each input that takes columns its type and the positions of its columns."""
        columns = self.table.columns
        settled = {*self.card.state, *self.card.constants}
        free = [name for name in self.model.signature.inputs if name not in settled]
        if self.table.input is None and len(free) > 1:
            strange = set(free).symmetric_difference(columns)
            if strange:
                raise self.card_error(
                    f"the card's columns are not the model's inputs: {min(strange)!r} is only one of them",
                    f"the inputs are {', '.join(free)}",
                )
            return {name: (self.tensor_input(name)[1], [columns.index(name)]) for name in free}
        name, value = self.tensor_input(self.table.input)
        width = value.shape[1] if value.shape is not None and len(value.shape) == 2 else None
        if isinstance(width, int) and width != len(columns):
            raise self.card_error(
                f"the card has {len(columns)} columns, the input {name!r} takes {width}",
                "list the columns that the model was trained on",
            )
        return {name: (value, list(range(len(columns))))}

    def _require_rows(self, found: int, items: Sequence[Item[Row]]) -> None:
        if found != len(items):
            raise self.card_error(
                f"the output has {found} rows for {len(items)} rows of input",
                'name another with output = "..."',
            )

    def _file_rows(self, source: TableSource) -> Iterator[Item[Row]]:
        rows = read_table(source, self.table.columns, self.options.limits)
        for row, (line, cells) in enumerate(rows):
            yield Item(cells, row=row, memory={"line": line})

    def _array_rows(self, array: np.ndarray) -> Iterator[Item[Row]]:
        if array.ndim != 2 or array.shape[1] != len(self.table.columns):
            raise InputError(
                f"expected an array [rows, {len(self.table.columns)}], found {list(array.shape)}",
                remedy=f"its columns are {', '.join(self.table.columns[:20])}",
            )
        for row, values in enumerate(array):
            yield Item(values.tolist(), row=row)

    def _mapped_rows(self, rows: Iterable[Any]) -> Iterator[Item[Row]]:
        for row, values in enumerate(rows):
            if not isinstance(values, Mapping):
                raise _no_table(values)
            for name in self.table.columns:
                if name not in values:
                    raise missing_column(name, [str(key) for key in values], self.table.columns)
            yield Item([values[name] for name in self.table.columns], row=row)


class TabularClassification(Tabular):
    """Rows to classes."""

    name = "tabular-classification"

    def postprocess(self, outputs: Outputs, items: Sequence[Item[Row]]) -> list[Findings]:
        """Return the classes of each row, best first.

        The scores are the output that the card names; else the first that is no list of labels, as
        scikit-learn's classifiers give their labels first. They may be an array, or a list of one map from
        label to score for each row. One score a row, of two classes, is that of the second.
        """
        name = self.graph_output(self.card.scores.output or self._first_scores())
        card, found = self.card, outputs[name]
        if isinstance(found, list) or found.dtype.kind == "O":
            if not all(isinstance(row, dict) for row in found):
                raise self.card_error(f"the output {name!r} is a list that holds no scores", "name another")
            card, found = self._unmapped(list(found))
        array = np.atleast_1d(found)
        self._require_rows(len(array), items)
        scores = both_classes(class_scores(array, card.scores.activation), card)
        return [
            Findings(classes)
            for classes in ranked_rows(card, scores, self.top_classes, self.options.threshold)
        ]

    def _unmapped(self, rows: list[dict[Any, float]]) -> tuple[Card, np.ndarray]:
        """Return scores [rows, classes] from a map for each row, and a card with the labels."""
        keys = list(rows[0]) if rows else []
        scores = np.array([[row[key] for key in keys] for row in rows], np.float32)
        if not self.card.labels:
            return msgspec.structs.replace(self.card, labels=tuple(str(key) for key in keys)), scores
        if len(self.card.labels) != len(keys):
            raise self.card_error(
                f"the card has {len(self.card.labels)} labels, the model {len(keys)}: {keys}",
                "leave the labels out: the model names its classes itself",
            )
        return self.card, scores

    def _first_scores(self) -> str | None:
        for name, value in self.model.signature.outputs.items():
            if isinstance(value, TensorType) and value.dtype.startswith(("f", "bf")):
                return name
            if isinstance(value, SequenceType) and isinstance(value.element, MapType):
                return name
        return None


class TabularRegression(Tabular):
    """Rows to numbers."""

    name = "tabular-regression"

    def postprocess(self, outputs: Outputs, items: Sequence[Item[Row]]) -> list[Findings]:
        """Return the numbers of each row, labelled by the card, or else by the output."""
        name = self.tensor_output(self.card.scores.output)
        array = np.atleast_1d(outputs[name])
        self._require_rows(len(array), items)
        values = array.astype(np.float64).reshape(len(items), -1)
        check_finite(values, "values")
        labels = list(self.card.labels)
        if len(labels) != values.shape[1]:
            labels = [name] if values.shape[1] == 1 else [f"{name}[{k}]" for k in range(values.shape[1])]
        return [
            Findings([Prediction(label=label, value=value) for label, value in zip(labels, row, strict=True)])
            for row in values.tolist()
        ]


def _place(item: Item[Row]) -> str:
    return f"line {item.memory['line']}" if "line" in item.memory else f"row {item.row}"


def _no_table(source: Any) -> InputError:
    return InputError(
        f"expected a table, found {type(source).__name__}",
        remedy="give a CSV file, a dict of column to value, a list of dicts, or a NumPy array",
    )
