"""The cache of keys and values: how many there are in a layer, and how blocks hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from educe.compiler.emit import BF16, F32, I8
from educe.compiler.kernels.kv_cache import UNIT, HeadBlock
from educe.errors import OptionError, refuse_unknown
from educe.generate.blocks import Copy
from educe.model.signature import NUMPY_TYPES
from educe.pages import reserved

CACHES = {"f32": F32, "bf16": BF16, "int8": I8}
"""The types of caches. Integers have a scale for each token and head, of its keys and of its values."""


@dataclass(frozen=True)
class CacheLayout:
    """The sizes of one layer's keys, and of its values.

    Attributes:
        heads: Heads of keys and values.
        features: Features of a head.
    """

    heads: int
    features: int


@dataclass(frozen=True)
class CacheFormat:
    """How blocks hold keys and values; products with them are in f32, whatever they are held as.

    Attributes:
        name: One of `CACHES`.
        page: Keys of a block, a multiple of 16.

    Raises:
        OptionError: there is no cache of this name, or blocks are of another size.
    """

    name: str
    page: int

    def __post_init__(self) -> None:
        refuse_unknown("cache", [self.name], CACHES, place="cache")
        if self.page < UNIT or self.page % UNIT:
            raise OptionError(f"expected a multiple of {UNIT}, found {self.page}", place="block_size")

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements of a block."""
        return NUMPY_TYPES[CACHES[self.name].name]

    def shape(self, layout: CacheLayout) -> tuple[int, int]:
        """Return the shape of a block of a layer: (heads, elements), see `kernels.kv_cache`."""
        return layout.heads, HeadBlock(CACHES[self.name], self.page, layout.features).elements

    def shapes(self, layouts: Sequence[CacheLayout], name: str = "cache") -> dict[str, tuple[int, ...]]:
        """Return the shape of a block of each layer N, by the name of the input of a graph, ``NAME.N``."""
        return {f"{name}.{layer}": self.shape(layout) for layer, layout in enumerate(layouts)}


def block_bytes(shapes: Mapping[str, Sequence[int]], dtype: np.dtype[Any]) -> int:
    """Return the memory of a block that has a part of each shape."""
    return sum(map(math.prod, shapes.values())) * dtype.itemsize


def pools(
    shapes: Mapping[str, Sequence[int]], num_blocks: int, dtype: np.dtype[Any]
) -> dict[str, np.ndarray]:
    """Return so many blocks of each shape, by its name; one takes memory when it is first written."""
    return {name: reserved((num_blocks, *shape), dtype) for name, shape in shapes.items()}


def copy_blocks(pools: Mapping[str, np.ndarray], copies: Iterable[Copy]) -> None:
    """Copy blocks, from and to, in their order, in each of some pools."""
    for source, target in copies:
        for pool in pools.values():
            pool[target] = pool[source]
