"""What T5 adds to scores, by how far a key is from its token (Raffel et al., 2020, arxiv:1910.10683)."""

from __future__ import annotations

import math

import numpy as np


def bias_by_distance(table: np.ndarray, furthest: int, both_ways: bool) -> np.ndarray:
    """Return what is added to scores, f32[heads, 2 · furthest + 1], for keys before and after a token.

    Args:
        table: A trained number for each bucket and head, f32[buckets, heads].
        furthest: From which distance on all are in the last bucket.
        both_ways: Whether keys after a token have buckets of their own; else all are in that of distance 0.
    """
    distances = np.arange(-furthest, furthest + 1)
    return np.ascontiguousarray(table[buckets(distances, len(table), furthest, both_ways)].T)


def buckets(distances: np.ndarray, count: int, furthest: int, both_ways: bool) -> np.ndarray:
    """Return the bucket of each distance from a token to a key: one each near by, then by logarithms."""
    sides = count // 2 if both_ways else count
    first = np.where(distances > 0, sides, 0) if both_ways else np.zeros_like(distances)
    far = np.abs(distances) if both_ways else np.maximum(-distances, 0)
    near = sides // 2
    ratio = np.log(np.maximum(far, near).astype(np.float32) / np.float32(near))
    steps = ratio / np.float32(math.log(furthest / near)) * np.float32(sides - near)
    found: np.ndarray = first + np.where(
        far < near, far, np.minimum(near + steps.astype(np.int64), sides - 1)
    )
    return found
