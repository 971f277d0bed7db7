"""Which texts of a window are believed."""

from __future__ import annotations

import pytest

from educe.errors import OptionError
from educe.generate.fallback import Fallback, Written

SAID = "What is said in a window of sound is rarely said twice."


def written(
    text: str = SAID, logprob: float = -0.3, no_speech: float = 0.1, temperature: float = 0.0
) -> Written:
    return Written((), text, logprob, no_speech, temperature)


def test_a_text_that_repeats_itself_is_not_believed() -> None:
    loop = written(" and so on," * 20)
    assert loop.compression_ratio > 2.4 > written().compression_ratio
    assert not Fallback().believes(loop)
    assert Fallback().believes(written())
    assert Fallback(compression_ratio_threshold=None).believes(loop)
    assert written("").compression_ratio == 0


def test_a_text_that_is_unlikely_is_not_believed() -> None:
    assert not Fallback().believes(written(logprob=-1.1))
    assert Fallback(logprob_threshold=None).believes(written(logprob=-1.1))


def test_nothing_is_said_where_silence_is_likely_and_the_text_is_not() -> None:
    assert Fallback().is_silent(written(logprob=-1.1, no_speech=0.7))
    assert not Fallback().is_silent(written(logprob=-0.9, no_speech=0.7))
    assert not Fallback().is_silent(written(logprob=-1.1, no_speech=0.5))
    assert not Fallback(no_speech_threshold=None).is_silent(written(logprob=-1.1, no_speech=1.0))
    assert Fallback(logprob_threshold=None).is_silent(written(logprob=-0.1, no_speech=0.7))


def test_what_was_drawn_at_a_high_temperature_is_no_context() -> None:
    assert written(temperature=0.4).is_context
    assert not written(temperature=0.6).is_context


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": ()},
        {"temperature": (0.0, -1)},
        {"temperature": "0"},
        {"temperature": (float("nan"),)},
        {"temperature": None},
        {"compression_ratio_threshold": "2.4"},
        {"logprob_threshold": float("inf")},
        {"no_speech_threshold": True},
    ],
)
def test_bounds_that_cannot_be_are_errors(fields) -> None:
    with pytest.raises(OptionError) as raised:
        Fallback(**fields)
    assert raised.value.place == next(iter(fields))
