"""Numbers of texts that a model holds for impossible, or nearly so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from educe.generate.perplexity import Perplexity


def test_numbers_are_those_of_the_chances() -> None:
    found = Perplexity(np.log(np.array([0.5, 0.25, 0.125])), num_bytes=6)
    assert found.per_token == pytest.approx(4)
    assert found.per_byte == pytest.approx(2)
    assert found.bits_per_byte == pytest.approx(1)
    assert found.standard_error == pytest.approx(4 * math.log(2) / math.sqrt(3))


@pytest.mark.parametrize("logprobs", [[-800.0, -900.0], [-math.inf, -1.0]])
def test_what_is_too_large_is_infinite(logprobs: list[float]) -> None:
    found = Perplexity(np.array(logprobs), num_bytes=1)
    assert found.per_token == found.per_byte == math.inf
    assert math.isnan(found.standard_error)
    assert found.bits_per_byte == pytest.approx(-sum(logprobs) / math.log(2))
