"""`Parameters`: the constants of a graph that weights become, declared as it is built and filled together."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from ml_dtypes import bfloat16

from educe import pages
from educe.errors import ModelFileError
from educe.generate import precision as precisions
from educe.generate.quantization import Format, quantized
from educe.machine import usable_cores
from educe.model.checkpoint import Checkpoint, Weight
from educe.model.quantized import PANEL, PackedWeight, pack
from educe.store import Key, Write, source_hash, store

Progress: TypeAlias = Callable[[float, str], None]
"""Is told how much of the work is done, 0 to 1, and what is being done."""

_F32 = np.dtype(np.float32)
_PARTS = tuple(field.name for field in dataclasses.fields(PackedWeight))

_PACKAGE = Path(__file__).parents[1]
# Each of their files may change what is written: they read weights, decode, round and pack them.
_SOURCES = (
    *(_PACKAGE / name for name in ("formats", "model")),
    *(_PACKAGE / "generate" / f"{name}.py" for name in ("parameters", "precision", "quantization")),
)
# Rows of so many numbers are rounded at a time: temporary arrays stay in the cache.
_CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix in a graph.

    Attributes:
        values: The arrays of a `PackedWeight` in their order, None for those that it lacks; f32[out, in] or
            bf16[out, in] alone if it is not packed.
        attributes: Those of the nodes that read a packed one; None if it is not packed.
    """

    values: Sequence[ir.Value | None]
    attributes: Mapping[str, int] | None = None

    @property
    def is_bfloat16(self) -> bool:
        """Whether it is bf16."""
        first = self.values[0]
        return first is not None and first.dtype == ir.DataType.BFLOAT16

    @property
    def of_rows(self) -> dict[str, int]:
        """The attributes of the node that rounds the rows by which it is multiplied."""
        return {name: size for name, size in (self.attributes or {}).items() if name in ("block", "group")}


@dataclass(frozen=True, eq=False)
class _Parameter:
    """A weight in a graph, or those of experts: values by the names of `PackedWeight`, or one, ``array``."""

    weights: tuple[Weight, ...]
    form: Format | None
    plus: float
    values: dict[str, ir.Value]

    def array(self) -> np.ndarray:
        """Return what is not packed."""
        weight = self.weights[0]
        if self.values["array"].dtype == ir.DataType.BFLOAT16:
            return _as_bfloat16(weight)
        array = weight.array()
        return array + np.float32(self.plus) if self.plus else array

    def write(self, places: Mapping[ir.Value, int], write: Write, number: int, start: int, stop: int) -> None:
        """Write some rows of one of the weights; the first of them begins a panel."""
        if self.form is None:
            write(places[self.values["array"]], self.array())
            return
        weight = self.weights[number]
        try:
            packed = pack(quantized(weight.cut(start, stop), self.form))
        except ValueError as fault:
            raise ModelFileError(
                str(fault), place=f"weight {weight.name!r}", remedy="download the model again"
            ) from None
        panel = (number * _whole_panels(weight.shape[0]) + start) // PANEL
        for part, value in self.values.items():
            array = np.ascontiguousarray(getattr(packed, part))
            write(places[value] + panel * array[0].nbytes, array)

    def cuts(self) -> list[tuple[int, int, int]]:
        """Return the rows that are written at a time: the number of their weight, the first, and the end."""
        shape = self.weights[0].shape
        rows = shape[0] if shape else 1
        step = rows
        if self.form is not None:
            step = max(1, _CHUNK_ELEMENTS // shape[1] // PANEL) * PANEL
        return [
            (number, start, min(start + step, rows))
            for number in range(len(self.weights))
            for start in range(0, rows, step)
        ]


class Parameters:
    """The constants of a graph that weights become, in one precision.

    Packed matrices are kept in the store, with all else that the graph has of weights, in one file that is
    mapped from then on. Its key has the stamps of the model's files, so that these need not be read.

    Args:
        checkpoint: Whose weights they are.
        precision: One of `PRECISIONS`.
        progress: What is told of the packing.

    Raises:
        OptionError: there is no such precision.
    """

    def __init__(self, checkpoint: Checkpoint, precision: str, progress: Progress | None = None) -> None:
        precisions.check(precision)
        self._checkpoint, self._precision, self._progress = checkpoint, precision, progress
        self._parameters: dict[str, _Parameter] = {}

    @property
    def values(self) -> list[ir.Value]:
        """All constants."""
        return [value for parameter in self._parameters.values() for value in parameter.values.values()]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the precision of the weights."""
        matrices = [each.weights for each in self._parameters.values() if each.form is not None]
        return precisions.notes(itertools.chain(*matrices), self._precision)

    def array(self, weight: Weight, plus: float = 0.0) -> ir.Value:
        """Declare a weight as f32, with a number added to it."""
        name = f"{weight.name} + {plus}" if plus else weight.name
        return self._declared(name, (weight,), None, plus)["array"]

    def matrix(self, *weights: Weight) -> Matrix:
        """Declare a matrix as the precision has it, or those of experts, which have one shape."""
        forms = {precisions.format_of(weight, self._precision) for weight in weights}
        form = forms.pop() if len(forms) == 1 else None
        if form is None and self._precision == precisions.BF16 and len(weights) == 1:
            name = f"{weights[0].name} in bf16"
            return Matrix([self._declared(name, weights, None, 0.0, np.dtype(bfloat16))["array"]])
        if form is None:
            return Matrix([self.array(weight) for weight in weights])
        outputs, inputs = weights[0].shape
        found = self._declared(weights[0].name, weights, form, 0.0)
        return Matrix([found.get(part) for part in _PARTS], form.attributes((outputs, inputs)))

    def fill(self) -> None:
        """Give all constants their content.

        Raises:
            ModelFileError: a matrix has numbers that are not finite.
        """
        if any(each.form for each in self._parameters.values()):
            self._fill_packed()
            return
        for each in self._parameters.values():
            _set(each.values["array"], each.array())

    def _fill_packed(self) -> None:
        places, size_bytes = _places(self.values)
        make, kept, content = functools.partial(self._write, places), store(), None
        if kept is not None and self._checkpoint.stamps:
            content = kept.mapped(self._key(), size_bytes, make)
        if content is None:
            content = pages.empty(size_bytes, np.uint8)
            make(functools.partial(_put, content))
        for value, place in places.items():
            _set(value, _array_at(content, place, value))

    def _key(self) -> Key:
        """Return the key of the content in the store."""
        layout = [(value.name, str(value.dtype), str(value.shape)) for value in self.values]
        ingredients = {
            "files": _digest(self._checkpoint.stamps),
            "config": _digest(self._checkpoint.config),
            "precision": self._precision,
            "layout": _digest(layout),
            "sources": source_hash(*_SOURCES),
        }
        return Key("weights", self._checkpoint.path.name, tuple(ingredients.items()))

    def _write(self, places: Mapping[ir.Value, int], write: Write) -> None:
        """Write all constants, on all cores."""
        parameters = self._parameters.values()
        total, done = sum(weight.num_elements for each in parameters for weight in each.weights), 0
        with ThreadPoolExecutor(usable_cores()) as pool:
            for each in parameters:
                list(pool.map(functools.partial(each.write, places, write), *zip(*each.cuts(), strict=True)))
                for weight in each.weights:
                    pages.forget(weight.data)
                    done += weight.num_elements
                if self._progress is not None:
                    self._progress(done / max(total, 1), f"packing {each.weights[0].name}")

    def _declared(
        self,
        name: str,
        weights: tuple[Weight, ...],
        form: Format | None,
        plus: float,
        dtype: np.dtype[Any] = _F32,
    ) -> dict[str, ir.Value]:
        if name not in self._parameters:
            shape = weights[0].shape
            if form is None:
                values = {"array": _value(name, dtype, shape)}
            else:
                outputs, inputs = len(weights) * _whole_panels(shape[0]), shape[1]
                values = {
                    part: _value(f"{name}.{part}", *sizes)
                    for part, sizes in form.arrays((outputs, inputs)).items()
                }
            self._parameters[name] = _Parameter(weights, form, plus, values)
        return self._parameters[name].values


def _as_bfloat16(weight: Weight) -> np.ndarray:
    """Return a weight in bfloat16; a view of the file where it holds just that."""
    if weight.encoding == "BF16":
        written: np.ndarray = np.require(weight.data.view(bfloat16), requirements="A")
        return written.reshape(weight.shape)
    return weight.array().astype(bfloat16)


def _whole_panels(outputs: int) -> int:
    """Return the outputs of the panels that hold so many."""
    return -(-outputs // PANEL) * PANEL


def _value(name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.from_numpy(dtype)))


def _set(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.Tensor(np.asarray(array, order="C"), name=value.name)


def _places(values: Sequence[ir.Value]) -> tuple[dict[ir.Value, int], int]:
    """Return where each array lies in memory that holds all, and the size of that."""
    places, end = {}, 0
    for value in values:
        places[value] = end
        end += -(-_size_bytes(value) // pages.ALIGNMENT) * pages.ALIGNMENT
    return places, end


def _size_bytes(value: ir.Value) -> int:
    dtype, shape = _sizes(value)
    return dtype.itemsize * math.prod(shape)


def _sizes(value: ir.Value) -> tuple[np.dtype[Any], tuple[int, ...]]:
    assert value.dtype is not None
    assert value.shape is not None
    return value.dtype.numpy(), value.shape.numpy()


def _array_at(content: np.ndarray, place: int, value: ir.Value) -> np.ndarray:
    dtype, shape = _sizes(value)
    return content[place : place + _size_bytes(value)].view(dtype).reshape(shape)


def _put(content: np.ndarray, place: int, array: np.ndarray) -> None:
    content[place : place + array.nbytes] = array.reshape(-1).view(np.uint8)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
