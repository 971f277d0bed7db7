"""Raw tensors: arrays in, arrays out, for any model and as the fallback without a card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import InputError, OptionError, nearest
from educe.media.tensors import read_tensors
from educe.model import OptionalType, SequenceType, TensorType, ValueType
from educe.tasks.base import Feeds, Findings, Item, Outputs, Task

UNNAMED = "arr_0"
"""What numpy.savez calls an array that was given no name."""


class TensorTask(Task[Feeds]):
    """Feeds arrays to a model as they are and gives its outputs back; nothing is cast or stacked."""

    name = "tensor"
    suffixes = frozenset({".npy", ".npz", ".pb"})
    feeds_are_rows = False

    def open(self, source: Any) -> Iterator[Item[Feeds]]:
        """Yield the one set of inputs in `source`.

        Args:
            source: The path of an .npy, .npz or ONNX .pb file, its content as bytes, an array, or a dict of
                arrays by input name. One array without a name goes to the only input.

        Raises:
            InputError: inputs are missing or unknown, or an array is not of the type the model takes.
        """
        if isinstance(source, (str, Path, bytes)):
            path = source if isinstance(source, bytes) else Path(source)
            try:
                yield Item(self._settled(read_tensors(path, self.options.limits)))
            except InputError as fault:
                raise (fault if isinstance(path, bytes) else fault.located(path)) from None
        else:
            yield Item(self._settled(source))

    def preprocess(self, items: Sequence[Item[Feeds]]) -> Feeds:
        """Return the arrays of the only item."""
        if len(items) != 1:
            raise OptionError(
                f"raw tensors are run one set at a time, not {len(items)}", remedy="use a batch of 1"
            )
        return items[0].content

    def postprocess(self, outputs: Outputs, items: Sequence[Item[Feeds]]) -> list[Findings]:
        """Return the output arrays; those of a sequence or map as ``name[0]``, ``name['key']``, …"""
        arrays = {name: array for key, value in outputs.items() for name, array in _arrays(key, value)}
        return [Findings(outputs=arrays) for _ in items]

    def _settled(self, source: Any) -> Feeds:
        inputs = self.model.signature.inputs
        free = [name for name in inputs if name not in self.card.state and name not in self.card.constants]
        feeds = self._named(source, free)
        for name in feeds:
            if name not in free:
                raise InputError(f"the model has no input {name!r}", remedy=nearest(name, free))
        for name in free:
            if name not in feeds:
                raise InputError(f"the input {name!r} is missing", remedy=f"give {name}: {inputs[name]}")
        return {name: _fitting(name, value, inputs[name]) for name, value in feeds.items()}

    def _named(self, source: Any, free: list[str]) -> Feeds:
        if isinstance(source, Mapping):
            if len(free) != 1 or list(source) != [UNNAMED]:
                return dict(source)
            source = source[UNNAMED]
        if not isinstance(source, (np.ndarray, np.generic, list)):
            raise InputError(
                f"expected arrays, found {type(source).__name__}",
                remedy="give a .npy, .npz or .pb file, a NumPy array, or a dict of arrays",
            )
        if len(free) != 1:
            given = ", ".join(f"{name}=…" for name in free)
            raise InputError(
                f"one array without a name, but the model has {len(free)} inputs",
                remedy=f"save them by name: numpy.savez(path, {given})",
            )
        return {free[0]: source}


def _fitting(name: str, value: Any, expected: ValueType) -> Any:
    """Return `value` as the engine takes it.

    Raises:
        InputError: it is not of the type `expected`.
    """
    if isinstance(expected, OptionalType):
        # The file of an optional cannot be told from that of a sequence of one or none.
        if isinstance(value, list) and not isinstance(expected.element, SequenceType):
            value = value[0] if value else None
        return None if value is None else _fitting(name, value, expected.element)
    if isinstance(expected, SequenceType) and isinstance(value, list):
        return [_fitting(f"{name}[{k}]", element, expected.element) for k, element in enumerate(value)]
    if not isinstance(expected, TensorType) or not isinstance(value, (np.ndarray, np.generic)):
        raise InputError(
            f"expected {expected}, found {type(value).__name__}",
            place=f"input {name!r}",
            remedy="give an array",
        )
    array = np.asarray(value)
    mismatch = expected.mismatch(array)
    if mismatch:
        raise InputError(mismatch, place=f"input {name!r}", remedy=_cure(array, expected))
    return array.astype(object) if expected.dtype == "str" else array


def _cure(array: np.ndarray, expected: TensorType) -> str:
    if array.dtype != expected.numpy_dtype and expected.dtype != "str":
        return f"if no value is lost by it, array.astype({expected.numpy_dtype.name!r}) converts it"
    return "reshape the array, or add the missing dimension with array[None]"


def _arrays(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, list):
        for position, element in enumerate(value):
            yield from _arrays(f"{name}[{position}]", element)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from _arrays(f"{name}[{key!r}]", element)
    elif value is not None:
        yield name, np.asarray(value)
