"""Lowering: the nodes of a graph, with all sizes known, to launches of kernels.

Operators build tensors. One made of single elements stays an expression (`Tensor.lazy`) until something needs
it in memory, so that chains of them become one loop, or the end of the product that feeds them. Views cost
nothing: a transposed, sliced or broadcast tensor is the same memory seen by other strides, and a tensor with
its channels last is one whose strides say so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from educe.compiler.copying import copy_in_tiles
from educe.compiler.emit import U8, Kind
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.pointwise import BLOCK, MAX_OUTER
from educe.compiler.kernels.scalars import Expression, Step
from educe.compiler.memory import aligned
from educe.compiler.program import Launch, estimated_ns
from educe.compiler.target import Target
from educe.compiler.tensor import (
    Buffer,
    Tensor,
    broadcast_shape,
    broadcast_strides,
    collapsed,
    dense_strides,
    is_permuted_dense,
    kind_of,
    memory_order,
    same_strides,
    strides_in_order,
)
from educe.errors import EngineError, LimitError
from educe.limits import format_bytes
from educe.machine import memory_bytes

MAX_FUSED_INPUTS = 8
MAX_FUSED_STEPS = 48

_SHARED_FROM_NS = 8000.0
_CHUNK_NS = 4000.0

# Work of one launch that is refused, as views of little memory may have any number of elements: an hour.
_MOST_NS = 3600e9
_LARGEST_SIZE = 2**63 - 1
# What is smaller is not compared with the machine's memory while lowering.
_LARGE_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A lazy tensor: a scalar function of tensors, which may be lazy themselves."""

    function: str
    inputs: tuple[Tensor, ...]
    attributes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Product:
    """A lazy tensor: a matrix product or convolution that has not been launched yet.

    Attributes:
        launch: Launches it: given the expression that ends it, the operands of that expression after the
            product itself, and the tensor to write.
        accepts: Says whether an operand, broadcast to the product's shape, can be read where a tile ends.
        writes: Says whether it can be launched into the memory of another tensor of its shape.
    """

    launch: Callable[[Expression, Sequence[Tensor], Tensor], None]
    accepts: Callable[[Tensor], bool]
    writes: Callable[[Tensor], bool] = lambda _: False


@dataclass(frozen=True, eq=False)
class Repeat(Product):
    """A lazy tensor: the elements of one that is broadcast, in another shape.

    Attributes:
        source: That one, in memory.
    """

    source: Tensor = field(kw_only=True)


class Constants:
    """The constants of an executable, each made once and kept while its code may read it.

    Args:
        keep: What an array that is made is kept as.
    """

    def __init__(self, keep: Callable[[np.ndarray], np.ndarray] = aligned) -> None:
        self._keep = keep
        self._made: dict[Hashable, np.ndarray] = {}
        self._buffers: dict[int, Buffer] = {}

    def made(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the array under `key`, made at its first use."""
        if key not in self._made:
            self._made[key] = self._keep(make())
            self.buffer(self._made[key])
        return self._made[key]

    def buffer(self, array: np.ndarray) -> Buffer:
        """Return the buffer of a contiguous array, which is kept."""
        if id(array) not in self._buffers:
            self._buffers[id(array)] = Buffer(array.nbytes, "constant", constant=array)
        return self._buffers[id(array)]

    def has(self, array: np.ndarray) -> bool:
        """Say whether `array` is one of them, so that no other array gets its identity."""
        return id(array) in self._buffers

    @property
    def size_bytes(self) -> int:
        """Size of all constants together."""
        return sum(buffer.size_bytes for buffer in self._buffers.values())


class Lowering:
    """The state of lowering: what operators build on.

    Args:
        target: The machine.
        threads: Threads that a run may use.
        constants: The executable's constants.
        segment: The number of the segment being made.
    """

    def __init__(self, target: Target, threads: int, constants: Constants, segment: int = 0) -> None:
        self.target = target
        self.threads = threads
        self.constants = constants
        self.segment = segment
        self.launches: list[Launch] = []
        self.checks: list[str] = []
        self.node = ""
        self.place = ""
        self.kept: dict[str, Any] = {}
        self.expected: list[Kernel] = []
        self._shared: dict[Hashable, Tensor] = {}

    # Tensors -----------------------------------------------------------------------------------------

    def empty(self, kind: Kind, shape: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
        """Return a new tensor in the arena, whose content is for a launch to write."""
        shape = tuple(int(size) for size in shape)
        strides = dense_strides(shape) if strides is None else tuple(strides)
        return Tensor(kind, shape, strides, 0, self._buffer(shape, kind))

    def _buffer(self, shape: Sequence[int], kind: Kind) -> Buffer:
        """Return memory of the arena; EngineError if the machine has less."""
        size_bytes = math.prod(shape) * kind.size_bytes
        most = memory_bytes() if size_bytes > _LARGE_BYTES else None
        if most is not None and size_bytes > most:
            raise EngineError(
                f"not enough memory: a tensor of shape {list(shape)} needs {format_bytes(size_bytes)}, "
                f"and this machine has {format_bytes(most)}",
                place=self.place,
                remedy="give smaller inputs",
            )
        return Buffer(size_bytes, segment=self.segment)

    def status(self) -> Tensor:
        """Return a byte, 0 before a run, that a launch of this node sets if an index is out of range."""
        self.checks.append(self.place)
        return Tensor(U8, (), (), len(self.checks) - 1, Buffer(U8.size_bytes, "status"))

    def constant(self, array: np.ndarray, kept: bool = False) -> Tensor:
        """Return a tensor with the content of `array`, known while lowering.

        Args:
            array: The content; it is not modified.
            kept: Whether it is one of the executable's constants; else it lives as long as what reads it.
        """
        array = np.asarray(array, order="C")
        kind = kind_of(array.dtype)
        assert kind is not None, array.dtype
        buffer = self.constants.buffer(array) if kept else Buffer(array.nbytes, "constant", constant=array)
        return Tensor(kind, array.shape, dense_strides(array.shape), 0, buffer, value=array)

    def shared(self, key: Hashable, make: Callable[[], np.ndarray]) -> Tensor:
        """Return the constant under `key`, made at its first use; it lives as long as what reads it."""
        if key not in self._shared:
            self._shared[key] = self.constant(aligned(make()))
        found = self._shared[key]
        return dataclasses.replace(found)

    def derived(self, source: Tensor, key: Hashable, make: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """Return a constant made from the constant `source`, once for each `key` if that one is kept."""
        return self.combined([source], key, make)

    def combined(self, sources: Sequence[Tensor], key: Hashable, make: Callable[..., np.ndarray]) -> Tensor:
        """Return a constant made from the contents of constants, once for each `key` if they are kept."""
        values, whole, kept = [], [key], True
        for source in sources:
            assert source.value is not None
            assert source.buffer is not None
            assert source.buffer.constant is not None
            values.append(source.value)
            whole.append((id(source.buffer.constant), source.offset, source.shape, source.strides))
            kept = kept and self.constants.has(source.buffer.constant)
        if not kept:
            return self.constant(aligned(make(*values)))
        return self.constant(self.constants.made(tuple(whole), lambda: make(*values)), kept=True)

    def need(self, x: Tensor) -> Tensor:
        """Return `x` in memory, with whatever strides it has."""
        if x.lazy is None:
            return x
        node, place = self.node, self.place
        if x.node and x.node != node:
            self.node, self.place = x.node, f"node {x.node!r}"
        if isinstance(x.lazy, Product):
            product = x.lazy
            x.buffer = x.buffer or self._buffer(x.shape, x.kind)
            x.lazy = None
            product.launch(Expression((x.kind,)), (), x)
        else:
            self._launch_expression(x)
        self.node, self.place = node, place
        return x

    def dense(self, x: Tensor) -> Tensor:
        """Return `x` in memory with its elements in the order of its dimensions."""
        return self.with_strides(x, dense_strides(x.shape))

    def with_strides(self, x: Tensor, strides: Sequence[int]) -> Tensor:
        """Return `x` in memory with the given dense strides, copied if it has others."""
        strides = tuple(strides)
        if isinstance(x.lazy, Pointwise):
            x.strides = strides
        x = self.need(x)
        if same_strides(x.shape, x.strides, strides):
            return x
        if x.value is not None:
            return self.derived(x, ("strides", strides), lambda value: _restrided(value, strides)).view(
                x.shape, strides
            )
        result = self.empty(x.kind, x.shape, strides)
        self.copy(x, result)
        return result

    def copy(self, source: Tensor, destination: Tensor) -> None:
        """Launch a copy of `source` into the memory of `destination`, which has the same shape."""
        source = self.need(source)
        if not copy_in_tiles(self, source, destination):
            self._launch_pointwise(Expression((source.kind,)), destination, (source,))

    def write(self, x: Tensor, destination: Tensor) -> None:
        """Launch what puts `x` into the memory of `destination`, which has the same shape.

        What is not computed yet, and read by nothing else, is computed there; anything else is copied.
        """
        products = [each for each in self._leaves(x)[0] if isinstance(each.lazy, Product)]
        if x.lazy is None or x.uses > 1 or not all(each.lazy.writes(destination) for each in products):
            self.copy(x, destination)
            return
        x.buffer, x.strides, x.offset = destination.buffer, destination.strides, destination.offset
        self.need(x)

    # Views -------------------------------------------------------------------------------------------

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the elements of `x` in another shape of the same size, without a copy if strides allow.

        Raises:
            ValueError: it has another size, or is no shape.
        """
        shape = tuple(shape)
        if math.prod(shape) != x.size or min(shape, default=0) < 0:
            raise ValueError(f"a tensor of shape {list(x.shape)} has no shape {list(shape)}")
        if shape == x.shape:
            return x
        if x.value is not None:
            seen = self.dense(x).view(shape, dense_strides(shape))
            seen.value = x.value.reshape(shape)
            return seen
        x = self.need(x)
        strides = reshaped_strides(x.shape, x.strides, shape)
        if strides is None:
            x = self.dense(x)
            strides = dense_strides(shape)
        return x.view(shape, strides)

    def repeat(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the elements of `x`, which is broadcast, in a shape that its strides do not reach; lazy."""

        def launch(expression: Expression, operands: Sequence[Tensor], out: Tensor) -> None:
            self._launch_pointwise(expression, out.view(x.shape, dense_strides(x.shape)), (x,))

        lazy = Repeat(launch, lambda _: False, source=x)
        return Tensor(x.kind, tuple(shape), dense_strides(shape), lazy=lazy, node=self.node)

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Return `x` with its dimensions in another order, without a copy."""
        x = self.need(x)
        seen = x.view([x.shape[axis] for axis in order], [x.strides[axis] for axis in order])
        if x.value is not None:
            seen.value = x.value.transpose(order)
        return seen

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return `x` broadcast to `shape`, without a copy."""
        if tuple(shape) == x.shape:
            return x
        x = self.need(x)
        seen = x.view(shape, broadcast_strides(x.shape, x.strides, shape))
        if x.value is not None:
            seen.value = np.broadcast_to(x.value, tuple(shape))
        return seen

    # Single elements ---------------------------------------------------------------------------------

    def apply(self, function: str, *inputs: Tensor, **attributes: Any) -> Tensor:
        """Return the scalar function `function` of each element of the inputs, broadcast to each other."""
        shape = broadcast_shape(*(each.shape for each in inputs))
        step = Step(function, tuple(range(len(inputs))), tuple(sorted(attributes.items())))
        kind = Expression(tuple(each.kind for each in inputs), (step,)).kind
        inputs = tuple(self._fusable(each, shape) for each in inputs)
        strides = self._chosen_strides(shape, inputs)
        lazy = Pointwise(function, inputs, step.attributes)
        result = Tensor(kind, shape, strides, lazy=lazy, node=self.node)
        if self._too_large(result):
            inputs = tuple(self.need(each) for each in inputs)
            result.lazy = Pointwise(function, inputs, step.attributes)
        return result

    def _fusable(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return `x`, in memory if it is used again or would be computed more than once."""
        if x.lazy is not None and (x.uses > 1 or x.shape != shape):
            return self.need(x)
        return x

    def _chosen_strides(self, shape: tuple[int, ...], inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """Return the strides of the first input that fills `shape`, in dense form."""
        for x in inputs:
            if x.shape == shape and x.value is None and 0 not in x.strides:
                return strides_in_order(shape, memory_order(shape, x.strides))
        return dense_strides(shape)

    def fused(self, x: Tensor) -> tuple[Expression, list[Tensor]]:
        """Return the expression of `x`, and what it reads, in memory and seen with the shape of `x`.

        It is for kernels that compute their input on the way; each use of it computes `x` again.
        """
        if isinstance(x.lazy, Pointwise):
            leaves, _ = self._leaves(x)
            if all(each.lazy is None for each in leaves):
                leaves.sort(key=lambda each: each.shape != x.shape)
                expression, operands = self._expression(x, leaves)
                return expression, [
                    each.view(x.shape, broadcast_strides(each.shape, each.strides, x.shape))
                    for each in operands
                ]
        return Expression((x.kind,)), [self.need(x)]

    def _too_large(self, x: Tensor) -> bool:
        leaves, steps = self._leaves(x)
        return len(leaves) > MAX_FUSED_INPUTS or steps > MAX_FUSED_STEPS

    def _leaves(self, x: Tensor) -> tuple[list[Tensor], int]:
        """Return the tensors that the expression of `x` reads, each once, and how many steps it has."""
        leaves: dict[int, Tensor] = {}
        steps = 0
        waiting = [x]
        while waiting:
            each = waiting.pop()
            if isinstance(each.lazy, Pointwise):
                steps += 1
                waiting += each.lazy.inputs
            else:
                leaves[id(each)] = each
        return list(leaves.values()), steps

    def _launch_expression(self, x: Tensor) -> None:
        """Launch the expression of `x`, at the end of the product that feeds it if there is one."""
        leaves, _ = self._leaves(x)
        products = [each for each in leaves if isinstance(each.lazy, Product)]
        chosen = None
        for product in products:
            others = [each for each in leaves if each is not product]
            if chosen is None and self._can_end(product, x, others):
                chosen = product
            else:
                self.need(product)
        leaves.sort(key=lambda each: (each is not chosen, each.shape != x.shape))
        expression, operands = self._expression(x, leaves)
        is_placed = x.buffer is not None
        x.buffer = x.buffer or self._buffer(x.shape, x.kind)
        x.lazy = None
        if chosen is not None:
            x.strides = x.strides if is_placed else chosen.strides
            self.node = chosen.node or self.node
            product = chosen.lazy
            product.launch(expression, operands[1:], x)
            return
        self._launch_pointwise(expression, x, operands)

    def _can_end(self, product: Tensor, x: Tensor, others: Sequence[Tensor]) -> bool:
        if product.shape != x.shape or product.uses > 1:
            return False
        for each in others:
            if each.lazy is not None:
                return False
            seen = each.view(x.shape, broadcast_strides(each.shape, each.strides, x.shape))
            if not _is_scalar_constant(each) and not product.lazy.accepts(seen):
                return False
        return True

    def _expression(self, x: Tensor, leaves: list[Tensor]) -> tuple[Expression, list[Tensor]]:
        """Return the expression of `x` over `leaves`, with small constants written into it."""
        operands = [each for each in leaves if not _is_scalar_constant(each)]
        if not operands:
            operands = leaves[:1]
        numbers = {id(each): index for index, each in enumerate(operands)}
        steps: list[Step] = []
        first = len(operands)

        def visit(each: Tensor) -> int:
            if id(each) in numbers:
                return numbers[id(each)]
            if isinstance(each.lazy, Pointwise):
                lazy = each.lazy
                step = Step(lazy.function, tuple(visit(item) for item in lazy.inputs), lazy.attributes)
            else:
                assert each.value is not None
                value = each.value.ravel()[0].item()
                step = Step("const", (), (("kind", each.kind.name), ("value", value)))
            steps.append(step)
            numbers[id(each)] = first + len(steps) - 1
            return numbers[id(each)]

        visit(x)
        return Expression(tuple(each.kind for each in operands), tuple(steps)), operands

    def _launch_pointwise(self, expression: Expression, out: Tensor, operands: Sequence[Tensor]) -> None:
        seen = [out.view(out.shape, out.strides)]
        seen += [
            each.view(out.shape, broadcast_strides(each.shape, each.strides, out.shape)) for each in operands
        ]
        sizes, strides = collapsed(out.shape, [each.strides for each in seen])
        if len(sizes) > MAX_OUTER + 2:
            self._launch_in_slices(expression, seen)
            return
        if sizes and sizes[-1] <= self.target.lanes // 4:
            longest = max(range(len(sizes)), key=lambda axis: sizes[axis])
            for values in (sizes, *strides):
                values.append(values.pop(longest))
        length, rows = sizes.pop() if sizes else 1, sizes.pop() if sizes else 1
        access = tuple(_access(each[-1] if each else 0, length) for each in strides)
        blocks = -(-length // BLOCK)
        rows_at_once = max(BLOCK // max(length, 1), 1)
        groups = -(-rows // rows_at_once)
        numbers = [len(sizes), length, blocks, rows, rows_at_once, groups, *_padded(sizes)]
        for each in strides:
            outer, last = each[: len(sizes)], each[len(sizes) :]
            numbers += [*_padded(outer), *([0, 0, *last][-2:])]
        moved = sum(min(each.size, out.size) * each.kind.size_bytes for each in (out, *operands))
        first = operands[0]
        self.launch(
            Kernel.of("pointwise", expression=expression, access=access),
            outputs=[seen[0]],
            inputs=seen[1:],
            sizes=numbers,
            extent=math.prod(sizes) * groups * blocks,
            flops=expression.flops * out.size,
            bytes=moved,
            in_place=first.shape == out.shape
            and first.strides == out.strides
            and first.kind.size_bytes == out.kind.size_bytes
            and is_permuted_dense(out.shape, out.strides)
            and first.offset == out.offset == 0
            and not any(each.buffer is first.buffer for each in operands[1:]),
        )

    def _launch_in_slices(self, expression: Expression, seen: Sequence[Tensor]) -> None:
        """Launch an expression of more dimensions than the kernel has loops, once for each slice."""
        shape = seen[0].shape
        axis = min(range(len(shape)), key=lambda axis: (shape[axis] == 1, shape[axis]))
        for index in range(shape[axis]):
            out, *operands = (
                each.view(
                    (*shape[:axis], *shape[axis + 1 :]),
                    (*each.strides[:axis], *each.strides[axis + 1 :]),
                    each.offset + index * each.strides[axis],
                )
                for each in seen
            )
            self._launch_pointwise(expression, out, operands)

    # Launches ----------------------------------------------------------------------------------------

    def launch(
        self,
        kernel: Kernel,
        *,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        sizes: Sequence[int],
        extent: int,
        flops: int = 0,
        bytes: int = 0,
        scratch_bytes: int = 0,
        in_place: bool = False,
    ) -> None:
        """Add a launch; nothing is added for one without units of work.

        Args:
            kernel: What is launched.
            outputs: What it writes.
            inputs: What it reads.
            sizes: Its numbers.
            extent: Units of work.
            flops: Operations of all units; these or `bytes` must be told.
            bytes: Bytes that all units read and write at least.
            scratch_bytes: Memory that each thread needs.
            in_place: Whether the first output may lie where the first input was.

        Raises:
            LimitError: it would take a core more than an hour.
        """
        if extent <= 0:
            return
        assert flops > 0 or bytes > 0, kernel
        if estimated_ns(flops, bytes) > _MOST_NS or max(extent, *map(abs, sizes)) > _LARGEST_SIZE:
            raise LimitError(
                f"{max(flops, bytes):.2g} operations would take a core more than an hour",
                place=self.place,
                remedy="give smaller inputs, or a model with smaller sizes",
            )
        whole = [*outputs, *inputs]
        assert all(each.lazy is None and each.buffer is not None for each in whole)
        self.launches.append(
            Launch(
                kernel,
                tuple(whole),
                len(outputs),
                tuple(int(size) for size in sizes),
                int(extent),
                int(flops),
                int(bytes),
                int(scratch_bytes),
                self.node,
                in_place,
                self._chunk(extent, flops, bytes),
            )
        )

    def expect(self, kernels: Iterable[Kernel]) -> None:
        """Have kernels made that this node would launch with other sizes, if sizes may change."""
        self.expected += kernels

    def _chunk(self, extent: int, flops: float, bytes: float) -> int:
        """Return how many units a thread takes at once: all, if they are too little work to share."""
        time_ns = estimated_ns(flops, bytes)
        if self.threads == 1 or time_ns < _SHARED_FROM_NS:
            return extent
        pieces = min(extent, 4 * self.threads, max(self.threads, int(time_ns / _CHUNK_NS)))
        return -(-extent // pieces)


def reshaped_strides(
    shape: Sequence[int], strides: Sequence[int], to: Sequence[int]
) -> tuple[int, ...] | None:
    """Return strides that see the elements in the shape `to`, or None if only a copy does."""
    if math.prod(to) == 0:
        return dense_strides(to)
    groups: list[list[int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == stride * size:
            groups[-1] = [groups[-1][0] * size, stride]
        else:
            groups.append([size, stride])
    result, index = [], len(groups) - 1
    left, step = groups[index] if groups else (1, 1)
    for size in reversed(to):
        if size == 1:
            result.append(step)
            continue
        if left == 1 and index > 0:
            index -= 1
            left, step = groups[index]
        if left % size:
            return None
        result.append(step)
        step *= size
        left //= size
    return tuple(reversed(result))


def _restrided(value: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    restrided: np.ndarray = value.transpose(memory_order(value.shape, strides))
    return restrided


def _is_scalar_constant(x: Tensor) -> bool:
    return x.value is not None and x.size == 1 and not x.varies


def _access(step: int, length: int) -> str:
    if step == 1 or length == 1:
        return "dense"
    return "same" if step == 0 else "strided"


def _padded(values: Sequence[int]) -> list[int]:
    return [*values, *([0] * (MAX_OUTER - len(values)))]
