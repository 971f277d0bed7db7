"""Operators of single elements: they stay expressions until something needs their result in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from educe.compiler.emit import F32, F64, I8, I16, U8, U16, Kind
from educe.compiler.kernels.scalars import SCALARS
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.tensor import Tensor, dtype_of, kind_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


def _elementwise(low: Lowering, call: Call, *inputs: Tensor) -> Tensor:
    _check_kinds(call, inputs)
    defaults = SCALARS[call.operator].attributes
    attributes = {name: _plain(call.get(name, default)) for name, default in defaults.items()}
    return low.apply(call.operator, *inputs, **attributes)


# Those whose inputs or attributes are not simply the scalar function's have a function of their own below.
_OWN = {"BitShift", "Cast", "Clip", "Identity", "Pow", "PowerOf", "PRelu", "Quantize", "Dequantize"}
operator(*(name for name in SCALARS if name not in _OWN))(_elementwise)


@operator("Identity")
def identity(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The same tensor."""
    return x


@operator("Cast")
def cast(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The elements in the element type `to`; out of its range they are what the target makes of them."""
    return as_kind(low, x, _kind(int(call.get("to"))))


@operator("CastLike")
def cast_like(low: Lowering, call: Call, x: Tensor, like: Tensor) -> Tensor:
    """The elements in the element type of `like`."""
    return as_kind(low, x, like.kind)


@operator("BitShift")
def bit_shift(low: Lowering, call: Call, x: Tensor, amount: Tensor) -> Tensor:
    """The bits moved to the left or to the right."""
    _check_kinds(call, (x, amount))
    direction = _plain(call.get("direction"))
    if direction not in ("LEFT", "RIGHT"):
        raise ValueError(f"direction is {direction!r} instead of 'LEFT' or 'RIGHT'")
    return low.apply("BitShift", x, amount, direction=direction)


@operator("Clip")
def clip(
    low: Lowering, call: Call, x: Tensor, least: Tensor | None = None, most: Tensor | None = None
) -> Tensor:
    """The elements between two bounds, of which either may be left out."""
    bounds = [each for each in (least, most) if each is not None]
    _check_kinds(call, (x, *bounds))
    if any(each.size != 1 for each in bounds):
        raise ValueError("a bound is not one element")
    least, most = (None if each is None else low.reshape(each, ()) for each in (least, most))
    if least is None or most is None:
        x = x if least is None else low.apply("Max", x, least)
        return x if most is None else low.apply("Min", x, most)
    return low.apply("Clip", x, least, most)


@operator("Pow")
def power(low: Lowering, call: Call, x: Tensor, exponent: Tensor) -> Tensor:
    """The powers, in the kind of the bases; the square, the cube and the square root are told apart."""
    _check_kinds(call, (x, exponent))
    if exponent.value is not None and exponent.size == 1 and exponent.rank <= x.rank:
        number = float(exponent.value.item())
        if number in (2.0, 3.0):
            return low.apply("PowerOf", x, exponent=int(number))
        if number == 0.5 and x.kind.is_float:
            return low.apply("PowerOf", x, exponent=0)
        if number == 1.0:
            return x
    return low.apply("Pow", x, exponent)


@operator("PRelu")
def prelu(low: Lowering, call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """The elements, those below 0 times a slope, which is broadcast to them."""
    _check_kinds(call, (x, slope))
    if np.broadcast_shapes(x.shape, slope.shape) != x.shape:
        raise ValueError(f"a slope of shape {list(slope.shape)} is not broadcast to {list(x.shape)}")
    return low.apply("PRelu", x, slope)


@operator("Dropout")
def dropout(
    low: Lowering,
    call: Call,
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
) -> list[Tensor]:
    """The same tensor, and a mask that is true everywhere; training is not compiled."""
    if training is not None and (training.value is None or training.value.any()):
        raise NotCompiled
    if len(call.outputs) < 2 or not call.outputs[1]:
        return [x]
    return [x, low.expand(low.constant(np.array(True)), x.shape)]


@operator("BatchNormalization")
def batch_normalization(
    low: Lowering, call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Each channel as (x - mean) / sqrt(variance + ε) · scale + bias; training is not compiled."""
    if call.get("training_mode", 0):
        raise NotCompiled
    channels = x.shape[1] if x.rank > 1 else 1
    parameters = (scale, bias, mean, variance)
    if any(each.shape != (channels,) for each in parameters):
        raise ValueError(
            f"parameters of shapes {[each.shape for each in parameters]} for {channels} channels"
        )
    kind = F64 if any(each.kind is F64 for each in (x, *parameters)) else F32
    epsilon = float(call.get("epsilon", 1e-5))
    if all(each.value is not None for each in parameters):
        factor, offset = _known_scaling(low, parameters, epsilon, kind)
    else:
        factor, offset = _scaling(low, parameters, epsilon, kind)
    shape = (channels, *[1] * (x.rank - 2))
    factor, offset = (low.reshape(each, shape) for each in (factor, offset))
    scaled = low.apply("Mul", as_kind(low, x, kind), factor)
    return as_kind(low, low.apply("Add", scaled, offset), x.kind)


def _scaling(
    low: Lowering, parameters: Sequence[Tensor], epsilon: float, kind: Kind
) -> tuple[Tensor, Tensor]:
    """Return by what a batch normalisation multiplies and what it adds, for each channel."""
    scale, bias, mean, variance = (as_kind(low, each, kind) for each in parameters)
    added = low.constant(np.array(epsilon, dtype_of(kind)))
    factor = low.need(low.apply("Div", scale, low.apply("Sqrt", low.apply("Add", variance, added))))
    return factor, low.apply("Sub", bias, low.apply("Mul", mean, factor))


def _known_scaling(
    low: Lowering, parameters: Sequence[Tensor], epsilon: float, kind: Kind
) -> tuple[Tensor, Tensor]:
    """Return what `_scaling` does, of parameters whose content is known."""
    scale, bias, mean, variance = (np.asarray(each.value, np.float64) for each in parameters)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        numbers = factor, bias - mean * factor
    factor_, offset = (low.constant(each.astype(dtype_of(kind))) for each in numbers)
    return factor_, offset


@operator("QuantizeLinear")
def quantize_linear(
    low: Lowering, call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """Integers that stand for the elements, by scales and zero points of all, of an axis, or of blocks."""
    chosen = int(call.get("output_dtype", 0))
    kind = zero_point.kind if zero_point is not None else _kind(chosen) if chosen else U8
    if zero_point is not None and chosen and _kind(chosen) is not kind:
        raise ValueError(f"output_dtype and the zero point differ: {_kind(chosen)} and {kind}")
    if kind not in (U8, I8, U16, I16):
        raise ValueError(f"elements are not quantized to {kind}")
    chosen = int(call.get("precision", 0))
    precision = _kind(chosen) if chosen else scale.kind
    if zero_point is None:
        zero_point = low.constant(np.zeros((), dtype_of(kind)))
    return _by_blocks(low, call, "Quantize", x, scale, zero_point, to=kind.name, precision=precision.name)


@operator("DequantizeLinear")
def dequantize_linear(
    low: Lowering, call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """What integers stand for: (x - zero point) · scale."""
    chosen = int(call.get("output_dtype", 0))
    kind = _kind(chosen) if chosen else scale.kind
    if zero_point is None:
        zero_point = low.constant(np.zeros((), dtype_of(x.kind)))
    if zero_point.kind is not x.kind:
        raise ValueError(f"the zero point is {zero_point.kind}, and the elements are {x.kind}")
    return _by_blocks(low, call, "Dequantize", x, scale, zero_point, to=kind.name)


def _by_blocks(
    low: Lowering, call: Call, function: str, x: Tensor, scale: Tensor, zero_point: Tensor, **attributes: str
) -> Tensor:
    """Apply `function` with the scales and zero points of all of `x`, of an axis, or of blocks of it."""
    block, shape = int(call.get("block_size", 0)), x.shape
    seen = shape
    if block and scale.rank == x.rank and x.rank:
        axis = call.axis(x.rank, 1)
        blocks = -(-shape[axis] // block)
        if scale.shape != (*shape[:axis], blocks, *shape[axis + 1 :]):
            raise ValueError(f"scales of shape {list(scale.shape)} for blocks of {block} along axis {axis}")
        if shape[axis] % block:
            raise NotCompiled
        seen = (*shape[:axis], blocks, block, *shape[axis + 1 :])
        each = (*shape[:axis], blocks, 1, *shape[axis + 1 :])
    elif scale.size == 1 and scale.rank <= 1:
        each = ()
    else:
        axis = call.axis(x.rank, 1)
        each = (shape[axis], *[1] * (x.rank - axis - 1))
        if scale.shape != each[:1]:
            raise ValueError(f"scales of shape {list(scale.shape)} for {shape[axis]} indices of axis {axis}")
    if zero_point.size != 1 and zero_point.shape != scale.shape:
        raise ValueError(f"zero points {list(zero_point.shape)} for scales {list(scale.shape)}")
    zero_point = low.reshape(zero_point, () if zero_point.size == 1 else each)
    result = low.apply(function, low.reshape(x, seen), low.reshape(scale, each), zero_point, **attributes)
    return low.reshape(result, shape)


def as_kind(low: Lowering, x: Tensor, kind: Kind) -> Tensor:
    """Return the elements of `x` as another kind."""
    return x if x.kind is kind else low.apply("Cast", x, to=kind.name)


def _kind(element_type: int) -> Kind:
    """Return the kind of ONNX's number of an element type; `NotCompiled` if kernels do not take it."""
    if element_type == onnx.TensorProto.STRING:
        raise NotCompiled
    kind = kind_of(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type)))
    if kind is None:
        raise NotCompiled
    return kind


def _plain(value: Any) -> Any:
    """Return an attribute's value as it is read in an expression."""
    return value.decode() if isinstance(value, bytes) else value


def _check_kinds(call: Call, inputs: Sequence[Tensor]) -> None:
    _check(call.operator, tuple(each.kind for each in inputs))


@cache
def _check(name: str, kinds: tuple[Kind, ...]) -> None:
    """Raise ValueError if ONNX has a definition of an operator that does not take inputs of these kinds."""
    if not onnx.defs.has(name):
        return
    schema = onnx.defs.get_schema(name)
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    bound: dict[str, Kind] = {}
    for place, kind in enumerate(kinds):
        type_ = schema.inputs[min(place, len(schema.inputs) - 1)].type_str
        if f"tensor({_ONNX_TYPES[kind.name]})" not in allowed.get(type_, [type_]):
            raise ValueError(f"{name} takes no {kind}")
        if bound.setdefault(type_, kind) is not kind:
            raise ValueError(f"{name} takes inputs of one element type, not {bound[type_]} and {kind}")


_ONNX_TYPES = {
    "f32": "float",
    "f64": "double",
    "f16": "float16",
    "bf16": "bfloat16",
    "bool": "bool",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
