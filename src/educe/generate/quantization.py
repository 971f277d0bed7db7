"""Weights to few bits: those that files have as they are, any others with the scales that lose least.

No data is needed. Scales are searched by the sum of squared errors of the weights, as `OCTAV` and others do
(Sakr et al., 2022, arxiv.org/abs/2206.06501): a smaller scale clips the largest numbers and rounds all others
less. The best is then moved to the least-squares solution for the codes that it gave.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from educe.model.checkpoint import Weight
from educe.model.quantized import MAX_MULTIPLIER, PANEL, STEP, QuantizedWeight, packed_depth

_MOST_8, _LEAST_4, _MOST_4, _ZERO_4 = 127, -8, 7, 8
# What the largest number of a row or group is rounded to; the first clips nothing.
_LARGEST_8 = (127.0, 133.0, 141.0, 152.0)
_LARGEST_4 = (7.0, 7.5, 8.0, 8.5, 9.0, 10.0)
# The multiplier that the group with the largest numbers has.
_LARGEST_MULTIPLIER = (15.0, 15.4, 14.6, 14.2, 13.5, 12.5, 11.5)


@dataclass(frozen=True)
class Format:
    """How the numbers of a matrix are written; `educe.model.quantized` says what each means.

    Attributes:
        bits: Bits of a code, 4 or 8.
        block: Numbers that share a scale; 0 for all of a row.
        group: Numbers that share a multiplier; 0 if there are none.
        scale: The type of scales, and of minimums.
        has_minimums: Whether blocks have a minimum.
    """

    bits: int
    block: int = 0
    group: int = 0
    scale: type[np.floating[Any]] = np.float32
    has_minimums: bool = False

    def attributes(self, shape: tuple[int, int]) -> dict[str, int]:
        """Return the attributes of nodes that read a packed weight of a shape."""
        outputs, inputs = shape
        found = {"in_features": inputs, "out_features": outputs, "block": self.block or inputs}
        return found | {"group": self.group} if self.group else found

    def arrays(self, shape: tuple[int, int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return type and shape of each array of the packed weight, in the order in which nodes read them."""
        outputs, inputs = shape
        panels, steps = -(-outputs // PANEL), packed_depth(inputs) * self.bits // (8 * STEP)
        of_blocks = np.dtype(self.scale), (panels, -(-inputs // self.block) if self.block else 1, PANEL)
        found = {
            "codes": (np.dtype(np.int8 if self.bits == 8 else np.uint8), (panels, steps, PANEL, STEP)),
            "scales": of_blocks,
        }
        if self.group:
            found["multipliers"] = np.dtype(np.uint8), (panels, -(-inputs // self.group), PANEL)
        if self.has_minimums:
            found["minimums"] = of_blocks
        return found


INT8 = Format(8)
INT4 = Format(4, group=32)
Q8_0 = Format(8, block=32, scale=np.float16)
Q4_0 = Format(4, block=32, scale=np.float16)
Q4_1 = Format(4, block=32, scale=np.float16, has_minimums=True)

_OF_ENCODINGS = {"Q8_0": Q8_0, "Q4_0": Q4_0, "Q4_1": Q4_1}


def own_format(weight: Weight) -> Format | None:
    """Return the format that holds exactly what a weight's file does, None if there is none."""
    if weight.encoding == "I8" and weight.scales is not None:
        return INT8
    return _OF_ENCODINGS.get(weight.encoding)


def quantized(weight: Weight, form: Format) -> QuantizedWeight:
    """Return a matrix in a format: exactly if the format is its own, else with the error made small.

    Raises:
        ValueError: it has numbers that are not finite.
    """
    if form == own_format(weight):
        return _as_written(weight)
    values = weight.array()
    with np.errstate(all="ignore"):
        return _with_multipliers(values, form) if form.group else _with_scales(values, form)


def _as_written(weight: Weight) -> QuantizedWeight:
    """Return the codes and scales of a file."""
    outputs, inputs = weight.shape
    if weight.scales is not None:
        codes = weight.data.view(np.int8).reshape(outputs, inputs)
        return QuantizedWeight(codes, weight.scales[:, None], block=inputs)
    form = _OF_ENCODINGS[weight.encoding]
    blocks = weight.data.reshape(outputs, inputs // form.block, -1)
    heads = [
        np.ascontiguousarray(blocks[..., 2 * place : 2 * place + 2]).view("<f2")[..., 0]
        for place in range(1 + form.has_minimums)
    ]
    tail = blocks[..., 2 * len(heads) :]
    if form.bits == 8:
        codes = np.ascontiguousarray(tail).view(np.int8)
    else:
        codes = np.concatenate([tail & np.uint8(15), tail >> np.uint8(4)], axis=-1)
    return QuantizedWeight(
        codes.reshape(outputs, inputs), heads[0], form.block, minimums=heads[1] if form.has_minimums else None
    )


def _with_scales(values: np.ndarray, form: Format) -> QuantizedWeight:
    """Return 8-bit codes with a scale for each block."""
    outputs, inputs = values.shape
    block = form.block or inputs
    cut = _cut(values, block)
    rounding = _Rounding(cut, -_MOST_8, _MOST_8, form.scale)
    largest = _largest(cut)
    scales = rounding.best(largest / np.float32(each) for each in _LARGEST_8)
    codes = rounding.codes(scales).astype(np.int8).reshape(outputs, -1)[:, :inputs]
    return QuantizedWeight(codes, scales.astype(form.scale), block)


def _with_multipliers(values: np.ndarray, form: Format) -> QuantizedWeight:
    """Return 4-bit codes with a scale for each row and a whole multiplier for each group of it."""
    outputs, inputs = values.shape
    cut = _cut(values, form.group)
    rounding = _Rounding(cut, _LEAST_4, _MOST_4)
    largest = _largest(cut)
    plain = largest / np.float32(_MOST_4)
    wanted = rounding.best(largest / np.float32(each) for each in _LARGEST_4)
    candidates = [(plain, np.float32(MAX_MULTIPLIER))]
    candidates += [(wanted, np.float32(each)) for each in _LARGEST_MULTIPLIER]
    scale, multipliers = np.zeros((outputs, 1), np.float32), np.ones_like(largest)
    least = np.full_like(scale, np.inf)
    for steps, most in candidates:
        tried = steps.max(axis=1, keepdims=True) / most
        near = np.clip(np.rint(steps * _inverse(tried)), 1, MAX_MULTIPLIER)
        error = rounding.errors(tried * near).sum(axis=1, keepdims=True)
        better = error < least
        scale, multipliers = np.where(better, tried, scale), np.where(better, near, multipliers)
        least = np.where(better, error, least)
    multipliers = rounding.nudged(scale, multipliers)
    scale = rounding.refined(scale, multipliers)
    codes = rounding.codes(scale * multipliers) + _ZERO_4
    whole = codes.astype(np.uint8).reshape(outputs, -1)[:, :inputs]
    return QuantizedWeight(whole, scale, inputs, multipliers.astype(np.uint8), form.group)


class _Rounding:
    """Numbers that are rounded to whole multiples of a step for each block, within bounds.

    Args:
        values: The numbers, f32[rows, blocks, size].
        least: The least multiple.
        most: The most.
        scale: The type that steps are kept in.
    """

    def __init__(
        self, values: np.ndarray, least: int, most: int, scale: type[np.floating[Any]] = np.float32
    ) -> None:
        self._values, self._least, self._most, self._scale = values, least, most, scale
        self._scratch = np.empty_like(values)

    def codes(self, steps: np.ndarray) -> np.ndarray:
        """Return the multiples, f32; they are overwritten by the next call of any method."""
        found = self._scratch
        np.multiply(self._values, _inverse(steps)[..., None], out=found)
        np.rint(found, out=found)
        np.clip(found, self._least, self._most, out=found)
        return found

    def errors(self, steps: np.ndarray) -> np.ndarray:
        """Return the sum of squared errors of each block, f32[rows, blocks]."""
        found = self.codes(steps)
        np.multiply(found, steps[..., None], out=found)
        np.subtract(self._values, found, out=found)
        return _dot(found, found)

    def best(self, candidates: Iterable[np.ndarray]) -> np.ndarray:
        """Return for each block the candidate of least error, or the step that is better for its codes."""
        steps, least = np.zeros(self._values.shape[:2], np.float32), np.float32(np.inf)
        for candidate in candidates:
            steps, least = self._better(candidate, steps, least)
        codes = self.codes(steps)
        solved = _dot(codes, self._values) * _inverse(_dot(codes, codes))
        return self._better(solved, steps, least)[0]

    def _better(
        self, candidate: np.ndarray, steps: np.ndarray, least: np.ndarray | np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        kept = candidate.astype(self._scale).astype(np.float32)
        error = self.errors(kept)
        better = error < least
        return np.where(better, kept, steps), np.where(better, error, least)

    def nudged(self, scale: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
        """Return the multipliers, or those next to them where these are better."""
        least = self.errors(scale * multipliers)
        found = multipliers
        for change in (-1, 1):
            tried = np.clip(multipliers + change, 1, MAX_MULTIPLIER)
            error = self.errors(scale * tried)
            better = error < least
            found, least = np.where(better, tried, found), np.where(better, error, least)
        return found

    def refined(self, scale: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
        """Return the scale of each row, or the one that is better for its codes."""
        least = self.errors(scale * multipliers).sum(axis=1, keepdims=True)
        codes = self.codes(scale * multipliers)
        crossed = (_dot(codes, self._values) * multipliers).sum(axis=1, keepdims=True)
        squared = (_dot(codes, codes) * multipliers**2).sum(axis=1, keepdims=True)
        solved = crossed * _inverse(squared)
        error = self.errors(solved * multipliers).sum(axis=1, keepdims=True)
        refined: np.ndarray = np.where(error < least, solved, scale)
        return refined


def _cut(values: np.ndarray, block: int) -> np.ndarray:
    """Return rows in blocks, f32[rows, blocks, block], the last one filled up with zeros."""
    rows, inputs = values.shape
    if inputs % block:
        values = np.pad(values, ((0, 0), (0, -inputs % block)))
    return values.reshape(rows, -1, block)


def _largest(cut: np.ndarray) -> np.ndarray:
    """Return the largest number of each block, without its sign.

    Raises:
        ValueError: a number is not finite.
    """
    largest: np.ndarray = np.maximum(cut.max(axis=-1), -cut.min(axis=-1))
    if not np.isfinite(largest).all():
        raise ValueError("has numbers that are not finite")
    return largest


def _inverse(numbers: np.ndarray) -> np.ndarray:
    """Return 1 / x, and 0 for 0."""
    found = np.zeros_like(numbers)
    np.divide(1, numbers, out=found, where=numbers != 0)
    return found


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("rbk,rbk->rb", a, b)
    return found
