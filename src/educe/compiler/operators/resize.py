"""Resizing: each output pixel is a weighted sum of input pixels, told by tables for each dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, F64
from educe.compiler.operators.base import Call, NotCompiled, known_values, operator, positive_axis
from educe.compiler.operators.pooling import lowest
from educe.compiler.operators.sliding import Sliding
from educe.compiler.operators.window import Window, check_table, with_channels_last
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MAX_SPATIAL = 3
_MAX_TAPS = 8
"""Taps that a pixel sums at once; where there are more, dimensions are resized one after the other."""


@dataclass(frozen=True, eq=False)
class Axis:
    """How one dimension is resized.

    Attributes:
        places: What each output's taps see, [outputs, taps]; -1 where it is extrapolated.
        weights: The weight of each tap.
    """

    places: np.ndarray
    weights: np.ndarray

    @classmethod
    def same(cls, size: int) -> Axis:
        """Return a dimension that stays as it is."""
        return cls(np.arange(size)[:, None], np.ones((size, 1)))


@operator("Resize")
def resize(
    low: Lowering,
    call: Call,
    x: Tensor,
    second: Tensor | None = None,
    third: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """The tensor at other sizes, by nearest neighbours, or linear or cubic interpolation."""
    roi, scales = (None, second) if call.version < 11 else (second, third)
    given = known_values(
        low, *(each if each is not None and each.size else None for each in (roi, scales, sizes))
    )
    if call.version < 11:
        call = _renewed(call)
    return _resized(low, x, _axes(call, x.shape, *given), call)


@operator("Upsample")
def upsample(low: Lowering, call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """The tensor at larger sizes, by nearest neighbours or linear interpolation."""
    given = known_values(low, scales) if scales is not None else [np.array(call.get("scales", ()))]
    call = _renewed(call)
    return _resized(low, x, _axes(call, x.shape, None, given[0], None), call)


def _renewed(call: Call) -> Call:
    """Return a node from before operator set 11 as one of today."""
    attributes = {
        "mode": call.get("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return Call(call.operator, call.domain, call.version, attributes, call.inputs, call.outputs, call.label)


def _axes(
    call: Call,
    shape: Sequence[int],
    roi: np.ndarray | None,
    scales: np.ndarray | None,
    sizes: np.ndarray | None,
) -> list[Axis]:
    """Return how each dimension is resized.

    Raises:
        ValueError: scales and sizes do not fit the shape.
    """
    rank = len(shape)
    axes = [positive_axis(int(axis), rank) for axis in call.get("axes") or range(rank)]
    given = sizes if sizes is not None else scales
    if given is None or given.size != len(axes) or (roi is not None and roi.size != 2 * len(axes)):
        raise ValueError(f"scales or sizes do not fit {len(axes)} dimensions")
    if 0 in shape or (given <= 0).any():
        raise NotCompiled
    wanted, factors = _sizes(call, [shape[axis] for axis in axes], scales, sizes)
    result = [Axis.same(size) for size in shape]
    for index, axis in enumerate(axes):
        part = (0.0, 1.0) if roi is None else (float(roi[index]), float(roi[len(axes) + index]))
        result[axis] = _axis(call, shape[axis], wanted[index], factors[index], part)
    return result


def _sizes(
    call: Call, sizes: Sequence[int], scales: np.ndarray | None, given: np.ndarray | None
) -> tuple[list[int], list[float]]:
    """Return output sizes and scales."""
    if given is None:
        assert scales is not None
        factors = [float(scale) for scale in scales]
        if not all(map(math.isfinite, factors)):
            raise ValueError(f"scales are {factors}")
        return [math.floor(size * factor) for size, factor in zip(sizes, factors, strict=True)], factors
    wanted = [int(size) for size in given]
    factors = [new / old for new, old in zip(wanted, sizes, strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return wanted, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [int(factor * size + 0.5) for size in sizes], [factor] * len(sizes)


def _axis(call: Call, size: int, wanted: int, scale: float, roi: tuple[float, float]) -> Axis:
    """Return how a dimension of `size` becomes one of `wanted`."""
    coordinates = call.get("coordinate_transformation_mode", "half_pixel")
    is_crop = coordinates == "tf_crop_and_resize"
    if size == wanted and math.isclose(scale, 1.0) and (not is_crop or roi == (0.0, 1.0)):
        return Axis.same(size)
    check_table(wanted, 1)
    x = _coordinates(coordinates, size, wanted, scale, roi)
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        places = _nearest(call.get("nearest_mode", "round_prefer_floor"), x)[:, None]
        weights = np.ones((wanted, 1))
    else:
        antialias = min(scale, 1.0) if call.get("antialias", 0) else 1.0
        a = float(call.get("cubic_coeff_a", -0.75))
        places, weights = _interpolated(mode, x, antialias, a)
    if call.get("exclude_outside", 0) and mode != "nearest":
        weights = np.where((places < 0) | (places >= size), 0.0, weights)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    places = np.clip(places, 0, size - 1)
    if is_crop:
        outside = (x < 0) | (x > size - 1)
        places = np.where(outside[:, None], -1, places)
        weights = np.where(outside[:, None], np.eye(1, weights.shape[1]), weights)
    return Axis(places, weights)


def _coordinates(mode: str, size: int, wanted: int, scale: float, roi: tuple[float, float]) -> np.ndarray:
    """Return where each output lies in the input (ONNX, Resize, `coordinate_transformation_mode`)."""
    y = np.arange(wanted, dtype=np.float64)
    length = scale * size
    if mode == "asymmetric":
        return y / scale
    if mode == "align_corners":
        return y * 0 if length == 1 else y * (size - 1) / (length - 1)
    if mode == "tf_crop_and_resize":
        begin, end = roi
        if length == 1:
            return y * 0 + (begin + end) * (size - 1) / 2
        return begin * (size - 1) + y * (end - begin) * (size - 1) / (length - 1)
    half_pixel = (y + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return half_pixel if length != 1 else y * 0 - 0.5
    if mode == "half_pixel_symmetric":
        return half_pixel + size / 2 * (1 - wanted / length)
    if mode != "half_pixel":
        raise ValueError(f"coordinate_transformation_mode is {mode!r}")
    return half_pixel


def _nearest(mode: str, x: np.ndarray) -> np.ndarray:
    places = {
        "floor": np.floor(x),
        "ceil": np.ceil(x),
        "round_prefer_ceil": np.floor(x + 0.5),
        "round_prefer_floor": np.ceil(x - 0.5),
    }
    if mode not in places:
        raise ValueError(f"nearest_mode is {mode!r}")
    return np.asarray(places[mode], np.int64)


def _interpolated(mode: str, x: np.ndarray, scale: float, a: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the taps around each place, and their weights, stretched by 1 / `scale` against aliasing."""
    if mode not in ("linear", "cubic"):
        raise ValueError(f"mode is {mode!r}")
    reach = 1 if mode == "linear" else 2
    first = math.floor(-reach / scale) + 1
    left = np.ceil(x).astype(np.int64) - 1
    taps = np.arange(first, 2 - first)[None, :]
    distance = np.abs((taps - (x - left)[:, None]) * scale)
    weights = np.clip(1 - distance, 0, 1) if mode == "linear" else _cubic(distance, a)
    return left[:, None] + taps, weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Return the cubic convolution kernel (Keys, IEEE Trans. ASSP 29, 1981)."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _resized(low: Lowering, x: Tensor, axes: list[Axis], call: Call) -> Tensor:
    """Return `x` resized, in whichever order of dimensions the kernel takes it."""
    outside = float(call.get("extrapolation_value", 0.0))
    order = list(range(x.rank))
    if _is_same(axes[0], x.shape[0]) and x.rank > 2:
        same = [axis for axis in order[1:] if _is_same(axes[axis], x.shape[axis])]
        if same:
            order = [0, same[0], *(axis for axis in order[1:] if axis != same[0])]
            seen = low.permute(x, order) if order != sorted(order) else x
            done = _resized_pixels(low, seen, [axes[axis] for axis in order[2:]], call, outside)
            return low.permute(done, np.argsort(order).tolist()) if order != sorted(order) else done
    if x.rank > _MAX_SPATIAL:
        raise NotCompiled
    shape = [axis.places.shape[0] for axis in axes]
    return low.reshape(_resized_pixels(low, low.reshape(x, (1, 1, *x.shape)), axes, call, outside), shape)


def _is_same(axis: Axis, size: int) -> bool:
    return axis.places.shape == (size, 1) and np.array_equal(axis.places[:, 0], np.arange(size))


def _resized_pixels(low: Lowering, x: Tensor, axes: list[Axis], call: Call, outside: float) -> Tensor:
    """Return `x` with its dimensions from the third on resized."""
    if len(axes) > _MAX_SPATIAL:
        raise NotCompiled
    kind = x.kind
    if call.get("mode", "nearest") == "nearest":
        window = Window(x.shape[2:], tuple(axis.places for axis in axes))
        source = with_channels_last(low, x)
        return Sliding(low, source, window, "max", start=lowest(kind), outside=outside).product()
    if kind not in (F32, F64):
        x = low.apply("Cast", x, to="f32")
    passes = [axes]
    if math.prod(axis.places.shape[1] for axis in axes) > _MAX_TAPS:
        passes = [
            [
                axis if index == place else Axis.same(_length(axes, x, index, place))
                for index, axis in enumerate(axes)
            ]
            for place in range(len(axes))
            if not _is_same(axes[place], x.shape[2 + place])
        ]
    for each in passes:
        window = Window(x.shape[2:], tuple(axis.places for axis in each))
        weights = tuple(axis.weights for axis in each)
        x = Sliding(
            low, with_channels_last(low, x), window, "blend", tap_weights=weights, outside=outside
        ).product()
    if not kind.is_float:
        x = low.apply("Round", x)
    return x if x.kind is kind else low.apply("Cast", x, to=kind.name)


def _length(axes: Sequence[Axis], x: Tensor, index: int, place: int) -> int:
    """Return the size of dimension `index` while `place` is resized, those before it being done."""
    return axes[index].places.shape[0] if index < place else x.shape[2 + index]
