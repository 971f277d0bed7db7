"""Rows of logits: what sampling, searches and scoring share. What is no number is an error, never a token."""

from __future__ import annotations

import numpy as np

from educe.errors import EngineError

# Elements whose maximum is taken together when the largest are looked for.
_GROUP = 32


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of each row, f32[..., vocabulary].

    Raises:
        EngineError: a row has a logit that is no number, or none above minus infinity.
    """
    found: np.ndarray = np.subtract(
        logits, log_sum_exp(logits), out=np.empty_like(logits), casting="same_kind"
    )
    return found


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of each row's sum of exponentials, f64[..., 1], for f32[..., vocabulary].

    Raises:
        EngineError: a row has a logit that is no number, or none above minus infinity.
    """
    highest = logits.max(axis=-1, keepdims=True)
    check_largest(highest)
    shifted = logits - highest
    sums = np.exp(shifted, out=shifted).sum(axis=-1, keepdims=True)
    return np.asarray(highest + np.log(sums, dtype=np.float64))


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the `k` largest of `values` and of all that equal the last, ascending.

    Of many values, first those are taken that reach the k-th largest maximum of groups.
    """
    if k >= len(values):
        return np.arange(len(values))
    width = len(values) // _GROUP
    places = _reaching_maxima(values, width, k) if width > 4 * k else np.arange(len(values))
    found = values[places]
    least = np.partition(found, len(found) - k)[len(found) - k]
    return np.asarray(places[found >= least])


def _reaching_maxima(values: np.ndarray, width: int, k: int) -> np.ndarray:
    """Return the places of the values that reach the `k`-th largest of the maxima of `width` groups."""
    end = width * _GROUP
    groups = values[:end].reshape(_GROUP, width)
    maxima = np.maximum.reduce(groups, axis=0)
    least = np.partition(maxima, width - k)[width - k]
    columns = np.flatnonzero(maxima >= least)
    rows, found = np.nonzero(groups[:, columns] >= least)
    rest = np.flatnonzero(values[end:] >= least)
    return np.concatenate([rows * width + columns[found], end + rest])


def likeliest(logits: np.ndarray) -> int:
    """Return the token of the largest of `logits`, f32[vocabulary]; of equals, the first.

    Raises:
        EngineError: a logit is no number, or none is above minus infinity.
    """
    token = int(np.argmax(logits))  # the first that is no number, if there is one
    check_largest(logits[token])
    return token


def check_largest(highest: np.ndarray) -> None:
    """Check the largest logit of one or more rows, which is finite if all of the row are usable.

    Raises:
        EngineError: it is not.
    """
    if np.isfinite(highest).all():
        return
    if np.isneginf(highest).any():
        cause, remedy = (
            "no token is allowed: all logits are minus infinity",
            "loosen what the text must follow",
        )
    else:
        cause, remedy = (
            "a logit is no finite number",
            "see whether the weights are whole, or try precision f32",
        )
    raise EngineError(cause, place="the logits of the next token", remedy=remedy)


def penalised(logits: np.ndarray, penalty: float) -> np.ndarray:
    """Return logits of tokens that a text has as `repetition_penalty` leaves them (Keskar et al., 2019)."""
    factor = np.float32(penalty)
    return np.asarray(np.where(logits > 0, logits / factor, logits * factor))
