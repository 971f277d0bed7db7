"""One column of a table to an array: its cells, as text or numbers, checked and converted together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from educe.errors import InputError, nearest

PlaceOf: TypeAlias = Callable[[int], str]
"""Where the cell at a position of the column stands, for people: ``line 7``."""

MAX_SHOWN = 20

_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Column:
    """A column and what its cells mean.

    An empty cell, a cell of spaces, None and NaN all mean a missing value. Digits take no underscores.

    Attributes:
        name: Its name in the header.
        words: For a column of words: the words in code order, each standing for its position; else None.
        missing: Whether a missing value is refused, or becomes NaN (in text: an empty string).
    """

    name: str
    words: tuple[str, ...] | None = None
    missing: Literal["error", "nan"] = "error"

    def array(self, cells: Sequence[Any], dtype: np.dtype[Any], place_of: PlaceOf) -> np.ndarray:
        """Return `cells` as an array of `dtype` [cells]; texts as an object array.

        Raises:
            InputError: a cell is missing, is none of the words, or no number that `dtype` holds.
        """
        if dtype.kind == "O":
            return self._texts(cells, place_of)
        if self.words is not None:
            cells = self._codes(cells, self.words, place_of)
        if dtype.kind == "b":
            return self._each(_truth, "neither true nor false", cells, dtype, place_of)
        if dtype.kind in "iu":
            return self._integers(cells, dtype, place_of)
        return self._floats(cells, dtype, place_of)

    def _texts(self, cells: Sequence[Any], place_of: PlaceOf) -> np.ndarray:
        self._refuse([self.missing == "error" and _is_missing(cell) for cell in cells], place_of)
        found = np.empty(len(cells), object)
        found[:] = ["" if _is_missing(cell) else str(cell) for cell in cells]
        return found

    def _codes(self, cells: Sequence[Any], words: tuple[str, ...], place_of: PlaceOf) -> list[Any]:
        codes: dict[str | None, int | None] = {word: code for code, word in enumerate(words)}
        codes[None] = None
        found = [None if _is_missing(cell) else str(cell) for cell in cells]
        for position, word in enumerate(found):
            if word not in codes:
                known = ", ".join(map(repr, words[:MAX_SHOWN])) + (", …" if len(words) > MAX_SHOWN else "")
                raise self._error(
                    f"{_shortened(word)} is none of the words {known}",
                    place_of(position),
                    nearest(str(word), words),
                )
        return [codes[word] for word in found]

    def _floats(self, cells: Sequence[Any], dtype: np.dtype[Any], place_of: PlaceOf) -> np.ndarray:
        try:
            if _has_underscore(cells):
                raise ValueError
            wide = np.fromiter(map(float, cells), np.float64, len(cells))
        except (TypeError, ValueError, OverflowError):
            wide = self._each(_number, "no number", cells, np.dtype(np.float64), place_of)
        if self.missing == "error":
            self._refuse(np.isnan(wide), place_of)
        with np.errstate(over="ignore"):
            found = wide.astype(dtype)
        self._refuse_overflow(np.isinf(found) & np.isfinite(wide), cells, dtype, place_of)
        return found

    def _integers(self, cells: Sequence[Any], dtype: np.dtype[Any], place_of: PlaceOf) -> np.ndarray:
        self._refuse([_is_missing(cell) for cell in cells], place_of)
        numbers = self._each(_integer, "no whole number", cells, np.dtype(object), place_of)
        bounds = np.iinfo(dtype)
        outside = np.array([not bounds.min <= number <= bounds.max for number in numbers], bool)
        self._refuse_overflow(outside, cells, dtype, place_of)
        return numbers.astype(dtype)

    def _each(
        self,
        convert: Callable[[Any], Any],
        failure: str,
        cells: Sequence[Any],
        dtype: np.dtype[Any],
        place_of: PlaceOf,
    ) -> np.ndarray:
        found = np.empty(len(cells), dtype)
        for position, cell in enumerate(cells):
            try:
                found[position] = convert(cell)
            except (TypeError, ValueError, OverflowError, KeyError):
                raise self._error(f"{_shortened(cell)} is {failure}", place_of(position)) from None
        return found

    def _refuse(self, missing: Sequence[bool] | np.ndarray, place_of: PlaceOf) -> None:
        if np.any(missing):
            raise self._error(
                "the cell is empty",
                place_of(int(np.argmax(missing))),
                'fill it, or where the model was trained with gaps say missing = "nan" in the card',
            )

    def _refuse_overflow(
        self, outside: np.ndarray, cells: Sequence[Any], dtype: np.dtype[Any], place_of: PlaceOf
    ) -> None:
        if outside.any():
            position = int(outside.argmax())
            raise self._error(f"{_shortened(cells[position])} does not fit {dtype}", place_of(position))

    def _error(self, cause: str, place: str, remedy: str | None = None) -> InputError:
        return InputError(cause, place=f"{place}, column {self.name!r}", remedy=remedy)


def _is_missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return not cell or cell.isspace()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _has_underscore(cells: Sequence[Any]) -> bool:
    try:
        return "_" in "".join(cells)
    except TypeError:
        return any(isinstance(cell, str) and "_" in cell for cell in cells)


def _number(cell: Any) -> float:
    if _is_missing(cell):
        return math.nan
    if isinstance(cell, str) and "_" in cell:
        raise ValueError
    return float(cell)


def _integer(cell: Any) -> int:
    if isinstance(cell, str):
        if "_" in cell:
            raise ValueError
        return int(cell)
    number = int(cell)
    if number != cell:
        raise ValueError
    return number


def _truth(cell: Any) -> bool:
    return _TRUTH[str(cell).strip().lower()]


def _shortened(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 80 else f"{text[:77]}…"
