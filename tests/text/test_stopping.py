"""Stop strings across the borders of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from educe.text.stopping import StopStrings

TEXT = st.text("abc\u00e9", max_size=30)
STOPS = st.lists(st.text("abc\u00e9", min_size=1, max_size=5), max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Give the text before the stop that is complete first, by trying every end."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))], True
    return text, False


def longest_held(text: str, stops: list[str]) -> int:
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


@given(st.lists(TEXT, max_size=8), STOPS)
def test_what_is_streamed_is_the_text_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    stream, shown, whole = StopStrings(stops), "", ""
    for piece in pieces:
        shown += stream.push(piece)
        whole += piece
        text, stopped = cut(whole, stops)
        assert (stream.found is not None) == stopped
        if stopped:
            assert shown == text
        else:
            assert len(whole) - len(shown) == longest_held(whole, stops)
    assert shown + stream.finish() == cut(whole, stops)[0]


@pytest.mark.parametrize("pieces", [["x", "y"], ["xE", "N", "DO"], ["xEN", "DO"], ["xE", "E", "y"]])
def test_held_text_is_released_when_it_is_no_stop(pieces: list[str]) -> None:
    stream = StopStrings(["ENDX"])
    shown = "".join(map(stream.push, pieces))
    assert shown == "".join(pieces)
    assert stream.found is None


def test_a_stop_is_found_over_three_tokens() -> None:
    stream = StopStrings(["</s>", "\n\n"])
    assert [stream.push(piece) for piece in ("one<", "/", "s>two", "three")] == ["one", "", "", ""]
    assert stream.found == "</s>"
    assert stream.finish() == ""
