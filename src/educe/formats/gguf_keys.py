"""GGUF's metadata, read by type: a missing value or one of another type is an error that names its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from educe.errors import ModelFileError
from educe.formats.folder import shown

_LARGEST_INTEGER = 2**31 - 1
_WITHOUT_MEANING = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "attention.causal")
"""Keys that tell nothing that the tensors do not."""


class Keys:
    """The metadata of one architecture, read by type; it remembers what was asked for.

    Attributes:
        architecture: GGUF's name, with which the keys begin.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._asked: set[str] = set()
        self.architecture = text(metadata, "general.architecture")

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; that of every layer, where the file says it for each."""
        value = self._value(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or not 1 <= value <= _LARGEST_INTEGER:
            raise self._wrong(key, value, "one positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def truth(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def window(self) -> int | None:
        """Return how far attention looks back, or None where it sees all, which some files write as 0."""
        key = "attention.sliding_window"
        return None if self._value(key, 0) == 0 else self.integer(key)

    def flags(self, key: str, count: int) -> list[bool]:
        """Return the truth values of all layers."""
        value = self._value(key, None)
        if not isinstance(value, np.ndarray) or value.size != count:
            raise self._wrong(key, value, f"an array of {count:,} truth values")
        return [bool(flag) for flag in value]

    def __contains__(self, key: str) -> bool:
        return self._full(key) in self._metadata

    def holds_array(self, key: str) -> bool:
        """Say whether the key's value is an array."""
        return isinstance(self._metadata.get(self._full(key)), np.ndarray)

    def unread(self) -> list[str]:
        """Return the keys of this architecture that nothing asked for."""
        prefix = f"{self.architecture}."
        known = self._asked | {prefix + key for key in _WITHOUT_MEANING}
        return sorted(key for key in self._metadata if key.startswith(prefix) and key not in known)

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _value(self, key: str, default: Any) -> Any:
        full = self._full(key)
        self._asked.add(full)
        if full not in self._metadata and default is None:
            raise ModelFileError(
                "is missing",
                place=f"metadata {full!r}",
                remedy="convert the model again with a current converter",
            )
        return self._metadata.get(full, default)

    def _wrong(self, key: str, value: Any, expected: str) -> ModelFileError:
        return wrong_value(self._full(key), value, expected)


def text(metadata: Mapping[str, Any], key: str) -> str:
    """Return the text of a key that must be there."""
    value = metadata.get(key)
    if not isinstance(value, str):
        raise wrong_value(key, value, "a text")
    return value


def wrong_value(key: str, value: Any, expected: str) -> ModelFileError:
    """Return the error for a value of another type or range."""
    kept = (
        shown(value) if isinstance(value, (bool, int, float, str)) else f"of the type {type(value).__name__}"
    )
    found = "is missing" if value is None else f"is {kept}"
    return ModelFileError(
        f"{found}, where {expected} is expected",
        place=f"metadata {shown(key)}",
        remedy="download or convert the file again",
    )
