"""Which tokens may be drawn, and with which weights: temperature, `top_k`, `top_p`, `min_p`, `typical_p`.

Nothing sorts a vocabulary: a bound is looked for first, among few candidates, and what reaches it is kept.
"""

from __future__ import annotations

import numpy as np

from educe.generate.logits import check_largest, largest
from educe.generate.options import SamplingOptions

BLOCK = 512
"""Weights that are added in single precision, before their sums are in double."""

# So few weights are sorted.
_FEW = 512
# Rarely has a text as many likely ways to go on.
_MANY = 8192
# Parts of equal width into which distances from the expected information are sorted first.
_BINS = 4096
_TINY = np.finfo(np.float32).tiny


def kept(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the ids that may be drawn, ascending, and their weights; None for the ids is all of them.

    Args:
        logits: f32[vocabulary], -inf where a token is not allowed.
        options: Temperature and filters.

    Raises:
        EngineError: a logit is no number, or none is above minus infinity.
    """
    ids: np.ndarray | None = None
    if 0 < options.top_k < len(logits):
        check_largest(logits.max())  # what is no number is not among the largest
        ids = largest(logits, options.top_k)
        logits = logits[ids]
    weights = logits / np.float32(options.temperature)
    highest = weights.max()
    check_largest(highest)
    weights -= highest
    np.exp(weights, out=weights)
    for keep in (_top_p, _min_p, _typical_p):
        places = keep(weights, options)
        if places is not None:
            ids, weights = places if ids is None else ids[places], weights[places]
    return ids, weights


def block_sums(weights: np.ndarray) -> np.ndarray:
    """Return the sum of each `BLOCK` of weights, f32[blocks], of which the last may be short."""
    num_whole = len(weights) // BLOCK
    sums = np.einsum("ij->i", weights[: num_whole * BLOCK].reshape(num_whole, BLOCK))
    rest = weights[num_whole * BLOCK :]
    return np.append(sums, rest.sum()) if len(rest) else sums


def _top_p(weights: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    """Return the places of the weights that a filter keeps, ascending, or None for all; so do the others."""
    if options.top_p == 1:
        return None
    total = float(block_sums(weights).sum(dtype=np.float64))
    needed = options.top_p * total
    # What may be left out is more than all weights below the second bound, and mostly those below the first.
    for count in (_MANY, len(weights)):
        places = np.flatnonzero(weights >= (total - needed) / count)
        heaviest = weights[places]
        if float(heaviest.sum()) >= needed:
            break
    return places[heaviest >= _heavy(heaviest, needed)]


def _min_p(weights: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    return np.flatnonzero(weights >= options.min_p * weights.max()) if options.min_p else None


def _typical_p(weights: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    if options.typical_p == 1:
        return None
    distance = np.maximum(weights, _TINY)
    np.log(distance, out=distance)
    total = float(weights.sum(dtype=np.float64))
    # A weight's logarithm and its information differ by the same for all tokens.
    distance -= np.float32((weights * distance).sum(dtype=np.float64) / total)
    np.abs(distance, out=distance)
    return np.flatnonzero((weights > 0) & (distance <= _near(distance, weights, options.typical_p * total)))


def _near(distance: np.ndarray, weights: np.ndarray, needed: float) -> float:
    """Return the smallest bound below which the weights add up to `needed`; only near it are they sorted."""
    width = float(distance.max()) / _BINS or 1.0
    bins = (distance * np.float32(1 / width)).astype(np.intp)
    sums = np.cumsum(np.bincount(bins, weights))
    border = min(int(np.searchsorted(sums, needed)), len(sums) - 1)
    near = np.flatnonzero(bins == border)
    order = near[np.argsort(distance[near], kind="stable")]
    before = sums[border - 1] if border else 0.0
    index = int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), needed - before))
    return float(distance[order[min(index, len(order) - 1)]])


def _heavy(weights: np.ndarray, needed: float) -> float:
    """Return the largest bound above which the weights add up to `needed`: quickselect by weight."""
    while len(weights) > _FEW:
        middle = len(weights) // 2
        parts = np.partition(weights, middle)
        upper = float(parts[middle:].sum())
        if upper >= needed:
            weights = parts[middle:]
        else:
            needed -= upper
            weights = parts[:middle]
    ordered = np.sort(weights)[::-1]
    index = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), needed))
    return float(ordered[min(index, len(ordered) - 1)])
