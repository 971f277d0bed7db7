"""Texts side by side, without padding between them, as the graph of a step takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from educe.compiler.kernels.attention_items import ITEM_ROWS, ITEM_WORDS
from educe.generate.step import Slice


def filled(arrays: Sequence[Sequence[int] | np.ndarray], size: int, filling: int = 0) -> np.ndarray:
    """Return all numbers one after the other, i64[size], and the filling after them."""
    whole = np.full(size, filling, np.int64)
    end = 0
    for array in arrays:
        whole[end : end + len(array)] = array
        end += len(array)
    return whole


def slots(slices: Sequence[Slice], size: int, block_size: int) -> np.ndarray:
    """Return where the keys and values of each token are written, i64[size]; -1 for those after the last."""
    found = []
    for part in slices:
        block, place = np.divmod(np.array(part.positions), block_size)
        found.append(np.asarray(part.blocks, np.int64)[block] * block_size + place)
    return filled(found, size, -1)


def table(blocks: Sequence[Sequence[int]], max_sequences: int, max_blocks: int) -> np.ndarray:
    """Return the blocks of each text, i32[most texts, most blocks]."""
    found = np.zeros((max_sequences, max_blocks), np.int32)
    for number, each in enumerate(blocks):
        found[number, : len(each)] = each
    return found


def items(
    counts: Sequence[int], places: Sequence[int], size: int, group: int, max_sequences: int
) -> np.ndarray:
    """Return the items of texts with so many tokens, i64[n, 5], where n depends on the size alone.

    Args:
        counts: How many tokens each text has in the step.
        places: What an item says of the place: see `kernels.paged_attention`.
        size: The number of tokens of the program.
        group: Heads of queries for each head of keys.
        max_sequences: Most texts of a step.
    """
    found = np.zeros((-(-size * group // ITEM_ROWS) + max_sequences, ITEM_WORDS), np.int64)
    first = item = 0
    for number, (count, place) in enumerate(zip(counts, places, strict=True)):
        for row in range(0, count * group, ITEM_ROWS):
            found[item] = (first, row, min(ITEM_ROWS, count * group - row), number, place)
            item += 1
        first += count
    return found


def program_size(count: int) -> int:
    """Return the next size, at least `count`, that steps are filled up to: 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def program_sizes(most: int) -> list[int]:
    """Return the sizes as far as the first that is at least `most`."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(program_size(sizes[-1] + 1))
    return sizes
