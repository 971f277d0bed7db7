"""Signals: `DFT`, `STFT`, windows, and the weights of mel spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, F64
from educe.compiler.kernel import Kernel
from educe.compiler.operators.base import Call, NotCompiled, known_values, operator, positive_axis
from educe.compiler.operators.movement import integers, sliced
from educe.compiler.operators.product import matrix_product
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MAX_PRODUCT_LENGTH = 512
"""Length up to which a transform is a product with a matrix of roots."""

_MAX_FACTOR = 256
_SET_OF_AXIS_INPUT = 20


@dataclass(frozen=True)
class Transform:
    """A discrete Fourier transform along a dimension.

    Attributes:
        length: How many numbers it is of; rows are cut or filled up with zeros.
        given: How many of them are read.
        wanted: How many are written.
        parts_in: 1 where numbers are real, 2 where complex.
        parts_out: The same of the result.
        inverse: Whether it is the inverse.
        symmetric: Whether the numbers given are the first half of those of a real signal.
    """

    length: int
    given: int
    wanted: int
    parts_in: int
    parts_out: int
    inverse: bool = False
    symmetric: bool = False

    def matrix(self) -> np.ndarray:
        """Return it as a real matrix, from the parts of what is given to the parts of what is wanted."""
        turns = np.outer(np.arange(self.given), np.arange(self.wanted)) % self.length / self.length
        roots = np.exp((2j if self.inverse else -2j) * np.pi * turns)
        if self.inverse:
            roots /= self.length
        if self.symmetric:
            twice = [2 if 0 < 2 * k < self.length else 1 for k in range(self.given)]
            roots *= np.array(twice)[:, None]
        whole = np.empty((self.given, 2, self.wanted, 2))
        whole[:, 0, :, 0], whole[:, 0, :, 1] = roots.real, roots.imag
        whole[:, 1, :, 0], whole[:, 1, :, 1] = -roots.imag, roots.real
        return whole[:, : self.parts_in, :, : self.parts_out].reshape(
            self.given * self.parts_in, self.wanted * self.parts_out
        )


@operator("DFT")
def dft(
    low: Lowering, call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """The transform along one dimension of numbers whose parts lie along the last one."""
    if x.kind not in (F32, F64):
        raise NotCompiled
    default = 1 if call.version < _SET_OF_AXIS_INPUT else -2
    chosen = integers(low, axis)[0] if axis is not None else int(call.get("axis", default))
    along = positive_axis(chosen, x.rank)
    if along == x.rank - 1 or x.shape[-1] not in (1, 2):
        raise ValueError("the last dimension is of the parts of a number: 1 or 2, and not transformed")
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    size = x.shape[along]
    whole = 2 * (size - 1) if inverse and onesided else size
    if length is not None:
        whole = integers(low, length)[0]
    if whole < 1:
        raise ValueError(f"a transform of {whole} numbers")
    half = whole // 2 + 1
    transform = Transform(
        whole,
        min(size, half if inverse and onesided else whole),
        half if onesided and not inverse else whole,
        x.shape[-1],
        1 if inverse and onesided else 2,
        inverse,
        inverse and onesided,
    )
    rest = [each for each in range(x.rank - 1) if each != along]
    order = [*rest, along, x.rank - 1]
    rows = low.permute(sliced(low, x, along, range(transform.given)), order)
    done = _transformed(low, rows, transform)
    return low.permute(done, np.argsort(order).tolist())


@operator("STFT")
def stft(
    low: Lowering,
    call: Call,
    x: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
) -> Tensor:
    """The transform of each frame of a signal, (batch, frame, frequency, 2)."""
    if x.kind not in (F32, F64) or x.rank != 3:
        raise NotCompiled
    batch, samples, parts = x.shape
    step = integers(low, frame_step)[0]
    size = integers(low, frame_length)[0] if frame_length is not None else samples
    if window is not None:
        size = size if frame_length is not None else window.size
    if step < 1 or not 1 <= size <= samples or parts not in (1, 2):
        raise ValueError(f"frames of {size} every {step} of {samples} samples")
    if window is not None and (window.shape != (size,) or window.kind is not x.kind):
        raise NotCompiled
    known_values(low, window)
    frames = 1 + (samples - size) // step
    wanted = size // 2 + 1 if call.get("onesided", 1) else size
    x = low.dense(x)
    seen = x.view((batch, frames, size, parts), (samples * parts, step * parts, parts, 1))
    return _transformed(low, seen, Transform(size, size, wanted, parts, 2), window)


@operator("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
def made_while_lowering(low: Lowering, call: Call, *numbers: Tensor) -> Tensor:
    """Something made of a few numbers: the run is split where they are not known."""
    known_values(low, *numbers)
    raise NotCompiled


def _transformed(low: Lowering, x: Tensor, transform: Transform, window: Tensor | None = None) -> Tensor:
    """Return the transform of (..., number, part), each number weighted by `window` before."""
    shape = (*x.shape[:-2], transform.wanted, transform.parts_out)
    if transform.length <= _MAX_PRODUCT_LENGTH or max(_factors(transform.length)) > _MAX_FACTOR:
        if transform.length > 4 * _MAX_PRODUCT_LENGTH:
            raise NotCompiled
        return low.reshape(_by_product(low, x, transform, window), shape)
    if window is not None:
        x = low.apply("Mul", x, low.reshape(window, (window.size, 1)))
    return low.reshape(_by_passes(low, low.dense(x), transform), shape)


def _by_product(low: Lowering, x: Tensor, transform: Transform, window: Tensor | None) -> Tensor:
    dtype = dtype_of(x.kind)

    def matrix(weights: np.ndarray | None = None) -> np.ndarray:
        found = transform.matrix()
        if weights is not None:
            found *= np.repeat(weights.astype(np.float64), transform.parts_in)[:, None]
        return found.astype(dtype)

    if window is None:
        roots = low.constant(low.constants.made((transform, dtype.name), matrix))
    else:
        roots = low.derived(window, transform, matrix)
    rows = low.reshape(x, (*x.shape[:-2], transform.given * transform.parts_in))
    if rows.rank == 1:
        rows = low.reshape(rows, (1, rows.size))
    return matrix_product(low, rows, roots)


def _by_passes(low: Lowering, x: Tensor, transform: Transform) -> Tensor:
    """Return the transform of rows that lie one after the other."""
    length, dtype = transform.length, dtype_of(x.kind)
    rows = math.prod(x.shape[:-2])
    factors = _factors(length)
    lanes = low.target.lanes if 2 * rows > low.target.lanes else 0

    def roots() -> np.ndarray:
        turns = 2 * np.pi * np.arange(length) / length
        return np.stack([np.cos(turns), -np.sin(turns)], 1).astype(dtype)

    table = low.constant(low.constants.made(("roots", length, dtype.name), roots))
    passes = low.constant(low.constants.made(("factors", length), lambda: np.array(factors, np.int64)))
    out = low.empty(x.kind, (rows, transform.wanted * transform.parts_out))
    low.launch(
        Kernel.of("fft", kind=x.kind, lanes=lanes),
        outputs=[out],
        inputs=[x, table, passes],
        sizes=[
            *(rows, length, transform.given, transform.wanted, transform.parts_in, transform.parts_out),
            *(transform.inverse, transform.symmetric, len(factors)),
        ],
        extent=-(-rows // max(lanes, 1)),
        flops=rows * length * sum(2 * factor + 6 for factor in factors),
        bytes=(x.size + out.size) * x.kind.size_bytes,
        scratch_bytes=4 * length * max(lanes, 1) * x.kind.size_bytes,
    )
    return out


def _factors(length: int) -> list[int]:
    """Return the factors of the passes: fours first, then primes."""
    found = []
    while length % 4 == 0:
        found.append(4)
        length //= 4
    factor = 2
    while factor * factor <= length:
        while length % factor == 0:
            found.append(factor)
            length //= factor
        factor += 1
    return [*found, length] if length > 1 or not found else found
