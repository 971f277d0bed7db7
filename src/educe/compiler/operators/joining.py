"""Operators that put tensors together: each part is computed or copied straight into its place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.operators.base import Call, NotCompiled, known_values, operator, positive_axis
from educe.compiler.operators.movement import integers, sliced
from educe.compiler.tensor import Tensor, dtype_of, memory_order, strides_in_order

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MAX_PARTS = 100
"""Launches up to which an operator may be made of copies of parts."""

_MAX_RANK = 8
"""Dimensions that a copy may surely have."""


@operator("Concat")
def concat(low: Lowering, call: Call, *parts: Tensor) -> Tensor:
    """The parts one after the other along `axis`."""
    first = parts[0]
    axis = call.axis(first.rank, 1)
    for part in parts:
        shapes = [[*each.shape[:axis], *each.shape[axis + 1 :]] for each in (first, part)]
        if part.rank != first.rank or shapes[0] != shapes[1] or part.kind != first.kind:
            raise ValueError(f"{first} and {part} do not join along dimension {axis}")
    if len(parts) == 1:
        return first
    shape = list(first.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    out = _like(low, max(parts, key=lambda part: part.size), shape)
    start = 0
    for part in parts:
        stop = start + part.shape[axis]
        low.write(part, sliced(low, out, axis, range(start, stop)))
        start = stop
    return out


def _like(low: Lowering, part: Tensor, shape: Sequence[int]) -> Tensor:
    """Return memory for a tensor of `shape` whose dimensions lie in the order of those of `part`."""
    if min(part.strides, default=1) < 1:
        return low.empty(part.kind, shape)
    # A size of 1 says nothing of a dimension's place: it is taken as the slowest.
    single = [axis for axis, size in enumerate(part.shape) if size == 1]
    others = [axis for axis in memory_order(part.shape, part.strides) if part.shape[axis] != 1]
    order = sorted([*single, *others]) if others == sorted(others) else [*single, *others]
    return low.empty(part.kind, shape, strides_in_order(shape, order))


@operator("Tile")
def tile(low: Lowering, call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """The whole repeated along each dimension."""
    numbers = integers(low, repeats)
    if len(numbers) != x.rank or min(numbers, default=0) < 0:
        raise ValueError(f"a tensor of {x.rank} dimensions cannot be repeated {numbers} times")
    if all(number == 1 for number in numbers):
        return x
    out = low.empty(x.kind, [size * number for size, number in zip(x.shape, numbers, strict=True)])
    source, wide, strides = [], [], []
    for size, number, stride in zip(x.shape, numbers, out.strides, strict=True):
        source += [1, size] if number != 1 else [size]
        wide += [number, size] if number != 1 else [size]
        strides += [size * stride, stride] if number != 1 else [stride]
    if len(wide) - wide.count(1) > _MAX_RANK:
        raise NotCompiled
    low.copy(low.expand(low.reshape(x, source), wide), out.view(wide, strides))
    return out


@operator("Pad")
def pad(
    low: Lowering,
    call: Call,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """With elements added around: a constant, or others of the same tensor; cut where `pads` are negative."""
    known_values(low, pads, axes)
    amounts = integers(low, pads)
    places = list(range(x.rank))
    if axes is not None:
        places = [positive_axis(axis, x.rank) for axis in integers(low, axes)]
    if len(amounts) != 2 * len(places):
        raise ValueError(f"{len(amounts)} pads for {len(places)} axes")
    begins, ends = [0] * x.rank, [0] * x.rank
    for index, axis in enumerate(places):
        begins[axis], ends[axis] = amounts[index], amounts[index + len(places)]
        size = x.shape[axis]
        x = sliced(low, x, axis, range(min(max(-begins[axis], 0), size), max(size - max(-ends[axis], 0), 0)))
    widths = [(max(a, 0), max(b, 0)) for a, b in zip(begins, ends, strict=True)]
    if not any(map(any, widths)):
        return x
    mode = call.get("mode", "constant")
    if mode != "constant":
        return _mirrored(low, x, widths, mode)
    if value is None:
        value = low.constant(np.zeros((), dtype_of(x.kind)))
    return framed(low, x, widths, low.reshape(value, ()))


def framed(low: Lowering, x: Tensor, widths: Sequence[tuple[int, int]], value: Tensor) -> Tensor:
    """Return `x` with `value` around it: so many before and after along each dimension."""
    out = _like(low, x, [size + sum(width) for size, width in zip(x.shape, widths, strict=True)])
    inner = out
    for axis, (before, after) in enumerate(widths):
        size = inner.shape[axis]
        for places in (range(before), range(size - after, size)):
            if len(places):
                slab = sliced(low, inner, axis, places)
                low.copy(low.expand(value, slab.shape), slab)
        inner = sliced(low, inner, axis, range(before, size - after))
    low.write(x, inner)
    return out


def _mirrored(low: Lowering, x: Tensor, widths: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Return `x` surrounded by its own elements, made of views of `x`."""
    if mode not in ("edge", "reflect", "wrap"):
        raise ValueError(f"there is no mode {mode!r}")
    if x.size == 0:
        raise ValueError("nothing to mirror in an empty tensor")
    runs = []
    for size, width in zip(x.shape, widths, strict=True):
        places = np.pad(np.arange(size), width, mode=mode)  # type: ignore[call-overload]
        runs.append(_runs(places.tolist()))
    if math.prod(len(each) for each in runs) > _MAX_PARTS:
        raise NotCompiled
    out = _like(low, x, [size + sum(width) for size, width in zip(x.shape, widths, strict=True)])
    for region in itertools.product(*runs):
        source, part = x, out
        for axis, (start, places) in enumerate(region):
            count = len(places)
            part = sliced(low, part, axis, range(start, start + count))
            if isinstance(places, range):
                source = sliced(low, source, axis, places)
            else:
                source = sliced(low, source, axis, range(places[0], places[0] + 1))
        low.copy(low.expand(source, part.shape), part)
    return out


def _runs(places: Sequence[int]) -> list[tuple[int, range | list[int]]]:
    """Return `places` cut into evenly stepping pieces, each with its start; a list repeats one place."""
    runs: list[tuple[int, range | list[int]]] = []
    start = 0
    while start < len(places):
        step = places[start + 1] - places[start] if start + 1 < len(places) else 1
        stop = start + 1
        while stop < len(places) and places[stop] - places[stop - 1] == step:
            stop += 1
        if step:
            runs.append((start, range(places[start], places[stop - 1] + step, step)))
        else:
            runs.append((start, list(places[start:stop])))
        start = stop
    return runs


@operator("CenterCropPad")
def center_crop_pad(low: Lowering, call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Cut or filled up with zeros around the middle, to the sizes given."""
    sizes = integers(low, shape)
    axes = [positive_axis(int(axis), x.rank) for axis in call.get("axes", range(x.rank))]
    if len(sizes) != len(axes) or min(sizes, default=0) < 0:
        raise ValueError(f"sizes {sizes} for the axes {axes}")
    widths = [(0, 0)] * x.rank
    for axis, wanted in zip(axes, sizes, strict=True):
        size = x.shape[axis]
        if wanted < size:
            start = (size - wanted) // 2
            x = sliced(low, x, axis, range(start, start + wanted))
        else:
            before = (wanted - size) // 2
            widths[axis] = (before, wanted - size - before)
    if not any(map(any, widths)):
        return x
    return framed(low, x, widths, low.constant(np.zeros((), dtype_of(x.kind))))


@operator("Col2Im")
def col2im(low: Lowering, call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """The sum of the blocks of a picture, each where it was taken from."""
    known_values(low, image, block)
    sizes, kernel = integers(low, image), integers(low, block)
    rank = len(sizes)
    strides = [int(each) for each in call.get("strides", [1] * rank)]
    dilations = [int(each) for each in call.get("dilations", [1] * rank)]
    pads = [int(each) for each in call.get("pads", [0] * 2 * rank)]
    if len({rank, len(kernel), len(strides), len(dilations), len(pads) // 2}) > 1 or min(kernel) < 1:
        raise ValueError(f"an image of {sizes} with blocks of {kernel}")
    if math.prod(kernel) > _MAX_PARTS or x.rank != 3 or min(pads) < 0:
        raise NotCompiled
    padded = [size + pads[axis] + pads[rank + axis] for axis, size in enumerate(sizes)]
    counts = [
        (padded[axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1 for axis in range(rank)
    ]
    channels = x.shape[1] // math.prod(kernel)
    if min(counts) < 1 or x.shape[1:] != (channels * math.prod(kernel), math.prod(counts)):
        raise ValueError(f"{x} does not hold blocks of {kernel} at {counts} places")
    columns = low.reshape(x, [x.shape[0], channels, *kernel, *counts])
    whole = low.empty(x.kind, [x.shape[0], channels, *padded])
    zero = low.constant(np.zeros((), dtype_of(x.kind)))
    low.copy(low.expand(zero, whole.shape), whole)
    for place in itertools.product(*(range(size) for size in kernel)):
        part, target = columns, whole
        for axis, index in enumerate(place):
            part = sliced(low, part, axis + 2, range(index, index + 1))
            start = index * dilations[axis]
            places = range(start, start + strides[axis] * counts[axis], strides[axis])
            target = sliced(low, target, axis + 2, places)
        low.write(low.apply("Add", target, low.reshape(part, target.shape)), target)
    for axis, size in enumerate(sizes):
        whole = sliced(low, whole, axis + 2, range(pads[axis], pads[axis] + size))
    return whole
