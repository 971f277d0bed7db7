"""Weights of 4 or 8 bits: the matrix as numbers, and as the kernels of `educe.QuantizedLinear` read it.

A weight w[n, k], n of outputs and k of inputs, stands for::

    scales[n, k / block] * multipliers[n, k / group] * (codes[n, k] - zero) + minimums[n, k / block]

Within a block everything but the scale is an integer, and so is the product with activations that are
rounded to 8 bits with one scale for each row and block: it is summed exactly, and scaled once. Four formats
matter:

- 8 bits, one block: a scale for each output.
- 4 bits, one block, a multiplier of 1 to 15 for each group of 32: nearly as close as a float scale for each
  group, yet without a float operation for each.
- Blocks of 32 with scales in f16: GGUF's Q8_0 and Q4_0 as they are.
- The same with minimums: GGUF's Q4_1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from educe import pages

PANEL = 16
"""Outputs that lie side by side."""

STEP = 4
"""Numbers along k that lie side by side for each output."""

TILE_DEPTH = 64
"""What a packed row is filled up to a multiple of."""

GRAIN = 32
"""What blocks and groups are multiples of, where there are several."""

MAX_DEPTH = 2**17
"""Numbers of a row whose products with 8-bit activations are summed in 32 bits without overflow."""

MAX_MULTIPLIER = 15

_ZERO = 8


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix of small integers with scales, or some of its rows; see the module for what it stands for.

    Attributes:
        codes: i8[outputs, inputs] for 8 bits, u8[outputs, inputs] from 0 to 15 for 4 bits.
        scales: f32 or f16[outputs, blocks].
        block: Numbers along k that share a scale; the last block may be shorter.
        multipliers: u8[outputs, groups] from 1 to 15, for 4 bits; None where all are 1.
        group: Numbers along k that share a multiplier; `block` without multipliers.
        minimums: What is added, of the kind of the scales, [outputs, blocks]; None where nothing is. With
            minimums `zero` is 0.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    codes: np.ndarray
    scales: np.ndarray
    block: int
    multipliers: np.ndarray | None = None
    group: int = 0
    minimums: np.ndarray | None = None

    def __post_init__(self) -> None:
        outputs, inputs = self.codes.shape
        if self.multipliers is None:
            object.__setattr__(self, "group", self.block)
        check_blocks(inputs, self.block, self.group)
        blocks, groups = -(-inputs // self.block), -(-inputs // self.group)
        fits = (
            self.codes.dtype in (np.int8, np.uint8)
            and self.scales.dtype in (np.float32, np.float16)
            and self.scales.shape == (outputs, blocks)
            and (self.minimums is None or _like(self.minimums, self.scales))
            and (self.multipliers is None or self.multipliers.shape == (outputs, groups))
            and (self.multipliers is None or self.multipliers.dtype == np.uint8)
            and (self.multipliers is None or (self.bits == 4 and self.minimums is None))
        )
        if not fits:
            raise ValueError(f"codes {_named(self.codes)} with scales {_named(self.scales)} by {self.block}")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 if self.codes.dtype == np.int8 else 4

    @property
    def zero(self) -> int:
        """The code of what is 0 before the minimum is added."""
        return _ZERO if self.bits == 4 and self.minimums is None else 0

    def dequantize(self) -> np.ndarray:
        """Return what it stands for, f32[outputs, inputs], computed in f32."""
        inputs = self.codes.shape[1]

        def spread(array: np.ndarray, size: int) -> np.ndarray:
            return np.repeat(array, size, axis=1)[:, :inputs]

        whole = self.codes.astype(np.int16) - np.int16(self.zero)
        if self.multipliers is not None:
            whole *= spread(self.multipliers, self.group).astype(np.int16)
        values: np.ndarray = whole * spread(self.scales, self.block).astype(np.float32)
        if self.minimums is not None:
            values += spread(self.minimums, self.block).astype(np.float32)
        return values


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A `QuantizedWeight` in the order in which kernels read it, the same on every machine.

    Outputs come in panels of 16, the last one filled up. Along the first dimension, packed pieces of
    multiples of 16 rows may be put together, and cut.

    Attributes:
        codes: 8 bits: i8[panels, depth / 4, 16, 4]. 4 bits: u8[panels, depth / 8, 16, 4]; the low half of a
            byte belongs to the first, the high half to the second of two steps of 4 along k. `depth` is the
            inputs filled up to a multiple of 64.
        scales: f32 or f16[panels, blocks, 16].
        multipliers: u8[panels, groups, 16], or None.
        minimums: As the scales, or None.
    """

    codes: np.ndarray
    scales: np.ndarray
    multipliers: np.ndarray | None = None
    minimums: np.ndarray | None = None


def pack(weight: QuantizedWeight) -> PackedWeight:
    """Return a weight in the order in which kernels read it."""
    outputs, inputs = weight.codes.shape
    whole, depth = -(-outputs // PANEL) * PANEL, packed_depth(inputs)
    codes = weight.codes
    if (whole, depth) != codes.shape:
        codes = np.full((whole, depth), weight.zero, codes.dtype)
        codes[:outputs, :inputs] = weight.codes
    if weight.bits == 8:
        packed = _aligned(codes.reshape(-1, PANEL, depth // STEP, STEP).transpose(0, 2, 1, 3))
    else:
        pairs = codes.reshape(-1, PANEL, depth // (2 * STEP), 2, STEP).transpose(3, 0, 2, 1, 4)
        packed = _aligned(pairs[0])
        packed |= pairs[1] << 4
    multipliers, minimums = (
        None if each is None else _panels(each, whole) for each in (weight.multipliers, weight.minimums)
    )
    return PackedWeight(packed, _panels(weight.scales, whole), multipliers, minimums)


def packed_depth(inputs: int) -> int:
    """Return the numbers of a packed row."""
    return -(-inputs // TILE_DEPTH) * TILE_DEPTH


def check_blocks(inputs: int, block: int, group: int) -> None:
    """Raise ValueError unless rows of so many numbers can be cut into such blocks, and these into groups."""
    for size, of in ((block, inputs), (group, min(block, inputs))):
        if size < 1 or (size < of and size % GRAIN):
            raise ValueError(f"{inputs} numbers in blocks of {block} and groups of {group}")
    if group < block < inputs and block % group:
        raise ValueError(f"blocks of {block} and groups of {group}")
    if min(block, inputs) > MAX_DEPTH:
        raise ValueError(f"{inputs} numbers in a block are more than {MAX_DEPTH}")


def _panels(array: np.ndarray, outputs: int) -> np.ndarray:
    whole = np.zeros((outputs, array.shape[1]), array.dtype)
    whole[: len(array)] = array
    return _aligned(whole.reshape(-1, PANEL, array.shape[1]).transpose(0, 2, 1))


def _aligned(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy whose first byte is on a cache line."""
    copy = pages.empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _like(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _named(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"
