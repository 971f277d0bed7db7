"""Choosing tokens: filters by plain definitions, draws by their distribution, bits beside other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from educe.errors import EngineError, OptionError
from educe.generate.filters import kept
from educe.generate.options import SamplingOptions
from educe.generate.sampling import SamplingState, log_probabilities, sample

VOCABULARY = 5000
# A right sampler passes it once in five thousand sets of seeds.
MOST_DEVIATION = 3.5


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


def keep_smallest(order: np.ndarray, probabilities: np.ndarray, share: float) -> np.ndarray:
    sums = np.cumsum(probabilities[order])
    kept = np.zeros(len(order), bool)
    kept[order[: int(np.searchsorted(sums, share)) + 1]] = True
    return kept


def expected(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """The definition, by full sorts in double precision."""
    p = softmax(logits / np.float32(options.temperature))
    if options.top_k:
        p = np.where(logits >= np.sort(logits)[-min(options.top_k, len(logits))], p, 0)
        p /= p.sum()
    if options.top_p < 1:
        p = np.where(keep_smallest(np.argsort(-p, kind="stable"), p, options.top_p), p, 0)
        p /= p.sum()
    p = np.where(p >= options.min_p * p.max(), p, 0)
    p /= p.sum()
    if options.typical_p < 1:
        logs = np.log(np.where(p > 0, p, 1))
        distance = np.where(p > 0, np.abs(-logs + (p * logs).sum()), np.inf)
        p = np.where(keep_smallest(np.argsort(distance, kind="stable"), p, options.typical_p), p, 0)
        p /= p.sum()
    return p


@pytest.mark.parametrize("size", [7, 1000, 40_003])
@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"typical_p": 0.7},
        {"temperature": 1.3, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
        {"top_p": 0.5, "typical_p": 0.8},
    ],
    ids=str,
)
def test_distribution_is_the_definitions(
    size: int, scale: float, settings: dict[str, float], rng: np.random.Generator
) -> None:
    logits = (rng.normal(size=size) * scale).astype(np.float32)
    options = SamplingOptions(**settings)  # type: ignore[arg-type]
    ids, weights = kept(logits, options)
    found = np.zeros(size)
    found[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    wanted = expected(logits, options)
    # Of a share's border, single precision may fall on the other side for one token.
    assert np.count_nonzero((found > 0) != (wanted > 0)) <= (size > 10_000)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2.1 * wanted[wanted > 0].min())


@pytest.mark.parametrize(
    "settings",
    [{}, {"top_k": 300}, {"top_p": 0.95}, {"min_p": 0.001}, {"typical_p": 0.9}, {"typical_p": 0.2}],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_choices_are_the_definitions(
    scale: float, settings: dict[str, float], rng: np.random.Generator
) -> None:
    logits = (rng.normal(size=(1, 150_001)) * scale).astype(np.float32)
    logits[0, rng.integers(0, 150_001, 1000)] = -np.inf
    options = [SamplingOptions(seed=seed, **settings) for seed in range(20)]  # type: ignore[arg-type]
    sums = np.cumsum(expected(logits[0], options[0]))
    for option in options:
        state = SamplingState(option)
        wanted = np.searchsorted(sums, state.uniform() * sums[-1], side="right")
        assert sample(logits, state)[0].token == wanted


def test_penalties_and_bias_are_their_definitions(rng: np.random.Generator) -> None:
    logits = rng.normal(size=50).astype(np.float32)
    options = SamplingOptions(
        repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 2.0, 9: -1.0}
    )
    state = SamplingState(options, prompt=[1, 2, 2])
    for token in (2, 7, 7, *range(20, 45)):
        state.push(token)
    wanted = logits.astype(np.float64)
    wanted[3] += 2
    wanted[9] -= 1
    for token in {1, 2, 7, *range(20, 45)}:
        wanted[token] = wanted[token] / 1.5 if wanted[token] > 0 else wanted[token] * 1.5
        count = state.tokens.count(token)
        wanted[token] -= 0.25 * count + 0.5 * (count > 0)
    before = logits.copy()
    np.testing.assert_allclose(state.process(logits), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_ends_are_masked_before_min_tokens() -> None:
    logits = np.array([[0.0, 9.0, 1.0]], np.float32)
    state = SamplingState(SamplingOptions(temperature=0, min_tokens=2), end_ids=[1])
    tokens = [sample(logits, state)[0].token for _ in range(3)]
    assert tokens == [2, 2, 1]
    assert state.ends(1)
    assert not SamplingState(SamplingOptions(ignore_eos=True), end_ids=[1]).ends(1)


MIXED = [
    SamplingOptions(temperature=0),
    SamplingOptions(seed=1),
    SamplingOptions(seed=1, top_p=0.9, temperature=0.7),
    SamplingOptions(seed=2, top_k=40, min_p=0.01, logprobs=5),
    SamplingOptions(seed=3, typical_p=0.9, repetition_penalty=1.2),
    SamplingOptions(temperature=0, frequency_penalty=0.5, logprobs=3),
]


def run(order: list[int], logits: np.ndarray) -> dict[int, list[object]]:
    """Ten steps of the sequences in `order`, side by side."""
    states = {index: SamplingState(MIXED[index], prompt=[1, 2, 3]) for index in order}
    found: dict[int, list[object]] = {index: [] for index in order}
    for step in range(10):
        rows = np.stack([logits[step, index] for index in order])
        for place, index in enumerate(order):
            found[index] += sample(rows[place : place + 1], states[index])
    return found


def test_a_row_does_not_depend_on_the_rows_beside_it(rng: np.random.Generator) -> None:
    logits = (rng.normal(size=(10, len(MIXED), VOCABULARY + 3)) * 2).astype(np.float32)
    alone = {index: run([index], logits)[index] for index in range(len(MIXED))}
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1], [2, 4, 0, 1]):
        found = run(order, logits)
        assert found == {index: alone[index] for index in order}


def test_a_seed_and_a_number_decide_the_text(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(30, 1, VOCABULARY)).astype(np.float32)

    def text(**given: int) -> list[int]:
        state = SamplingState(SamplingOptions(seed=given.get("seed")), number=given.get("number", 0))
        return [sample(row, state)[0].token for row in logits]

    assert text(seed=7) == text(seed=7)
    assert text(seed=-7) == text(seed=2**64 - 7)
    distinct = [text(seed=7), text(seed=8), text(seed=7, number=1), text(), text()]
    distinct += [text(seed=2**64 - 1), text(seed=2**64 - 2), text(seed=2**63 + 1, number=1)]
    assert len({tuple(tokens) for tokens in distinct}) == 8


def chi_squared(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return Pearson's statistic as a normal deviate (Wilson and Hilferty, 1931), small cells in one."""
    wanted = probabilities * counts.sum()
    large = wanted >= 5
    assert counts[probabilities == 0].sum() == 0
    pairs = [*zip(counts[large], wanted[large], strict=True)]
    if wanted[~large].sum() >= 5:
        pairs.append((counts[~large].sum(), wanted[~large].sum()))
    freedom = len(pairs) - 1
    statistic = sum((c - w) ** 2 / w for c, w in pairs)
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


def first_tokens(draws: int, choose: object) -> np.ndarray:
    return np.bincount([choose(seed) for seed in range(draws)], minlength=12)  # type: ignore[operator]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "top_p": 0.8}, {"top_k": 4}], ids=str)
def test_draws_follow_the_distribution(settings: dict[str, float], rng: np.random.Generator) -> None:
    logits = rng.normal(size=(1, 12)).astype(np.float32)

    def choose(seed: int) -> int:
        state = SamplingState(SamplingOptions(seed=seed, **settings))  # type: ignore[arg-type]
        return sample(logits, state)[0].token

    wanted = expected(logits[0], SamplingOptions(**settings))  # type: ignore[arg-type]
    assert chi_squared(first_tokens(4000, choose), wanted) < MOST_DEVIATION


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_looked_up_draft_leaves_the_text_as_it_is(temperature: float, rng: np.random.Generator) -> None:
    logits = rng.normal(size=(6, 12)).astype(np.float32)
    for seed in range(40):
        options = SamplingOptions(seed=seed, temperature=temperature, frequency_penalty=0.3, logprobs=2)
        plain = SamplingState(options)
        wanted = [sample(logits[i : i + 1], plain)[0] for i in range(6)]
        tokens = [choice.token for choice in wanted]
        for right in range(5):
            draft = [*tokens[:right], *((token + 1) % 12 for token in tokens[right:5])]
            state = SamplingState(options)
            assert sample(logits[: len(draft) + 1], state, draft) == wanted[: right + 1]
            assert state.tokens == tokens[: right + 1]


def test_verification_ends_with_the_text() -> None:
    logits = np.eye(3, dtype=np.float32)
    state = SamplingState(SamplingOptions(temperature=0), end_ids=[0])
    assert [c.token for c in sample(logits, state, [0, 1])] == [0]


def test_log_probabilities_are_the_models_own(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(1, VOCABULARY)).astype(np.float32)
    logits[0, 10] = logits[0, 4000] = 6
    state = SamplingState(SamplingOptions(seed=4, temperature=0.3, logit_bias={7: 100}, logprobs=4))
    choice = sample(logits, state)[0]
    logs = np.log(softmax(logits[0]))
    assert choice.token == 7
    assert choice.logprob == pytest.approx(logs[7], abs=1e-5)
    assert [token for token, _ in choice.top] == np.argsort(-logits[0], kind="stable")[:4].tolist()
    assert [value for _, value in choice.top] == pytest.approx(np.sort(logs)[::-1][:4], abs=1e-5)
    assert log_probabilities(logits[0], 7, 0).top == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_the_engines_fault(bad: float, temperature: float) -> None:
    logits = np.array([[0, bad, 1]], np.float32)
    with pytest.raises(EngineError, match=r"logit"):
        sample(logits, SamplingState(SamplingOptions(temperature=temperature)))
    with pytest.raises(EngineError, match=r"logit"):
        log_probabilities(logits[0], 0, 2)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 3}, {"seed": 3, "min_tokens": 5}], ids=str)
def test_what_no_text_has_is_never_chosen(settings: dict[str, int], rng: np.random.Generator) -> None:
    logits = rng.normal(size=(20, 9)).astype(np.float32)
    logits[:, [2, 8]] = 9
    options = SamplingOptions(**settings, logit_bias={2: 100}, logprobs=2)  # type: ignore[arg-type]
    state = SamplingState(options, end_ids=[0], num_tokens=8, gaps=np.array([2]))
    chosen = [sample(row[None], state)[0] for row in logits]
    assert not {choice.token for choice in chosen} & {2, 8}
    # Their chances are the model's own all the same.
    assert {token for choice in chosen for token, _ in choice.top} == {2, 8}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-300),
        ("presence_penalty", 3),
        ("frequency_penalty", float("inf")),
        ("logit_bias", {1: 500}),
        ("logit_bias", {-1: 5}),
        ("logit_bias", {"a": 5}),
        ("seed", -(2**63) - 1),
        ("seed", 2**64),
        ("n", 0),
        ("n", None),
        ("logprobs", 21),
        ("stop", ""),
        ("stop", [""]),
        ("stop", [3]),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("ignore_eos", 1),
    ],
)
def test_a_wrong_option_is_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name) as caught:
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.place == name
    assert caught.value.remedy


def test_more_least_than_most_tokens_are_refused() -> None:
    with pytest.raises(OptionError, match="at most max_tokens=3"):
        SamplingOptions(min_tokens=4, max_tokens=3)


def test_numbers_of_numpy_become_pythons() -> None:
    options = SamplingOptions(
        max_tokens=np.int64(4),
        top_p=np.float32(0.5),
        temperature=np.float64(0.5),
        top_k=np.uint8(3),
        logit_bias={np.int32(7): np.float32(2)},
    )
    found = [
        options.max_tokens,
        options.top_p,
        options.temperature,
        options.top_k,
        *options.logit_bias.items(),
    ]
    assert found == [4, 0.5, 0.5, 3, (7, 2.0)]
    assert [type(each) for each in found] == [int, float, float, int, tuple]
    for wrong in (np.True_, np.float64(4), np.array(4)):
        with pytest.raises(OptionError, match="max_tokens: "):
            SamplingOptions(max_tokens=wrong)  # type: ignore[arg-type]


def test_a_text_that_ends_may_be_given_alone() -> None:
    assert SamplingOptions(stop="END").stop == ("END",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logit_bias": {"a": 1}}, "logit_bias: has 'a': 1; each is a token"),
        ({"logit_bias": {7: 101}}, "logit_bias: has 7: 101; "),
        ({"seed": -(2**63) - 1}, "from -9223372036854775808 to 18446744073709551615"),
    ],
)
def test_what_an_option_takes_is_said_exactly(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        SamplingOptions(**options)


@pytest.mark.parametrize("stop", [["x"] * 65, "x" * 1025, ["a", "x" * 1025]])
def test_stops_are_bounded(stop: Any) -> None:
    with pytest.raises(OptionError, match="64"):
        SamplingOptions(stop=stop)
    assert SamplingOptions(stop=["x" * 1024] * 64).stop
