"""How long texts may be, by what configurations say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from educe.cli.checkpoint_facts import checkpoint_facts
from educe.errors import ModelFileError, OptionError
from educe.generate.capacity import context_length
from educe.model.checkpoint import Checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 256}, 256),
        ({"max_position_embeddings": 512, "rope_scaling": YARN}, 4000),
        ({"max_position_embeddings": 512, "rope_parameters": YARN}, 4000),
        ({"max_position_embeddings": 8000, "rope_scaling": YARN}, 8000),
        ({"max_position_embeddings": 512, "rope_scaling": None}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {**YARN, "rope_type": "llama3"}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {**YARN, "rope_type": "longrope"}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {**YARN, "rope_type": None, "type": "yarn"}}, 4000),
    ],
)
def test_a_text_is_as_long_as_the_model_was_made_for(config: dict[str, Any], expected: int) -> None:
    assert context_length(config, None) == context_length(config, expected) == expected
    assert context_length(config, 7) == 7
    for wanted in (0, expected + 1):
        with pytest.raises(OptionError, match=f"1 to {expected:,} tokens"):
            context_length(config, wanted)


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": "512"},
        {"max_position_embeddings": -1},
        {"max_position_embeddings": 512, "rope_scaling": {**YARN, "factor": "4"}},
        {"max_position_embeddings": 512, "rope_scaling": {**YARN, "original_max_position_embeddings": 1.5}},
        {"max_position_embeddings": 512, "rope_scaling": "yarn"},
    ],
)
def test_what_cannot_be_is_a_typed_error(config: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="of the configuration"):
        context_length(config, None)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_what_is_inspected_is_what_a_generator_takes(kind: str, tmp_path: Path) -> None:
    config = {"max_position_embeddings": 2000, "rope_scaling": {**YARN, "rope_type": kind}}
    model = Checkpoint("llama", config, {}, None, {}, tmp_path, [b""])
    assert checkpoint_facts(model)["context_length"] == context_length(config, None)
