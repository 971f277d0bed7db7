"""Texts whose positions are turned by their spans share no keys that are turned otherwise."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from educe.formats import checkpoint
from educe.generate.configuration import Configuration
from educe.generate.generator import Generator
from educe.generate.rotary import Rotary
from educe.model.checkpoint import Checkpoint
from tests.conftest import ROOT

STORIES = ROOT / "zoo" / "stories260K"
CASES = json.loads((STORIES / "expected.json").read_text())["cases"]


def stories(scaling: dict[str, Any]) -> Checkpoint:
    model = checkpoint.load(STORIES / "stories260K.bin")
    config = {**model.config, "max_position_embeddings": 160, "rope_scaling": scaling}
    return dataclasses.replace(model, config=config)


def test_a_prompt_is_read_again_for_a_longer_text() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 2.5, 3.0]}
    scaling = {"rope_type": "longrope", **factors, "original_max_position_embeddings": 120}
    prompt = CASES[0]["greedy_ids"][:100]
    with Generator(stories(scaling), max_sequences=2, threads=1) as generator:
        short = generator.generate(prompt, max_tokens=20)
        long = generator.generate(prompt, max_tokens=21)
        again = [generator.generate(prompt, max_tokens=count) for count in (20, 21, 5)]
    with Generator(stories(scaling), max_sequences=2, threads=1) as generator:
        alone = generator.generate(prompt, max_tokens=21)
    assert long.tokens == alone.tokens == again[1].tokens
    assert short.tokens == again[0].tokens
    assert short.tokens[:5] == again[2].tokens
    assert short.tokens != long.tokens[:20]


@pytest.mark.parametrize(
    ("scaling", "alike", "apart"),
    [
        ({"rope_type": "linear", "factor": 2.0}, [(1, 1000)], []),
        ({"rope_type": "dynamic", "factor": 2.0}, [(1, 160)], [(160, 161), (161, 162)]),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 50,
            },
            [(1, 50), (51, 1000)],
            [(50, 51)],
        ),
    ],
)
def test_spans_are_alike_where_angles_are(
    scaling: dict[str, Any], alike: list[tuple[int, int]], apart: list[tuple[int, int]]
) -> None:
    rotary = Rotary(Configuration({"max_position_embeddings": 160, "rope_scaling": scaling}), 8)
    for one, other in alike:
        assert rotary.salt(one) == rotary.salt(other)
    for one, other in apart:
        assert rotary.salt(one) != rotary.salt(other)
        assert len(rotary.salt(one)) == len(rotary.salt(other))
