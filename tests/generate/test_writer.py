"""Blocks of the texts about sources: what fails leaves none behind, and memory bounds what is under way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from educe.errors import LimitError, OptionError
from educe.formats import checkpoint
from educe.generate.beam import Hypothesis
from educe.generate.encoder_decoder import EncoderDecoder, Target
from educe.generate.search import SearchOptions
from educe.generate.writer import Writer
from tests.conftest import ROOT

LONGEST, PROMPT = 40, [2]
SOURCES = [[9, 8, 7], [5, 6], [4, 9, 9, 9, 5], [12, 3]] * 3


class Breakable(EncoderDecoder):
    """A model that fails after so many steps, if it is told to."""

    num_steps = -1

    def decode(self, targets: Sequence[Target]) -> np.ndarray:
        self.num_steps -= 1
        if self.num_steps == 0:
            raise RuntimeError("broken")
        return super().decode(targets)


@pytest.fixture(scope="module")
def model() -> Breakable:
    return Breakable(checkpoint.load(ROOT / "zoo" / "transliteration"), max_sequences=6, block_size=16)


def write(writer: Writer, model: Breakable, num_beams: int = 2, broken: bool = False) -> list[Hypothesis]:
    def read(numbers: Sequence[int], blocks: Sequence[Sequence[int]]) -> None:
        model.encode([SOURCES[number] for number in numbers], blocks)
        if broken:
            raise RuntimeError("broken")

    options = SearchOptions(num_beams=num_beams, max_length=LONGEST, eos_token_ids={2})
    return writer.write([len(each) for each in SOURCES], read, [PROMPT] * len(SOURCES), options)


def bytes_of(model: Breakable, num_texts: int) -> int:
    """Return what a short source takes, and texts of the greatest length."""
    texts = num_texts * model.blocks_for(LONGEST) * model.target_block_bytes
    return model.source_block_bytes + texts


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_step_that_fails_leaves_no_blocks_behind(model, num_steps: int) -> None:
    writer = Writer(model, LONGEST, bytes_of(model, 2))
    expected = write(writer, model)
    for _ in range(8):
        model.num_steps = num_steps
        with pytest.raises(RuntimeError, match="broken"):
            write(writer, model)
    assert write(writer, model) == expected


def test_a_source_that_cannot_be_read_leaves_no_blocks_behind(model) -> None:
    writer = Writer(model, LONGEST, bytes_of(model, 2))
    for _ in range(8):
        with pytest.raises(RuntimeError, match="broken"):
            write(writer, model, broken=True)
    assert len(write(writer, model)) == len(SOURCES)


def test_less_memory_has_fewer_texts_side_by_side_and_the_same_ones(model) -> None:
    expected = write(Writer(model, LONGEST), model)
    for num_texts in (2, 5):
        assert write(Writer(model, LONGEST, bytes_of(model, num_texts)), model) == expected


def test_memory_for_no_text_is_an_error(model) -> None:
    writer = Writer(model, LONGEST, bytes_of(model, 2))
    with pytest.raises(LimitError, match=r"a text of up to 40 tokens and 3 beams needs .* are given"):
        write(writer, model, num_beams=3)
    assert len(write(writer, model)) == len(SOURCES)
    with pytest.raises(OptionError, match="hold no block"):
        Writer(model, LONGEST, 100)


def test_a_source_without_room_is_found_before_others_are_read(model) -> None:
    writer = Writer(model, LONGEST, bytes_of(model, 2))
    options = SearchOptions(num_beams=2, max_length=LONGEST, eos_token_ids={2})

    def read(numbers: Sequence[int], blocks: Sequence[Sequence[int]]) -> None:
        raise AssertionError("nothing is read")

    with pytest.raises(LimitError, match="a text of up to 40 tokens"):
        writer.write([3, 3, 100_000], read, [PROMPT] * 3, options)


def test_sources_that_are_held_count(model) -> None:
    options = SearchOptions(num_beams=2, max_length=LONGEST, eos_token_ids={2})
    size = model.block_size
    writer = Writer(model, LONGEST, bytes_of(model, 2))

    def read(blocks: Sequence[int]) -> None:
        model.encode([[5] * size * len(blocks)], [blocks])

    with writer.reading(size, read) as source:
        expected = writer.search(source, PROMPT, options)
        with (
            writer.reading(1, lambda blocks: None),
            pytest.raises(LimitError, match="a text of up to 40 tokens and 2 beams needs"),
        ):
            writer.search(source, PROMPT, options)
        with pytest.raises(LimitError, match="a text of up to 40 tokens and 2 beams needs"):
            write(writer, model)
        assert writer.search(source, PROMPT, options) == expected
    assert len(write(writer, model)) == len(SOURCES)


def test_a_source_that_is_too_long_is_to_be_shortened(model) -> None:
    writer = Writer(model, LONGEST, bytes_of(model, 2))
    with (
        pytest.raises(LimitError, match=r"a source needs .*\(shorten it, or give more memory\)"),
        writer.reading(100_000, lambda blocks: None),
    ):
        raise AssertionError("nothing is read")


def test_logits_of_a_text_without_room_are_an_error(model) -> None:
    writer = Writer(model, LONGEST, bytes_of(model, 2))
    with writer.reading(3, lambda blocks: model.encode([[9, 8, 7]], [blocks])) as source:
        with pytest.raises(LimitError, match=r"a text of 1,000 tokens needs .* are given"):
            writer.logits(source, [2] * 1000)
        assert writer.logits(source, PROMPT).ndim == 1
    assert len(write(writer, model)) == len(SOURCES)
