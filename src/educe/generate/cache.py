"""The cache of keys and values: how many there are in a layer, and how blocks hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from educe.compiler.emit import BF16, F32, I8
from educe.compiler.kernels.kv_cache import UNIT, HeadBlock
from educe.errors import OptionError, refuse_unknown
from educe.model.signature import NUMPY_TYPES
from educe.pages import empty

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
        refuse_unknown("cache", [self.name], CACHES)
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

    def empty(
        self, layouts: Sequence[CacheLayout], num_blocks: int, name: str = "cache"
    ) -> dict[str, np.ndarray]:
        """Return the caches of all layers with so many blocks, whose content is whatever it is, by name."""
        shapes = self.shapes(layouts, name)
        return {key: empty((num_blocks, *shape), self.dtype) for key, shape in shapes.items()}
