"""Class scores: an output array to probabilities, and probabilities to a ranking."""

from __future__ import annotations

import numpy as np

from educe.errors import CardError, EngineError
from educe.model.card import Activation, Card
from educe.tasks.answer import Prediction

_MANY_CLASSES = 256


def class_scores(output: np.ndarray, activation: Activation) -> np.ndarray:
    """Return the scores of each class as f32[N, C].

    Args:
        output: Any float type; [N, C], or with further dimensions of size 1.
        activation: What turns it into probabilities.

    Raises:
        CardError: the output has several axes of more than one element behind the first.
        EngineError: an element is not a finite number.
    """
    rows = np.atleast_1d(output)
    if sum(size != 1 for size in rows.shape[1:]) > 1:
        raise CardError(
            f"an output of shape {list(rows.shape)} holds no score for each class of each item",
            remedy="name another output in [scores], or another task",
        )
    logits = rows.reshape(len(rows), -1).astype(np.float32)
    check_finite(logits, "scores")
    return activate(logits, activation)


def activate(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Return f32[N, C] after the activation, which is stable for logits of any size.

    What is not finite may stay so: no warning is given, nothing is raised.
    """
    if activation == "softmax":
        with np.errstate(invalid="ignore"):
            powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    if activation == "sigmoid":
        # exp of a number that is never positive cannot overflow.
        powers = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1, powers) / (1 + powers))
    return logits


def check_finite(values: np.ndarray, what: str) -> None:
    """Raise `EngineError` if one of `values` is not a finite number: it would pass for an answer."""
    if not np.isfinite(values).all():
        raise EngineError(
            f"the model gave {what} that are not finite", remedy="check the input's preprocessing"
        )


def both_classes(scores: np.ndarray, card: Card) -> np.ndarray:
    """Return f32[N, 2] for the f32[N, 1] of a model of two classes: its one score is that of the second.

    Any other `scores` are returned as they are.
    """
    if scores.shape[1] == 1 and isinstance(card.labels, tuple) and len(card.labels) == 2:
        return np.hstack([1 - scores, scores])
    return scores


def ranked(card: Card, scores: np.ndarray, top: int, threshold: float | None) -> list[Prediction]:
    """Return the best classes of one row of scores.

    Args:
        card: Names the classes.
        scores: f32[C].
        top: Most predictions.
        threshold: Lowest score, if there is one.

    Returns:
        Best first; of equal scores the lower index first.
    """
    return ranked_rows(card, scores[np.newaxis], top, threshold)[0]


def ranked_rows(card: Card, scores: np.ndarray, top: int, threshold: float | None) -> list[list[Prediction]]:
    """Return the best classes of each row of scores f32[N, C], as `ranked` does of one."""
    order = _best(scores, top)
    best = np.take_along_axis(scores, order, axis=1)
    return [
        [
            Prediction(label=card.label(index), index=index, score=score)
            for index, score in zip(indices, row, strict=True)
            if threshold is None or score >= threshold
        ]
        for indices, row in zip(order.tolist(), best.tolist(), strict=True)
    ]


def _best(scores: np.ndarray, top: int) -> np.ndarray:
    """Return the positions of each row's largest as i64[N, top], of equal ones the lower first."""
    num_classes = scores.shape[1]
    if num_classes <= _MANY_CLASSES or top >= num_classes:
        return np.argsort(-scores, axis=1, kind="stable")[:, :top]
    # Sorting all of many classes for the sake of a few costs more than all else around the run.
    borders = np.partition(scores, num_classes - top, axis=1)[:, num_classes - top]
    order = np.empty((len(scores), top), np.int64)
    for row, border, out in zip(scores, borders, order, strict=True):
        candidates = np.flatnonzero(row >= border)
        out[:] = candidates[np.argsort(-row[candidates], kind="stable")[:top]]
    return order
