"""Voice activity: the policy on its own, and a real model on a real speech."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from educe import engines
from educe.cards.file import read_card
from educe.engines.base import Executable
from educe.errors import CardError, InputError
from educe.formats import load
from educe.limits import DEFAULT_LIMITS
from educe.model import CardOrigin, Model
from educe.model.card import SpectrumInput, VoiceOutput
from educe.tasks import TaskOptions
from educe.tasks.predictor import Predictor
from educe.tasks.voice_activity import VoiceActivity, padded, segments, speech_probabilities

ZOO = Path(__file__).parent.parent / "zoo" / "silero_vad"
SPEECH = ZOO / "inputs" / "jfk.wav"
WINDOW = 0.1
SEGMENTS = [(0.3, 2.3), (3.3, 3.9), (3.9, 4.4), (5.4, 7.7), (8.2, 10.6)]
RULES = VoiceOutput(min_speech_seconds=0.2, min_silence_seconds=0.2)


@pytest.fixture(scope="module")
def model() -> Model:
    card = read_card(ZOO / "educe.toml", DEFAULT_LIMITS)
    return load(ZOO / "model.onnx").with_card(card, CardOrigin("educe.toml"))


@pytest.fixture(scope="module")
def executable(model: Model) -> Executable:
    return engines.compile(model, "onnxruntime")


def changed(model: Model, **audio) -> Model:
    card = msgspec.structs.replace(model.card, audio=msgspec.structs.replace(model.card.audio, **audio))
    return model.with_card(card, CardOrigin("test"))


def run(task: VoiceActivity, executable: Executable, samples: np.ndarray):
    items = list(task.open(samples))
    feeds = task.preprocess(items)
    state, stacked = executable.new_state(), []
    for step in feeds["input"]:
        stacked.append(executable.run({"input": step, **task.constants()}, state)["output"])
    return items, {"output": np.stack(stacked)}


def test_probabilities_and_segments_of_a_speech(model, executable):
    expected = json.loads((ZOO / "expected.json").read_text())["jfk.wav"]["probability_per_512_samples"]
    task = VoiceActivity(model, TaskOptions())
    samples, _ = soundfile.read(SPEECH, dtype="float32")
    items, outputs = run(task, executable, samples)
    probabilities = speech_probabilities(outputs, "output")
    # The reference leaves out the last window, which the sound does not fill.
    assert len(probabilities) == len(expected) + 1
    np.testing.assert_allclose(probabilities[:-1], expected, atol=1e-3)
    predictions = task.postprocess(outputs, items)[0].predictions
    bounds = [(round(p.start_seconds, 1), round(p.end_seconds, 1)) for p in predictions]
    assert bounds == SEGMENTS
    assert all(p.label == "speech" and p.score > 0.85 for p in predictions)


def test_predictor_gives_the_same_segments(model, executable):
    answer = Predictor(VoiceActivity(model, TaskOptions()), executable)(SPEECH)
    assert [round(p.start_seconds, 1) for p in answer.predictions] == [start for start, _ in SEGMENTS]


def test_silence_has_no_speech(model, executable):
    task = VoiceActivity(model, TaskOptions())
    items, outputs = run(task, executable, np.zeros(5000, np.float32))
    assert task.postprocess(outputs, items)[0].predictions == []


def test_windows_begin_with_the_past(model):
    task = VoiceActivity(model, TaskOptions())
    samples = np.random.default_rng(0).uniform(-1, 1, 1100).astype(np.float32)
    feeds = task.preprocess(list(task.open(samples)))["input"]
    assert feeds.shape == (3, 1, 576)
    np.testing.assert_array_equal(feeds[0, 0], np.concatenate([np.zeros(64), samples[:512]]))
    np.testing.assert_array_equal(feeds[1, 0], samples[448:1024])
    np.testing.assert_array_equal(feeds[2, 0], np.concatenate([samples[960:], np.zeros(436)]))


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (512, 1), (513, 2), (1024, 2)])
def test_number_of_steps(model, samples, steps):
    task = VoiceActivity(model, TaskOptions())
    assert len(task.preprocess(list(task.open(np.zeros(samples, np.float32))))["input"]) == steps


def test_caller_may_ask_for_the_best_segments_and_another_threshold(model):
    probabilities = np.array([0.6] * 20 + [0] * 10 + [0.9] * 20 + [0] * 10 + [0.8] * 20, np.float32)

    def ask(**options) -> list[float]:
        task = VoiceActivity(model, TaskOptions(**options))
        items = list(task.open(np.zeros(80 * 512, np.float32)))
        task.preprocess(items)
        found = task.postprocess({"output": probabilities[:, None, None]}, items)[0].predictions
        return [round(p.score, 3) for p in found]

    assert ask() == [0.6, 0.9, 0.8]
    assert ask(top=2) == [0.9, 0.8]
    assert ask(threshold=0.85) == [0.9]


def test_an_output_that_is_not_one_probability_a_window_is_refused(model):
    task = VoiceActivity(model, TaskOptions())
    items = list(task.open(np.zeros(1024, np.float32)))
    task.preprocess(items)
    with pytest.raises(CardError, match="4 values for 2 windows"):
        task.postprocess({"output": np.zeros((2, 1, 2), np.float32)}, items)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"hop_samples": 256}, "hop_samples is not window_samples"),
        ({"spectrum": SpectrumInput("log-mel", 400, 160, 400)}, "takes a waveform"),
        ({"input": "sound"}, "no tensor input 'sound'"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(model, change, cause):
    with pytest.raises(CardError, match=cause) as caught:
        VoiceActivity(changed(model, **change), TaskOptions())
    assert caught.value.remedy


def test_a_card_without_audio_is_refused(model):
    bare = model.with_card(msgspec.structs.replace(model.card, audio=None), CardOrigin("test"))
    with pytest.raises(CardError, match=r"no section \[audio\]"):
        VoiceActivity(bare, TaskOptions())


def test_a_source_that_is_no_sound_is_refused(model):
    with pytest.raises(InputError, match="is no sound"):
        list(VoiceActivity(model, TaskOptions()).open(b"no sound at all"))


@pytest.mark.parametrize(
    ("probabilities", "found"),
    [
        ([], []),
        ([0.9], []),
        ([0.9, 0.9], [(0, 2)]),
        ([0, 0.5, 0.5, 0, 0], [(1, 3)]),
        # A pause of one window is too short, one of two ends the segment.
        ([0.9, 0.9, 0, 0.9, 0.9], [(0, 5)]),
        ([0.9, 0.9, 0, 0, 0.9, 0.9], [(0, 2), (4, 6)]),
        # Between the thresholds nothing begins and nothing ends.
        ([0.4, 0.9, 0.4, 0.4, 0.4, 0, 0], [(1, 5)]),
        ([0.9, 0.9, 0, 0.4, 0, 0.4], [(0, 6)]),
        # A short pause at the end is no speech.
        ([0.9, 0.9, 0], [(0, 2)]),
    ],
)
def test_segments(probabilities, found):
    assert segments(probabilities, WINDOW, RULES) == found


def test_a_segment_of_exactly_the_least_length_is_kept():
    # In floating point 0.27 / 0.03 is more than 9.
    rules = VoiceOutput(min_speech_seconds=0.27, min_silence_seconds=0.27)
    assert segments([1.0] * 9, 0.03, rules) == [(0, 9)]
    assert segments([1.0] * 8, 0.03, rules) == []


PROBABILITIES = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), max_size=80)
ANY_RULES = st.builds(
    VoiceOutput,
    score_threshold=st.sampled_from([0.3, 0.5, 0.7]),
    hysteresis=st.sampled_from([0.0, 0.15]),
    min_speech_seconds=st.sampled_from([0.0, 0.25, 0.7]),
    min_silence_seconds=st.sampled_from([0.0, 0.1, 0.35]),
    padding_seconds=st.sampled_from([0.0, 0.05, 1.0]),
)


@given(PROBABILITIES, ANY_RULES)
def test_segments_are_sorted_disjoint_and_long_enough(probabilities, rules):
    found = segments(probabilities, WINDOW, rules)
    edges = [edge for segment in found for edge in segment]
    assert edges == sorted(edges)
    for start, end in found:
        assert 0 <= start < end <= len(probabilities)
        assert (end - start) * WINDOW >= rules.min_speech_seconds - 1e-9
        assert probabilities[start] >= rules.score_threshold
        assert probabilities[end - 1] >= rules.score_threshold - rules.hysteresis
    for (_, end), (start, _) in itertools.pairwise(found):
        assert (start - end) * WINDOW >= rules.min_silence_seconds - 1e-9
        assert all(p < rules.score_threshold for p in probabilities[end:start]) or rules.min_speech_seconds


@given(PROBABILITIES, ANY_RULES)
def test_every_long_run_of_speech_is_covered(probabilities, rules):
    found = segments(probabilities, WINDOW, rules)
    covered = {window for start, end in found for window in range(start, end)}
    run: list[int] = []
    for window, probability in enumerate([*probabilities, 0.0]):
        if probability >= rules.score_threshold:
            run.append(window)
            continue
        if len(run) * WINDOW >= rules.min_speech_seconds:
            assert covered.issuperset(run)
        run = []


@given(PROBABILITIES, ANY_RULES, st.floats(0, WINDOW, exclude_max=True))
def test_padding_never_overlaps_nor_leaves_the_sound(probabilities, rules, missing):
    found = segments(probabilities, WINDOW, rules)
    total = max(0.0, len(probabilities) * WINDOW - missing)
    times = padded(found, WINDOW, rules.padding_seconds, total)
    edges = [edge for segment in times for edge in segment]
    assert edges == sorted(edges)
    assert all(0 <= edge <= total for edge in edges)
    for (start, end), (start_seconds, end_seconds) in zip(found, times, strict=True):
        assert start_seconds <= start * WINDOW
        assert end_seconds >= min(end * WINDOW, total)
        assert end_seconds - start_seconds <= (end - start) * WINDOW + 2 * rules.padding_seconds + 1e-9


def test_padding_of_neighbours_meets_in_the_middle():
    times = padded([(1, 3), (4, 6)], 1.0, 0.75, 6.5)
    assert times == [(0.25, 3.5), (3.5, 6.5)]
    assert padded([(1, 3), (6, 8)], 1.0, 0.75, 20.0) == [(0.25, 3.75), (5.25, 8.75)]
    assert padded([], 1.0, 0.75, 6.5) == []
