"""Class scores: activations and rankings against the plain way."""

from __future__ import annotations

import numpy as np
import pytest

from educe.errors import EngineError
from educe.model.card import Card
from educe.tasks.scores import activate, both_classes, class_scores, ranked, ranked_rows

CARD = Card(task="image-classification", labels=("ham", "spam"))


@pytest.mark.parametrize("num_classes", [3, 256, 257, 1000])
@pytest.mark.parametrize("top", [1, 5, 300])
def test_a_ranking_is_that_of_a_full_stable_sort(
    rng: np.random.Generator, num_classes: int, top: int
) -> None:
    # Few distinct values make many ties, which the lower index must win.
    scores = rng.integers(0, 8, (20, num_classes)).astype(np.float32)
    found = ranked_rows(CARD, scores, top, None)
    for row, predictions in zip(scores.tolist(), found, strict=True):
        expected = sorted(range(num_classes), key=lambda index: (-row[index], index))[:top]
        assert [prediction.index for prediction in predictions] == expected
        assert [prediction.score for prediction in predictions] == [row[index] for index in expected]


def test_labels_and_the_threshold() -> None:
    predictions = ranked(CARD, np.array([0.2, 0.5, 0.3], np.float32), 3, 0.25)
    assert [prediction.label for prediction in predictions] == ["spam", "class 2"]


def test_activations_are_stable(rng: np.random.Generator) -> None:
    logits = np.array([[-1e4, 0, 1e4], [1, 2, 3]], np.float32)
    softmax = activate(logits, "softmax")
    np.testing.assert_allclose(softmax[0], [0, 0, 1])
    np.testing.assert_allclose(softmax[1], np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-6)
    np.testing.assert_allclose(activate(logits, "sigmoid")[0], [0, 0.5, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_what_is_not_finite_is_no_answer(bad: float, activation: str) -> None:
    with pytest.raises(EngineError, match="not finite"):
        class_scores(np.array([[0.1, bad]], np.float32), activation)  # type: ignore[arg-type]


def test_further_axes_are_classes_and_one_score_is_that_of_the_second() -> None:
    assert class_scores(np.zeros((2, 3, 1, 1)), "none").shape == (2, 3)
    assert both_classes(np.array([[0.25]], np.float32), CARD).tolist() == [[0.75, 0.25]]
