"""Which tokens may be drawn, and with which weights: temperature, `top_k`, `top_p`, `min_p`, `typical_p`.

Nothing sorts a vocabulary: a bound is looked for first, among few candidates, and what reaches it is kept.
"""

from __future__ import annotations

import numpy as np

from educe.generate.logits import check_largest
from educe.generate.options import SamplingOptions

# Elements whose maxima are taken together when the largest are looked for.
_GROUPS = 32
# As many of the likeliest tokens hold most of the probability of a trained model.
_LIKELY = 512
# Kept weights of which there are fewer than one in so many are gathered; others are left in their places.
_SPARSE = 4
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
    largest = logits.max()
    check_largest(largest)
    ids: np.ndarray | None = None
    if 0 < options.top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, options.top_k))
        logits = logits[ids]
    weights = np.exp((logits - largest) / np.float32(options.temperature))
    for keep in (_top_p, _min_p, _typical_p):
        chosen = keep(weights, options)
        if chosen is None:
            continue
        if _SPARSE * np.count_nonzero(chosen) > len(chosen):
            weights = np.where(chosen, weights, np.float32(0))
        else:
            places = np.flatnonzero(chosen)
            ids, weights = places if ids is None else ids[places], weights[places]
    return ids, weights


def _top_p(weights: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    """Return which of the weights a filter keeps, or None if all; so do the other filters."""
    if options.top_p == 1:
        return None
    needed = options.top_p * float(weights.sum())
    candidates = weights
    if len(weights) > _LIKELY * _GROUPS:
        likely = weights[weights >= kth_largest(weights, _LIKELY)]
        candidates = likely if float(likely.sum()) >= needed else weights
    return np.asarray(weights >= _heavy(candidates, needed))


def _min_p(weights: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    return np.asarray(weights >= options.min_p * weights.max()) if options.min_p else None


def _typical_p(weights: np.ndarray, options: SamplingOptions) -> np.ndarray | None:
    if options.typical_p == 1:
        return None
    distance = np.maximum(weights, _TINY)
    np.log(distance, out=distance)
    total = float(weights.sum(dtype=np.float64))
    # A weight's logarithm and its information differ by the same for all tokens.
    distance -= np.float32((weights * distance).sum(dtype=np.float64) / total)
    np.abs(distance, out=distance)
    return np.asarray((weights > 0) & (distance <= _near(distance, weights, options.typical_p * total)))


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
    while len(weights) > _LIKELY:
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


def kth_largest(values: np.ndarray, k: int) -> float:
    """Return the `k`-th largest value; a long array is first cut to what reaches k groups' maxima."""
    k = min(k, len(values))
    width = len(values) // _GROUPS
    if width > 4 * k:
        whole = values[: width * _GROUPS].reshape(_GROUPS, width)
        maxima = np.maximum.reduce(whole, axis=0)
        values = values[values >= np.partition(maxima, width - k)[width - k]]
    return float(np.partition(values, len(values) - k)[len(values) - k])
