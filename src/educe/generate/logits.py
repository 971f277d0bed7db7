"""Rows of logits: what sampling, searches and scoring share. What is no number is an error, never a token."""

from __future__ import annotations

import numpy as np

from educe.errors import EngineError


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of each row, f32[..., vocabulary].

    Raises:
        EngineError: a row has a logit that is no number, or none above minus infinity.
    """
    largest = logits.max(axis=-1, keepdims=True)
    check_largest(largest)
    shifted: np.ndarray = logits - largest
    sums = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(sums).astype(np.float32)
    return shifted


def likeliest(logits: np.ndarray) -> int:
    """Return the token of the largest of `logits`, f32[vocabulary]; of equals, the first.

    Raises:
        EngineError: a logit is no number, or none is above minus infinity.
    """
    token = int(np.argmax(logits))  # the first that is no number, if there is one
    check_largest(logits[token])
    return token


def check_largest(largest: np.ndarray) -> None:
    """Check the largest logit of one or more rows, which is finite if all of the row are usable.

    Raises:
        EngineError: it is not.
    """
    if np.isfinite(largest).all():
        return
    if np.isneginf(largest).any():
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
