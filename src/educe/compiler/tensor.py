"""What lowering works on: buffers, and tensors that are views of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from educe.compiler.emit import KINDS, Kind

KIND_NAMES = {
    np.dtype(name): kind
    for name, kind in {
        "float32": "f32",
        "float64": "f64",
        "float16": "f16",
        "int8": "i8",
        "int16": "i16",
        "int32": "i32",
        "int64": "i64",
        "uint8": "u8",
        "uint16": "u16",
        "uint32": "u32",
        "uint64": "u64",
        "bool": "bool",
    }.items()
}


_MAX_BYTES = 2**63 - 1
_DTYPES: dict[str, np.dtype[Any]] = {name: dtype for dtype, name in KIND_NAMES.items()}


def kind_of(dtype: np.dtype) -> Kind | None:
    """Return the kind of NumPy's `dtype`, or None if kernels do not take it."""
    name = KIND_NAMES.get(dtype) or ("bf16" if dtype.name == "bfloat16" else None)
    return KINDS[name] if name else None


def dtype_of(kind: Kind) -> np.dtype:
    """Return NumPy's type of a kind."""
    if kind.name == "bf16":
        import ml_dtypes

        brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return brain
    return _DTYPES[kind.name]


@dataclass(eq=False)
class Buffer:
    """A piece of memory that is one whole to the planner.

    Attributes:
        size_bytes: Its size.
        slot: Where it lies: ``arena`` until it is placed elsewhere; ``constant``; ``status``; or ``input``,
            ``output`` or ``host`` with `number`.
        number: Which input, output or host value it is.
        constant: The array that it is, for constants; it is not modified.
        offset: Its place in the arena, once planned.
        segment: The segment whose arena it lies in.
    """

    size_bytes: int
    slot: str = "arena"
    number: int = 0
    constant: np.ndarray | None = None
    offset: int = -1
    segment: int = 0

    def __post_init__(self) -> None:
        if self.size_bytes > _MAX_BYTES:
            raise MemoryError(f"a tensor needs {self.size_bytes} bytes")


@dataclass(eq=False)
class Tensor:
    """Elements of a buffer, by strides; or elements that are not computed yet.

    Attributes:
        kind: The element type.
        shape: The sizes, all known.
        strides: Steps between neighbours of each dimension, in elements; 0 where broadcast.
        offset: The first element's index in the buffer.
        buffer: The memory; None as long as `lazy` stands for it.
        value: The content where it is known while lowering, for constants and sizes.
        lazy: What would compute it, until something needs it in memory.
        uses: How often it is read.
        node: The node of the graph that made it.
        varies: Whether its `value` is another one for other sizes of the inputs.
    """

    kind: Kind
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    buffer: Buffer | None = None
    value: np.ndarray | None = None
    lazy: Any = None
    uses: int = 1
    node: str = ""
    varies: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one after the other in the order of the dimensions."""
        return is_dense(self.shape, self.strides)

    def view(self, shape: Sequence[int], strides: Sequence[int], offset: int | None = None) -> Tensor:
        """Return the same memory seen with other sizes and strides."""
        assert self.lazy is None
        place = self.offset if offset is None else offset
        return Tensor(self.kind, tuple(shape), tuple(strides), place, self.buffer, varies=self.varies)

    def __repr__(self) -> str:
        return f"<Tensor {self.kind}{list(self.shape)}>"


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of elements that lie one after the other."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Say whether `strides` are those of elements one after the other; sizes of 1 have no say."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True


def same_strides(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Say whether two strides reach the same elements; those of dimensions of size 1 have no say."""
    return 0 in shape or all(size == 1 or x == y for size, x, y in zip(shape, a, b, strict=True))


def is_permuted_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Say whether the elements fill their memory without gap or overlap, in whatever order of dimensions."""
    order = memory_order(shape, strides)
    return is_dense([shape[axis] for axis in order], [strides[axis] for axis in order])


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the dimensions from the one with the largest stride to the one with the smallest."""
    return sorted(range(len(shape)), key=lambda axis: (-strides[axis] if shape[axis] != 1 else 0, axis))


def strides_in_order(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Return dense strides for `shape` whose dimensions lie in memory in `order`, the slowest first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of (N, C, ...) with the channels as the fastest dimension."""
    return strides_in_order(shape, [0, *range(2, len(shape)), 1])


def collapsed(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Return the fewest dimensions that reach the same elements, in the order in which the first lies."""
    order = memory_order(shape, strides[0])
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis in order:
        size = shape[axis]
        if size == 1:
            continue
        steps = [each[axis] for each in strides]
        if sizes and all(m[-1] == step * size for m, step in zip(merged, steps, strict=True)):
            sizes[-1] *= size
            for m, step in zip(merged, steps, strict=True):
                m[-1] = step
        else:
            sizes.append(size)
            for m, step in zip(merged, steps, strict=True):
                m.append(step)
    return sizes, merged


def broadcast_strides(shape: Sequence[int], strides: Sequence[int], to: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor seen with the shape `to`, by NumPy's rule of broadcasting."""
    missing = len(to) - len(shape)
    return (0,) * missing + tuple(
        0 if size == 1 and wanted != 1 else stride
        for size, stride, wanted in zip(shape, strides, to[missing:], strict=True)
    )


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that `shapes` broadcast to.

    Raises:
        ValueError: they do not.
    """
    return tuple(int(size) for size in np.broadcast_shapes(*(tuple(shape) for shape in shapes)))
