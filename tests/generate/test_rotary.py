"""The angles of positions against the papers' formulas, one pair of features at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from educe.errors import ModelFileError, UnsupportedModelError
from educe.generate.configuration import Configuration
from educe.generate.rotary import SCALINGS, Rotary

FEATURES, THETA, LONGEST = 16, 10000.0, 64
PAIRS = range(FEATURES // 2)
PLAIN = [THETA ** (-2 * pair / FEATURES) for pair in PAIRS]


def rotary(kind: str, features: int = FEATURES, **fields: Any) -> Rotary:
    scaling = {"rope_type": kind, **fields}
    return Rotary(
        Configuration({"rope_theta": THETA, "max_position_embeddings": LONGEST, "rope_scaling": scaling}),
        features,
    )


def assert_turns(found: Rotary, frequencies: list[float], factor: float = 1.0, span: int = 0) -> None:
    positions = np.array([0, 1, 5, 40])
    cos, sin = found.rows(positions, np.full(4, span))
    angles = np.outer(positions, frequencies)
    np.testing.assert_allclose(cos, factor * np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin, factor * np.sin(angles), atol=1e-5)


def test_plain_and_linear() -> None:
    assert_turns(rotary("default"), PLAIN)
    assert_turns(rotary("linear", factor=4.0), [each / 4 for each in PLAIN])


def test_dynamic_turns_longer_texts_more_slowly_by_their_span() -> None:
    found = rotary("dynamic", factor=3.0)
    assert_turns(found, PLAIN, span=LONGEST)
    theta = THETA * (3.0 * 100 / LONGEST - 2.0) ** (FEATURES / (FEATURES - 2))
    assert_turns(found, [theta ** (-2 * pair / FEATURES) for pair in PAIRS], span=100)


def test_texts_of_a_step_have_spans_of_their_own() -> None:
    found = rotary("dynamic", factor=3.0)
    positions, spans = np.array([7, 9, 7, 9, 3]), np.array([100, 100, 20, 500, 0])
    cos, sin = found.rows(positions, spans)
    for row in range(5):
        alone = found.rows(positions[row : row + 1], spans[row : row + 1])
        np.testing.assert_array_equal(cos[row], alone[0][0])
        np.testing.assert_array_equal(sin[row], alone[1][0])


def test_llama3_slows_down_what_turns_seldom() -> None:
    found = rotary(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )

    def slowed(frequency: float) -> float:
        turns = 32 * frequency / (2 * math.pi)
        if turns > 4:
            return frequency
        share = max(0.0, (turns - 1) / 3)
        return (1 - share) * frequency / 8 + share * frequency

    assert_turns(found, [slowed(each) for each in PLAIN])


@pytest.mark.parametrize("truncated", [False, True])
def test_yarn_slows_down_between_two_pairs(truncated: bool) -> None:
    def pair_of(turns: float) -> float:
        return FEATURES * math.log(32 / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    first, last = pair_of(4.0), pair_of(1.0)
    if truncated:
        first, last = math.floor(first), math.ceil(last)
    ramps = [min(max((pair - max(first, 0)) / (last - max(first, 0)), 0), 1) for pair in PAIRS]
    frequencies = [each / 4 * ramp + each * (1 - ramp) for each, ramp in zip(PLAIN, ramps, strict=True)]
    fields = {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0, "truncate": truncated}
    assert_turns(rotary("yarn", **fields), frequencies, 0.1 * math.log(4) + 1)
    assert_turns(rotary("yarn", **fields, attention_factor=1.5), frequencies, 1.5)
    weighted = (0.1 * 2 * math.log(4) + 1) / (0.1 * 0.5 * math.log(4) + 1)
    assert_turns(rotary("yarn", **fields, mscale=2.0, mscale_all_dim=0.5), frequencies, weighted)


def test_longrope_has_factors_for_short_and_for_long_texts() -> None:
    short, long = [1 + pair / 10 for pair in PAIRS], [2.0 + pair for pair in PAIRS]
    found = rotary("longrope", short_factor=short, long_factor=long, original_max_position_embeddings=16)
    factor = math.sqrt(1 + math.log(LONGEST / 16) / math.log(16))
    assert_turns(found, [each / by for each, by in zip(PLAIN, short, strict=True)], factor, span=16)
    assert_turns(found, [each / by for each, by in zip(PLAIN, long, strict=True)], factor, span=17)


def test_newer_configurations_have_parameters_of_each_kind_of_layers() -> None:
    kinds = {"local": {"rope_theta": 100.0}, "global": {"rope_type": "linear", "factor": 2.0}}
    config = Configuration({"rope_parameters": kinds, "rope_theta": THETA})
    assert_turns(Rotary(config, FEATURES, "local"), [100.0 ** (-2 * pair / FEATURES) for pair in PAIRS])
    assert_turns(Rotary(config, FEATURES, "global"), [each / 2 for each in PLAIN])


def test_a_part_of_the_features_is_turned() -> None:
    found = rotary("default", 32, partial_rotary_factor=0.5)
    assert found.features == FEATURES
    assert_turns(found, PLAIN)


@pytest.mark.parametrize(
    ("kind", "fields", "match"),
    [
        ("linear", {}, "'factor'.* is missing, where a number above 0"),
        ("linear", {"factor": 0}, "'factor'.*is 0, where a number above 0"),
        ("linear", {"factor": float("nan")}, "'factor'.*is nan"),
        ("dynamic", {"factor": "3"}, "'factor'.*is '3'"),
        ("llama3", {"factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "a number above 4"),
        ("yarn", {"factor": 4.0, "truncate": 1}, "'truncate'.*is 1, where true or false"),
        ("longrope", {"short_factor": [1.0], "long_factor": [1.0] * 8}, "a list of 8 numbers"),
        ("longrope", {"short_factor": [0.0] * 8, "long_factor": [1.0] * 8}, "a list of 8 numbers above 0"),
        ("default", {"partial_rotary_factor": 0.2}, "turns 3 of 16 features"),
        ("default", {"partial_rotary_factor": 2.0}, "turns 32 of 16 features"),
    ],
)
def test_fields_that_cannot_be_are_named(kind: str, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelFileError, match=match):
        rotary(kind, **fields)


def test_an_unknown_scaling_is_refused_with_those_near_it() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'yran'.*yarn"):
        rotary("yran")
    assert set(SCALINGS) == {"default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"}
