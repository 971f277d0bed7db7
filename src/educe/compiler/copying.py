"""Copies between tensors whose elements lie in different orders of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from educe.compiler.kernel import Kernel
from educe.compiler.kernels.indexing import BITS
from educe.compiler.kernels.transposition import BLOCK, MAX_WAYS, STRIP, tile_size
from educe.compiler.tensor import Tensor, collapsed

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


def copy_in_tiles(low: Lowering, source: Tensor, destination: Tensor) -> bool:
    """Launch a copy of `source` if its fastest dimension is another one than that of `destination`.

    Returns:
        Whether there was anything for tiles to do; nothing is launched otherwise.
    """
    sizes, (out, read) = collapsed(destination.shape, [destination.strides, source.strides])
    if len(sizes) < 2 or out[-1] != 1 or read[-1] == 1 or 1 not in read:
        return False
    axis, last = read.index(1), len(sizes) - 1
    tile = tile_size(low.target, source.kind.size_bytes)
    kind = BITS[source.kind.size_bytes]
    if min(sizes[axis], sizes[last]) >= tile:
        kernel = Kernel.of("transposed_copy", kind=kind)
        units = -(-sizes[axis] // (STRIP * tile))
        numbers = [sizes[axis], sizes[last], units, out[axis], read[last]]
    else:
        # One of the two holds the other's rows woven into each other.
        joined = sizes[last] < tile
        ways, columns = (last, axis) if joined else (axis, last)
        woven, planar = (out, read) if joined else (read, out)
        if sizes[columns] < tile or not sizes[ways] == woven[columns] <= MAX_WAYS:
            return False
        kernel = Kernel.of("woven_copy", kind=kind, ways=sizes[ways], joined=joined)
        units = -(-sizes[columns] // BLOCK)
        numbers = [sizes[columns], units, planar[ways]]
    outer = [each for each in range(last) if each != axis]
    numbers.append(len(outer))
    for values in (sizes, out, read):
        numbers += _chosen(values, outer)
    low.launch(
        kernel,
        outputs=[destination],
        inputs=[source],
        sizes=numbers,
        extent=math.prod(_chosen(sizes, outer)) * units,
        bytes=2 * source.size * source.kind.size_bytes,
    )
    return True


def _chosen(values: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [values[axis] for axis in axes]
