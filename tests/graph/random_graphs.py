"""Random graphs: what exporters write, what they ought not to write, and chains of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import onnx
from onnx import helper

F32, I64, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(bool)
MAX_SIZE = 600
SPECIAL = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0)


@dataclass(frozen=True)
class Item:
    """A value of the graph."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Builder:
    """Writes a graph node by node, and knows every shape.

    Args:
        random: Decides everything.
        exact: Whether only operators are taken whose results do not depend on rounding.
    """

    def __init__(self, random: Random, exact: bool) -> None:
        self.random, self.exact = random, exact
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.pool: list[Item] = []
        self.inputs: dict[str, np.ndarray] = {}
        self._generator = np.random.default_rng(random.randrange(2**32))

    def input(self, dtype: np.dtype, shape: Sequence[int]) -> None:
        name = f"input{len(self.inputs)}"
        self.inputs[name] = self.array(dtype, shape)
        self.pool.append(Item(name, dtype, tuple(shape)))

    def array(self, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
        if dtype == BOOL:
            return self._generator.random(shape) < 0.5
        if dtype == I64:
            return self._generator.integers(-3, 4, shape)
        array = self._generator.standard_normal(shape).astype(np.float32)
        if self.exact:
            array = np.where(self._generator.random(shape) < 0.2, np.float32(-0.0), array)
            array = np.where(self._generator.random(shape) < 0.1, np.float32(np.nan), array)
        return np.asarray(array, np.float32)

    def weight(self, array: np.ndarray) -> str:
        if self.random.random() < 0.3:
            return self.node("Constant", [], value=onnx.numpy_helper.from_array(np.asarray(array)))[0]
        name = f"weight{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def node(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"{operator.lower()}{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def add(self, name: str, dtype: np.dtype, shape: Sequence[int]) -> Item:
        item = Item(name, dtype, tuple(shape))
        self.pool.append(item)
        return item

    def make(self, operator: str, inputs: Sequence[str], like: Item, **attributes: object) -> Item:
        """Add a node whose output has the type and shape of `like`."""
        return self.add(self.node(operator, inputs, **attributes)[0], like.dtype, like.shape)

    def pick(self, *dtypes: np.dtype, rank: int | None = None, min_rank: int = 0) -> Item | None:
        fitting = [
            item
            for item in self.pool
            if item.dtype in (dtypes or (F32, I64, BOOL))
            and (rank is None or len(item.shape) == rank)
            and len(item.shape) >= min_rank
        ]
        # Values made last are taken more often, so that chains grow.
        return self.random.choice(fitting[-self.random.choice((3, 8, 99)) :]) if fitting else None

    def partner(self, item: Item) -> Item:
        """Return a value that broadcasts with `item`: another one, or a constant."""
        others = [
            each for each in self.pool if each.dtype == item.dtype and _broadcasts(each.shape, item.shape)
        ]
        if others and self.random.random() < 0.5:
            return self.random.choice(others)
        kept = item.shape[self.random.randint(0, len(item.shape)) :]
        shape = tuple(size if self.random.random() < 0.6 else 1 for size in kept)
        if self.random.random() < 0.2:
            shape = (1,) * self.random.randint(0, 4)
        array = self.array(item.dtype, shape)
        if item.dtype != BOOL and self.random.random() < 0.6:
            array = np.full(shape, self.random.choice(SPECIAL), item.dtype)
        return Item(self.weight(array), item.dtype, shape)


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    try:
        return math.prod(np.broadcast_shapes(tuple(a), tuple(b))) <= MAX_SIZE
    except ValueError:
        return False


def binary(b: Builder) -> None:
    item = b.pick(F32, I64)
    if item is None:
        return
    other = b.partner(item)
    shape = np.broadcast_shapes(item.shape, other.shape)
    operators = ["Add", "Sub", "Mul", "Max", "Min"]
    if math.prod(shape) > MAX_SIZE:
        return
    pair = [item.name, other.name]
    b.random.shuffle(pair)
    b.add(b.node(b.random.choice(operators), pair)[0], item.dtype, shape)


def with_number(b: Builder) -> None:
    """Combine a value with one number, which may have more dimensions."""
    item = b.pick(F32)
    if item is None:
        return
    operator = b.random.choice(("Add", "Sub", "Mul", "Div", "Add" if b.exact else "Pow"))
    numbers = (1.0, 2.0, -0.5) if operator in ("Div", "Pow") else (0.0, -0.0, 1.0, 2.0)
    rank = b.random.choice((0, 0, *range(len(item.shape) + 2)))
    number = b.weight(np.full((1,) * rank, b.random.choice(numbers), F32))
    pair = [item.name, number]
    if operator not in ("Div", "Pow") and b.random.random() < 0.3:
        pair.reverse()
    b.add(b.node(operator, pair)[0], F32, np.broadcast_shapes(item.shape, (1,) * rank))


def unary(b: Builder) -> None:
    item = b.pick(F32)
    if item is None:
        return
    operators = ("Neg", "Abs", "Relu", "Identity", "Floor")
    if not b.exact:
        operators += ("Tanh", "Sigmoid", "Erf", "Sin", "HardSigmoid", "Elu")
    b.make(b.random.choice(operators), [item.name], item)


def nothing(b: Builder) -> None:
    item = b.pick(*((F32,) if b.random.random() < 0.6 else ()))
    if item is None:
        return
    kind = b.random.randrange(6)
    if kind == 0:
        b.make("Identity", [item.name], item)
    elif kind == 1:
        b.make("Cast", [item.name], item, to=helper.np_dtype_to_tensor_dtype(item.dtype))
    elif kind == 2 and item.dtype == F32:
        b.make("Dropout", [item.name], item)
    elif kind == 3 and item.dtype == F32:
        b.make("Clip", [item.name], item)
    elif kind == 4 and item.dtype == F32:
        b.make("Max" if b.exact else "Sum", [item.name], item)
    else:
        b.make("Expand", [item.name, b.weight(np.array(item.shape, np.int64))], item)


def logic(b: Builder) -> None:
    item = b.pick(BOOL)
    if item is None:
        return
    if b.random.random() < 0.3:
        b.make("Not", [item.name], item)
        return
    other = b.partner(item)
    shape = np.broadcast_shapes(item.shape, other.shape)
    if math.prod(shape) <= MAX_SIZE:
        b.add(b.node(b.random.choice(("And", "Or", "Xor")), [item.name, other.name])[0], BOOL, shape)


def comparison(b: Builder) -> None:
    item = b.pick(*((F32, I64) if b.exact else (I64,)))
    if item is None:
        return
    other = b.partner(item)
    shape = np.broadcast_shapes(item.shape, other.shape)
    if math.prod(shape) <= MAX_SIZE:
        b.add(
            b.node(b.random.choice(("Less", "Equal", "GreaterOrEqual")), [item.name, other.name])[0],
            BOOL,
            shape,
        )


def choice(b: Builder) -> None:
    condition, item = b.pick(BOOL), b.pick(F32, I64)
    if condition is None or item is None:
        return
    other = item if b.random.random() < 0.2 else b.partner(item)
    if not _broadcasts(condition.shape, item.shape):
        return
    shape = np.broadcast_shapes(condition.shape, item.shape)
    if _broadcasts(shape, other.shape):
        shape = np.broadcast_shapes(shape, other.shape)
        b.add(b.node("Where", [condition.name, item.name, other.name])[0], item.dtype, shape)


def cast(b: Builder) -> None:
    item = b.pick(I64, BOOL)
    if item is not None:
        to = b.random.choice((F32, I64))
        b.add(b.node("Cast", [item.name], to=helper.np_dtype_to_tensor_dtype(to))[0], to, item.shape)


def transpose(b: Builder) -> None:
    item = b.pick(min_rank=1)
    if item is None:
        return
    order = list(range(len(item.shape)))
    b.random.shuffle(order)
    for _ in range(b.random.choice((1, 1, 2))):
        shape = [item.shape[axis] for axis in order]
        item = b.add(b.node("Transpose", [item.name], perm=order)[0], item.dtype, shape)
        order = [order.index(axis) for axis in range(len(order))] if b.random.random() < 0.5 else order


def reshape(b: Builder) -> None:
    item = b.pick()
    if item is None:
        return
    # A size of 0 in a shape would mean that of the input.
    kind = b.random.randrange(5) if item.size else 1
    if kind == 0:
        shape = _refactored(b.random, item.size)
        wanted = list(shape)
        if wanted and item.size and b.random.random() < 0.5:
            wanted[b.random.randrange(len(wanted))] = -1
        b.add(b.node("Reshape", [item.name, b.weight(np.array(wanted, np.int64))])[0], item.dtype, shape)
    elif kind == 1:
        axis = b.random.randint(0, len(item.shape))
        shape = (*item.shape[:axis], 1, *item.shape[axis:])
        b.add(b.node("Unsqueeze", [item.name, b.weight(np.array([axis]))])[0], item.dtype, shape)
    elif kind == 2 and 1 in item.shape:
        axis = item.shape.index(1)
        shape = (*item.shape[:axis], *item.shape[axis + 1 :])
        b.add(b.node("Squeeze", [item.name, b.weight(np.array([axis]))])[0], item.dtype, shape)
    elif kind in (2, 3):
        axis = b.random.randint(0, len(item.shape))
        shape = (math.prod(item.shape[:axis]), math.prod(item.shape[axis:]))
        b.add(b.node("Flatten", [item.name], axis=axis)[0], item.dtype, shape)
    else:
        # The shape of another value of this size, known only at the run.
        same = b.random.choice([each for each in b.pool if each.size == item.size])
        (shape_name,) = b.node("Shape", [same.name])
        b.add(b.node("Reshape", [item.name, shape_name])[0], item.dtype, same.shape)


def turning(b: Builder) -> None:
    """Exchange the last two dimensions, by way of three."""
    item = b.pick(F32, min_rank=3)
    if item is None or 0 in item.shape:
        return
    *before, rows, columns = item.shape
    (shape,) = b.node("Shape", [item.name])
    first, last = (b.weight(np.array([number])) for number in (-2, -1))
    (length,) = b.node("Slice", [shape, first, last])
    parts = [b.weight(np.array([-1])), length, b.weight(np.array([columns]))]
    (flat,) = b.node("Reshape", [item.name, b.node("Concat", parts, axis=0)[0]])
    (turned,) = b.node("Transpose", [flat], perm=[0, 2, 1])
    (kept,) = b.node("Slice", [shape, b.weight(np.array([0])), first])
    (wanted,) = b.node("Concat", [kept, parts[2], length], axis=0)
    b.add(b.node("Reshape", [turned, wanted])[0], F32, (*before, columns, rows))


def _refactored(random: Random, size: int) -> tuple[int, ...]:
    shape: list[int] = []
    while size > 1 and len(shape) < 3 and random.random() < 0.8:
        divisor = random.choice([each for each in range(1, size + 1) if size % each == 0])
        shape.append(divisor)
        size //= divisor
    return (*shape, size)


def slicing(b: Builder) -> None:
    item = b.pick(min_rank=1)
    if item is None:
        return
    axis = b.random.randrange(len(item.shape))
    size = item.shape[axis]
    start, end, step = b.random.randint(0, size), b.random.randint(0, size), b.random.choice((1, 1, 2))
    if b.random.random() < 0.4:
        start, end, step = 0, 2**31, 1
    shape = list(item.shape)
    shape[axis] = len(range(*slice(start, end, step).indices(size)))
    numbers = [b.weight(np.array([value])) for value in (start, end, axis, step)]
    b.add(b.node("Slice", [item.name, *numbers])[0], item.dtype, shape)


def joining(b: Builder) -> None:
    item = b.pick(min_rank=1)
    if item is None or item.size * 2 > MAX_SIZE:
        return
    axis = b.random.randrange(len(item.shape))
    count = b.random.choice((1, 2, 2))
    fitting = [each for each in b.pool if each.dtype == item.dtype and each.shape == item.shape]
    names = [item.name, *(b.random.choice(fitting).name for _ in range(count - 1))]
    shape = [size * count if place == axis else size for place, size in enumerate(item.shape)]
    b.add(b.node("Concat", names, axis=axis)[0], item.dtype, shape)


def padding(b: Builder) -> None:
    item = b.pick(F32, I64, min_rank=1)
    if item is None or item.size > 150:
        return
    width = b.random.choice((0, 0, 1))
    widths = b.weight(np.array([0] * (len(item.shape) - 1) + [width] + [0] * len(item.shape), np.int64))
    shape = (*item.shape[:-1], item.shape[-1] + width)
    b.add(b.node("Pad", [item.name, widths])[0], item.dtype, shape)


def sizes(b: Builder) -> None:
    item = b.pick(min_rank=1)
    if item is None:
        return
    (shape,) = b.node("Shape", [item.name])
    index = b.weight(np.array(b.random.randrange(len(item.shape))))
    (size,) = b.node("Gather", [shape, index], axis=0)
    b.add(size, I64, ())
    if b.random.random() < 0.5:
        b.add(b.node("Size", [item.name])[0], I64, ())


def gathering(b: Builder) -> None:
    item = b.pick(min_rank=1)
    if item is None or 0 in item.shape:
        return
    axis = b.random.randrange(len(item.shape))
    indices = b._generator.integers(0, item.shape[axis], 2)
    shape = [2 if place == axis else size for place, size in enumerate(item.shape)]
    if math.prod(shape) <= MAX_SIZE:
        b.add(b.node("Gather", [item.name, b.weight(indices)], axis=axis)[0], item.dtype, shape)


def reduction(b: Builder) -> None:
    item = b.pick(I64 if b.exact else F32, min_rank=1)
    if item is None or 0 in item.shape:
        return
    axis, keepdims = b.random.randrange(len(item.shape)), b.random.randrange(2)
    shape = [
        1 if place == axis else size for place, size in enumerate(item.shape) if keepdims or place != axis
    ]
    operator = b.random.choice(("ReduceSum", "ReduceMax", *(() if b.exact else ("ReduceMean",))))
    b.add(b.node(operator, [item.name, b.weight(np.array([axis]))], keepdims=keepdims)[0], item.dtype, shape)


def constants(b: Builder) -> None:
    """Add an operator of constants alone."""
    shape = _refactored(b.random, b.random.choice((1, 4, 6)))
    array = b.array(F32, shape)
    first = b.node(b.random.choice(("Neg", "Abs", "Floor")), [b.weight(array)])[0]
    b.add(b.node("Add", [first, b.weight(array)])[0], F32, shape)


def again(b: Builder) -> None:
    """Repeat a node, so that there is something in common."""
    items = {item.name: item for item in b.pool}
    known = [node for node in b.nodes if len(node.output) == 1 and node.output[0] in items]
    if known:
        node = b.random.choice(known)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[0] = f"again{len(b.nodes)}"
        b.nodes.append(copy)
        item = items[node.output[0]]
        b.add(copy.output[0], item.dtype, item.shape)


def branch(b: Builder) -> None:
    """Choose by a size between two products of an outer value."""
    item = b.pick(F32, min_rank=1)
    if item is None:
        return
    (shape,) = b.node("Shape", [item.name], start=0, end=1)
    (size,) = b.node("Squeeze", [shape])
    condition = b.node("Equal", [size, b.weight(np.array(b.random.choice((item.shape[0], 77))))])[0]
    output = helper.make_empty_tensor_value_info
    number = onnx.numpy_helper.from_array(np.array(2.0, F32))
    serial = len(b.nodes)
    bodies = []
    for name, last in (("then", "Add"), ("else", "Mul")):
        names = [f"{name}{serial}_{index}" for index in range(3)]
        nodes = [
            helper.make_node("Constant", [], [names[0]], value=number),
            helper.make_node("Identity", [item.name], [names[1]]),
            helper.make_node(last, names[:2], [names[2]]),
        ]
        bodies.append(helper.make_graph(nodes, name, [], [output(names[2])]))
    b.make("If", [condition], item, then_branch=bodies[0], else_branch=bodies[1])


def product(b: Builder) -> None:
    item = b.pick(F32, rank=2)
    if item is None or 0 in item.shape:
        return
    columns = b.random.randint(1, 5)
    shape = (item.shape[0], columns)
    weight = b.array(F32, (item.shape[1], columns)) / 2
    if b.random.random() < 0.5:
        value = b.node("MatMul", [item.name, b.weight(weight)])[0]
    else:
        bias = [b.weight(b.array(F32, (columns,)))] if b.random.random() < 0.5 else []
        turned = b.random.randrange(2)
        names = [item.name, b.weight(weight.T if turned else weight), *bias]
        value = b.node("Gemm", names, transB=turned, alpha=0.5, beta=b.random.choice((1.0, 0.25)))[0]
    if b.random.random() < 0.2:
        (parted,) = b.node("Reshape", [value, b.weight(np.array([shape[0], 1, -1]))])
        b.add(b.node(b.random.choice(("Relu", "Tanh")), [parted])[0], F32, (shape[0], 1, columns))
        return
    _channels(b, b.add(value, F32, shape), columns, last=True)


def sums(b: Builder) -> None:
    item = b.pick(F32, rank=3)
    if item is None or 0 in item.shape:
        return
    labels, columns = b.random.sample("ijk", 3), b.random.randint(1, 4)
    lengths = dict(zip(labels, item.shape, strict=True)) | {"l": columns}
    other, out = b.random.choice((("ijl", "ikl"), ("kl", "ijl"), ("jl", "ikl"), ("ijk", "i")))
    other, out = ("".join(b.random.sample(each, len(each))) for each in (other, out))
    weight = b.array(F32, [lengths[label] for label in other]) / 2
    equation = f"{''.join(labels)},{other}->{out}"
    (value,) = b.node("Einsum", [item.name, b.weight(weight)], equation=equation)
    b.add(value, F32, [lengths[label] for label in out])


def convolution(b: Builder) -> None:
    item = b.pick(F32, rank=3)
    if item is None or 0 in item.shape:
        return
    channels = b.random.randint(1, 4)
    weight = b.array(F32, (channels, item.shape[1], 1)) / 2
    bias = [b.weight(b.array(F32, (channels,)))] if b.random.random() < 0.5 else []
    value = b.node("Conv", [item.name, b.weight(weight), *bias])[0]
    _channels(b, b.add(value, F32, (item.shape[0], channels, item.shape[2])), channels, last=False)


def _channels(b: Builder, item: Item, channels: int, last: bool) -> None:
    """Scale and shift the channels of a product, in one of the ways of exporters."""
    for _ in range(b.random.randint(0, 3)):
        kind = b.random.randrange(3)
        if kind == 0 and (not last or b.random.random() < 0.5):
            numbers = [b.array(F32, (channels,)) for _ in range(3)]
            numbers.append(np.abs(b.array(F32, (channels,))) + np.float32(0.5))
            item = b.make("BatchNormalization", [item.name, *map(b.weight, numbers)], item)
            continue
        shape = (channels,) if last else (channels, 1)
        if b.random.random() < 0.3:
            shape = (1,) * b.random.randint(0, len(item.shape))
        number = b.weight(b.array(F32, shape) + np.float32(3))
        pair = [item.name, number]
        if b.random.random() < 0.3:
            pair.reverse()
        operator = b.random.choice(("Mul", "Add", "Sub", "Div"))
        if operator == "Div" and pair[0] == number:
            return
        item = b.make(operator, pair, item)


def activation(b: Builder) -> None:
    item = b.pick(F32)
    if item is None:
        return
    rank = b.random.choice((0, 0, 1, len(item.shape), len(item.shape) + 1))
    shape = np.broadcast_shapes(item.shape, (1,) * rank)
    x = item.name

    def number(value: float) -> str:
        return b.weight(np.full((1,) * rank, value, F32))

    def op(operator: str, *inputs: str) -> str:
        names = list(inputs)
        if operator in ("Add", "Mul") and b.random.random() < 0.5:
            names.reverse()
        return b.node(operator, names)[0]

    kind = b.random.randrange(7)
    if kind == 6:
        value = op("Div", x, op("Add", op("Exp", op("Mul", x, number(-1.5))), number(1)))
    elif kind == 0:
        inner = op("Add", op("Erf", op("Div", x, number(math.sqrt(2)))), number(1))
        value = op("Mul", op("Mul", x, inner), number(0.5))
        if b.random.random() < 0.5:
            value = op("Mul", op("Mul", x, number(0.5)), inner)
    elif kind == 1:
        cube = op("Mul", op("Pow", x, number(3)), number(0.044715))
        inner = op("Tanh", op("Mul", op("Add", x, cube), number(math.sqrt(2 / math.pi))))
        value = op("Mul", x, op("Mul", op("Add", inner, number(1)), number(0.5)))
    elif kind == 2:
        value = op("Mul", x, op("Sigmoid", x if b.random.random() < 0.5 else op("Mul", x, number(1.702))))
    elif kind == 3:
        clip = op("Clip", op("Add", x, number(3)), b.weight(np.array(0, F32)), b.weight(np.array(6, F32)))
        value = op("Div", op("Mul", x, clip), number(6))
    elif kind == 4:
        value = op("Mul", x, op("Tanh", op("Softplus", x)))
    else:
        value = op("Mul", x, op("Tanh", op("Log", op("Add", op("Exp", op("Min", x, number(3))), number(1)))))
    if not (kind == 4 or (kind == 2 and rank > len(item.shape))):
        b.add(value, F32, shape)


def normalization(b: Builder) -> None:
    item = b.pick(F32, min_rank=1)
    if item is None or 0 in item.shape:
        return
    rank = len(item.shape)
    axis = b.random.choice((rank - 1, rank - 1, b.random.randrange(rank)))
    axes = b.weight(np.array([b.random.choice((axis, axis - rank))]))
    epsilon, centered = b.weight(np.array(1e-2, F32)), b.random.random() < 0.6
    mean, value, variance = "", item.name, ""
    if centered:
        (mean,) = b.node("ReduceMean", [value, axes])
        (value,) = b.node("Sub", [value, mean])
    if centered and b.random.random() < 0.3:
        (difference,) = b.node("Sub", [_mean_of_squares(b, item.name, axes), b.node("Mul", [mean, mean])[0]])
        (variance,) = b.node("Relu", [difference])
    variance = variance or _mean_of_squares(b, value, axes)
    (total,) = b.node("Add", [variance, epsilon])
    weights = [b.weight(b.array(F32, (item.shape[axis], *(1,) * (rank - 1 - axis)))) for _ in range(2)]
    kind = b.random.randrange(4)
    if kind == 0:
        made = b.make("Div", [value, b.node("Sqrt", [total])[0]], item)
    elif kind == 1:
        made = b.make("Mul", [value, b.node("Reciprocal", b.node("Sqrt", [total]))[0]], item)
    else:
        (inverse,) = b.node("Pow", [total, b.weight(np.array(-0.5, F32))])
        (inverse,) = b.node("Mul", [inverse, weights[0]])
        if kind == 3 and centered:
            (rest,) = b.node("Sub", [weights[1], b.node("Mul", [mean, inverse])[0]])
            b.make("Add", [b.node("Mul", [item.name, inverse])[0], rest], item)
            return
        made = b.make("Mul", [value, inverse], item)
    if b.random.random() < 0.7:
        if kind < 2:
            made = b.make("Mul", [made.name, weights[0]], made)
        b.make("Add", [made.name, weights[1]], made)


def _mean_of_squares(b: Builder, x: str, axes: str) -> str:
    if b.random.random() < 0.5:
        (square,) = b.node("Mul", [x, x])
    else:
        (square,) = b.node("Pow", [x, b.weight(np.array(2, F32))])
    return b.node("ReduceMean", [square, axes])[0]


def groups(b: Builder) -> None:
    item = b.pick(F32, rank=3)
    if item is None or 0 in item.shape or item.shape[1] % 2:
        return
    (apart,) = b.node("Reshape", [item.name, b.weight(np.array([0, 2, -1]))])
    ones = [b.weight(np.ones(2, F32)), b.weight(np.zeros(2, F32))]
    (value,) = b.node("InstanceNormalization", [apart, *ones], epsilon=1e-2)
    (together,) = b.node("Reshape", [value, b.node("Shape", [item.name])[0]])
    numbers = [b.weight(b.array(F32, (item.shape[1], 1))) for _ in range(2)]
    (value,) = b.node("Mul", [together, numbers[0]])
    b.add(b.node("Add", [value, numbers[1]])[0], F32, item.shape)


def attention(b: Builder) -> None:
    item = b.pick(F32, min_rank=1)
    if item is None or 0 in item.shape or item.size % 2 or item.size > 64:
        return
    shape = (1, 2, item.size // 2, 1) if b.random.random() < 0.7 else (2, item.size // 2, 1)
    rank, length = len(shape), item.size // 2
    size = b.weight(np.array(shape))
    q, k, v = (b.node("Reshape", [item.name, size])[0] for _ in range(3))
    (turned,) = b.node("Transpose", [k], perm=[*range(rank - 2), rank - 1, rank - 2])
    scale = b.weight(np.array(0.3, F32))
    if b.random.random() < 0.5:
        (q,) = b.node("Mul", [q, scale])
    (scores,) = b.node("MatMul", [q, turned])
    if b.random.random() < 0.5:
        (scores,) = b.node("Div", [scores, b.weight(np.array(2, F32))])
    if b.random.random() < 0.2:
        (inner,) = b.node("Tanh", [b.node("Div", [scores, b.weight(np.array(3, F32))])[0]])
        (scores,) = b.node("Mul", [inner, b.weight(np.array(3, F32))])
    whole = (*(1,) * (rank - 2), length, length)
    for _ in range(b.random.choice((0, 1, 1, 2))):
        scores = _masked(b, scores, whole)
    (weights,) = b.node("Softmax", [scores], axis=-1)
    if b.random.random() < 0.5:
        (undefined,) = b.node("IsNaN", [weights])
        (weights,) = b.node("Where", [undefined, b.weight(np.array(0, F32)), weights])
    b.add(b.node("MatMul", [weights, v])[0], F32, shape)


def rotation(b: Builder) -> None:
    item = b.pick(F32, min_rank=1)
    if item is None or item.shape[-1] % 2 or 0 in item.shape:
        return
    size, rank, interleaved = item.shape[-1], len(item.shape), b.random.random() < 0.5
    bounds = ((0, size, 2), (1, size, 2)) if interleaved else ((0, size // 2, 1), (size // 2, 2**40, 1))
    last = b.weight(np.array([b.random.choice((-1, rank - 1))]))
    if interleaved or b.random.random() < 0.5:
        parts = []
        for start, stop, step in bounds:
            numbers = [b.weight(np.array([each])) for each in (start, stop)]
            parts += b.node("Slice", [item.name, *numbers, last, b.weight(np.array([step]))])
    else:
        parts = b.node("Split", [item.name], 2, axis=-1, num_outputs=2)
    parts = [*b.node("Neg", [parts[1]]), parts[0]]
    if interleaved:
        behind = b.weight(np.array([-1]))
        parts = [b.node("Unsqueeze", [each, behind])[0] for each in parts]
    (turned,) = b.node("Concat", parts, axis=-1)
    if interleaved:
        (shape,) = b.node("Shape", [turned], start=0, end=rank - 1)
        (turned,) = b.node("Reshape", [turned, b.node("Concat", [shape, behind], axis=0)[0]])
    pairs = [[each, b.weight(b.array(F32, (*item.shape[1:-1], size)))] for each in (item.name, turned)]
    for pair in pairs:
        b.random.shuffle(pair)
    products = [b.node("Mul", pair)[0] for pair in pairs]
    b.random.shuffle(products)
    b.make("Add", products, item)


def _masked(b: Builder, scores: str, shape: Sequence[int]) -> str:
    """Return scores after a mask that is added, or one that chooses among them."""
    if b.random.random() < 0.5:
        return b.node("Add", [scores, b.weight(b.array(F32, shape))])[0]
    number = b.weight(np.array(b.random.choice((-math.inf, float(np.finfo(F32).min), -1e9, -4, 2)), F32))
    pair = [scores, number]
    if b.random.random() < 0.5:
        pair.reverse()
    return b.node("Where", [b.weight(b.array(BOOL, shape)), *pair])[0]


EXACT: tuple[Callable[[Builder], None], ...] = (
    binary,
    with_number,
    with_number,
    unary,
    nothing,
    logic,
    comparison,
    choice,
    cast,
    transpose,
    reshape,
    turning,
    slicing,
    joining,
    padding,
    sizes,
    gathering,
    reduction,
    constants,
    again,
    branch,
)
ROUNDED = (*EXACT, product, sums, convolution, activation, normalization, groups, attention, rotation)


def random_model(random: Random, exact: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model and inputs for it; its floating-point results are exact if `exact`."""
    b = Builder(random, exact)
    b.input(F32, (random.randint(1, 3), 4, random.choice((1, 3))))
    b.input(F32, (random.choice((1, 4)), random.randint(1, 4)))
    b.input(I64, (random.choice((0, 1, 3)), 2))
    b.input(BOOL, (random.choice((1, 4)), 1))
    writers = EXACT if exact else ROUNDED
    for _ in range(random.randint(12, 30)):
        random.choice(writers)(b)
    made = [item for item in b.pool if item.name not in b.inputs]
    outputs = random.sample(made, min(len(made), 4)) + made[-1:]
    unique = {item.name: item for item in outputs}.values()
    symbolic = random.random() < 0.5
    inputs = []
    for name, array in b.inputs.items():
        shape = [
            f"{name}_{axis}" if symbolic and axis != 1 else size for axis, size in enumerate(array.shape)
        ]
        inputs.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)
        )
    graph = helper.make_graph(
        b.nodes,
        "random",
        inputs,
        [
            helper.make_tensor_value_info(each.name, helper.np_dtype_to_tensor_dtype(each.dtype), None)
            for each in unique
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in b.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, b.inputs
