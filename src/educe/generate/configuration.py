"""`Configuration`: the fields of a model's configuration, read as what they must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from educe.errors import ModelFileError
from educe.formats.folder import shown

_T = TypeVar("_T")
_MOST = 2**31 - 1
_MOST_ELEMENTS = 1 << 16


class Configuration:
    """The fields of a configuration. One that is null is as one that is not there.

    Every method that reads a field returns `default` where it is not there, and raises `ModelFileError` where
    it has another type or range, or where it is not there and has no default.

    Args:
        fields: The fields of Hugging Face's config.json.
        path: Where they came from, for errors.
        name: What is called so there, for errors.
    """

    def __init__(
        self, fields: Mapping[str, Any], path: Path | None = None, name: str = "the configuration"
    ) -> None:
        self._fields, self._path, self._name = fields, path, name

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """Return a whole number of the given range."""
        return self._read(
            name,
            default,
            f"a whole number from {least:,} to {most:,}",
            lambda value: type(value) is int and least <= value <= most,
            int,
        )

    def number(self, name: str, default: float | None = None, *, above: float = -math.inf) -> float:
        """Return a finite number larger than `above`."""
        return self._read(
            name,
            default,
            "a number" if above == -math.inf else f"a number above {above:g}",
            lambda value: is_number(value) and value > above,
            float,
        )

    def truth(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        return self._read(name, default, "true or false", lambda value: isinstance(value, bool), bool)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        return self._read(name, default, "a text", lambda value: isinstance(value, str), str)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return so many finite numbers above 0."""
        return self._read(
            name,
            None,
            f"a list of {count:,} numbers above 0",
            lambda value: (
                _is_list(value) and len(value) == count and all(is_number(x) and x > 0 for x in value)
            ),
            lambda value: tuple(float(number) for number in value),
        )

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return whole numbers."""
        return self._read(
            name,
            default,
            "a list of whole numbers",
            lambda value: _is_list(value) and all(isinstance(number, int) for number in value),
            lambda value: tuple(int(number) for number in value),
        )

    def token_ids(self, name: str, count: int) -> tuple[int, ...]:
        """Return the ids of tokens, each below `count`, of a field that has one, several or none."""
        found = self._fields.get(name)
        listed = found if isinstance(found, list | tuple) else [] if found is None else [found]
        for index in listed:
            if type(index) is not int or not 0 <= index < count:
                raise self.error(
                    name, f"has {shown(index)}, where tokens from 0 to {count - 1:,} are expected"
                )
        return tuple(listed)

    def token_sequences(self, name: str, count: int) -> tuple[tuple[int, ...], ...]:
        """Return the sequences of tokens, each below `count`, of a field that has a list of them, or none."""
        nothing: tuple[Any, ...] = ()
        expected = "a list of lists of tokens"
        found = self._read(
            name, nothing, expected, lambda value: _is_list(value) and all(map(_is_list, value)), tuple
        )
        return tuple(self.replaced(**{name: words}).token_ids(name, count) for words in found if words)

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """Return texts."""
        return self._read(
            name,
            default,
            "a list of texts",
            lambda value: _is_list(value) and all(isinstance(text, str) for text in value),
            tuple,
        )

    def section(self, name: str) -> Configuration:
        """Return the fields under a name; none if it is not there."""
        nothing: dict[str, Any] = {}
        found = self._read(name, nothing, "an object", lambda value: isinstance(value, Mapping), dict)
        return Configuration(found, self._path, self._name)

    def replaced(self, **fields: Any) -> Configuration:
        """Return this configuration with other values of some fields."""
        return Configuration({**self._fields, **fields}, self._path, self._name)

    def error(self, name: str, cause: str) -> ModelFileError:
        """Return the error for a field that cannot be."""
        return ModelFileError(
            cause,
            path=self._path,
            place=f"field {name!r} of {self._name}",
            remedy="use the configuration that came with the weights",
        )

    def _read(
        self,
        name: str,
        default: _T | None,
        expected: str,
        accepts: Callable[[Any], bool],
        convert: Callable[[Any], _T],
    ) -> _T:
        value = self._fields.get(name)
        if value is None and default is not None:
            return default
        if value is None or not accepts(value):
            found = "is missing" if value is None else f"is {shown(value)}"
            raise self.error(name, f"{found}, where {expected} is expected")
        return convert(value)


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value is a finite number, no truth value, and not beyond what floats hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= _MOST_ELEMENTS
