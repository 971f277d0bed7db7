"""Rows of logits: log-probabilities by their definition, and no token where a logit is no number."""

from __future__ import annotations

import numpy as np
import pytest

from educe.errors import EngineError
from educe.generate.logits import largest, likeliest, log_softmax, log_sum_exp, penalised
from educe.generate.search import SearchOptions, allowed


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 40_003), (2, 3, 5)])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_log_softmax_is_its_definition(
    shape: tuple[int, ...], scale: float, rng: np.random.Generator
) -> None:
    logits = (rng.normal(size=shape) * scale).astype(np.float32)
    before, wide = logits.copy(), logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide - wide.max()).sum(-1, keepdims=True)) - wide.max()
    found = log_softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_a_row_may_have_tokens_that_never_come() -> None:
    found = log_softmax(np.array([0, -np.inf, 0], np.float32))
    np.testing.assert_allclose(found, [-np.log(2), -np.inf, -np.log(2)], rtol=1e-6)
    assert likeliest(np.array([-np.inf, 2, 2], np.float32)) == 1


@pytest.mark.parametrize("size", [1, 9, 640, 40_003])
def test_the_largest_are_those_of_a_sort(size: int, rng: np.random.Generator) -> None:
    values = rng.integers(0, size, size=size).astype(np.float32)
    for k in {1, min(5, size), min(300, size), size, size + 3}:
        expected = np.flatnonzero(values >= np.sort(values)[-min(k, size)])
        np.testing.assert_array_equal(largest(values, k), expected)


@pytest.mark.parametrize("choose", [likeliest, log_softmax, log_sum_exp])
@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ([1, np.nan, 2], "no finite number"),
        ([np.nan, -np.inf, -np.inf], "no finite number"),
        ([1, np.inf, 2], "no finite number"),
        ([-np.inf] * 3, "no token is allowed"),
    ],
)
def test_what_is_no_number_is_an_error(choose: object, row: list[float], cause: str) -> None:
    with pytest.raises(EngineError, match=cause) as caught:
        choose(np.array(row, np.float32))  # type: ignore[operator]
    assert caught.value.place == "the logits of the next token"
    assert caught.value.remedy


def test_one_broken_row_of_several_is_an_error() -> None:
    with pytest.raises(EngineError, match="no finite number"):
        log_softmax(np.array([[1, 2], [np.nan, 1]], np.float32))


def test_a_penalty_makes_every_sign_less_likely() -> None:
    found = penalised(np.array([-2, 0, 4], np.float32), 2.0)
    np.testing.assert_array_equal(found, np.array([-4, 0, 2], np.float32))
    by_search = allowed(np.array([-2, 0, 4], np.float32), (0, 1, 2), 1, SearchOptions(repetition_penalty=2.0))
    np.testing.assert_array_equal(by_search, found)
