"""What goes into a model and what comes out: names, element types and shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import ml_dtypes
import numpy as np

Dim: TypeAlias = int | str | None
"""A fixed size, the name of a size known only at run time, or a nameless one."""

NUMPY_TYPES: dict[str, np.dtype] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
    "c64": np.dtype(np.complex64),
    "c128": np.dtype(np.complex128),
    "f8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "f8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "i4": np.dtype(ml_dtypes.int4),
    "u4": np.dtype(ml_dtypes.uint4),
    "i2": np.dtype(ml_dtypes.int2),
    "u2": np.dtype(ml_dtypes.uint2),
    "str": np.dtype(object),
}
"""The short name of every element type, with the NumPy type that holds it."""

_SHORT_NAMES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


def short_name(dtype: np.dtype) -> str:
    """Return Educe's name for a NumPy type, such as ``f32``; any kind of text is ``str``."""
    return "str" if dtype.kind in "OUS" else _SHORT_NAMES.get(dtype, str(dtype))


@dataclass(frozen=True)
class TensorType:
    """A tensor: its element type, and its shape if the rank is known.

    Example:
        ``f32[N,3,224,224]``; a nameless size prints as ``?``, an unknown rank as ``f32[...]``.
    """

    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def numpy_dtype(self) -> np.dtype:
        """The NumPy type that holds its elements."""
        return NUMPY_TYPES[self.dtype]

    def mismatch(self, array: np.ndarray) -> str | None:
        """Return what keeps `array` from being of this type, or None if it fits."""
        if array.dtype != self.numpy_dtype and not (self.dtype == "str" and array.dtype.kind in "OUS"):
            return f"expected {self}, found {short_name(array.dtype)}{list(array.shape)}"
        if self.shape is None:
            return None
        if len(self.shape) != array.ndim:
            return f"expected {len(self.shape)} dimensions {self}, found {list(array.shape)}"
        for axis, (expected, found) in enumerate(zip(self.shape, array.shape, strict=True)):
            if type(expected) is int and expected != found:
                return f"expected {expected} in dimension {axis} of {self}, found {list(array.shape)}"
        return None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[...]"
        return f"{self.dtype}[{','.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class SequenceType:
    """A list of values of one type."""

    element: ValueType

    def __str__(self) -> str:
        return f"sequence({self.element})"


@dataclass(frozen=True)
class OptionalType:
    """A value of one type, or nothing."""

    element: ValueType

    def __str__(self) -> str:
        return f"optional({self.element})"


@dataclass(frozen=True)
class MapType:
    """A mapping, as classifiers of the ``ai.onnx.ml`` domain return it."""

    key: str
    value: ValueType

    def __str__(self) -> str:
        return f"map({self.key}, {self.value})"


ValueType: TypeAlias = TensorType | SequenceType | OptionalType | MapType


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of a model, in their order.

    Example:
        ``(data: f32[N,3,224,224]) -> (prob: f32[N,1000])``
    """

    inputs: dict[str, ValueType] = field(default_factory=dict)
    outputs: dict[str, ValueType] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"({_arguments(self.inputs)}) -> ({_arguments(self.outputs)})"


def _arguments(values: dict[str, ValueType]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
