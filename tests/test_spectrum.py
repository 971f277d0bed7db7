"""Features of waveforms: the fast version against loops, published figures and a trained model's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from educe.cards.file import read_card
from educe.errors import CardError
from educe.limits import DEFAULT_LIMITS
from educe.media.audio import peak_normalized, read_audio
from educe.model.card import SpectrumInput
from educe.model.spectrum import Spectrum, mel_filters, slaney_hertz, slaney_mel

KWS = Path(__file__).parent.parent / "zoo" / "kws"
SMALL = SpectrumInput("log-mel", frame_samples=48, hop_samples=20, fft_size=64, mel_bins=6)
RATE = 2000


def slow_mel(hertz, scale):
    if scale == "htk":
        return 1127 * math.log(1 + hertz / 700)
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def slow_hertz(mel, scale):
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slow_mel(middle, scale) < mel else (low, middle)
    return low


def slow_triangle(position, left, centre, right):
    if left < position <= centre:
        return (position - left) / (centre - left)
    if centre < position < right:
        return (right - position) / (right - centre)
    return 0.0


def slow_filters(rules, rate):
    """[filter][frequency], one triangle at a time."""
    bottom = slow_mel(rules.low_hz, rules.mel_scale)
    top = slow_mel(rules.high_hz or rate / 2, rules.mel_scale)
    step = (top - bottom) / (rules.mel_bins + 1)
    filters = []
    for index in range(rules.mel_bins):
        mels = [bottom + step * (index + side) for side in range(3)]
        hertz = [slow_hertz(mel, rules.mel_scale) for mel in mels]
        row = []
        for k in range(rules.fft_size // 2 + 1):
            position = k * rate / rules.fft_size
            if rules.mel_triangles == "mel":
                weight = slow_triangle(slow_mel(position, rules.mel_scale), *mels)
            else:
                weight = slow_triangle(position, *hertz)
            row.append(weight * 2 / (hertz[2] - hertz[0]) if rules.mel_norm == "slaney" else weight)
        filters.append(row)
    return filters


def slow_window(kind, n, size):
    angle = 2 * math.pi * n / size
    return {
        "hann": math.sin(angle / 2) ** 2,
        "hamming": 0.54 - 0.46 * math.cos(angle),
        "rectangular": 1.0,
    }[kind]


def slow_frame(samples, rules, filters):
    tapered = [x * slow_window(rules.window, n, len(samples)) for n, x in enumerate(samples)]
    energies = []
    for k in range(rules.fft_size // 2 + 1):
        angles = [2 * math.pi * k * n / rules.fft_size for n in range(len(tapered))]
        real = sum(x * math.cos(angle) for x, angle in zip(tapered, angles, strict=True))
        imaginary = sum(x * math.sin(angle) for x, angle in zip(tapered, angles, strict=True))
        energies.append(math.hypot(real, imaginary) ** rules.power)
    levels = []
    for row in filters:
        total = sum(w * e for w, e in zip(row, energies, strict=True)) + rules.log_floor
        decibels = (20 if rules.power == 1 else 10) * math.log10(total)
        levels.append({"ln": math.log(total), "log10": math.log10(total), "db": decibels}[rules.log])
    if rules.kind == "log-mel":
        return levels
    size = len(levels)
    return [
        sum(2 * level * math.cos(math.pi * k * (2 * n + 1) / (2 * size)) for n, level in enumerate(levels))
        / math.sqrt(2 * size)
        for k in range(rules.coefficients)
    ]


RULES = st.builds(
    SpectrumInput,
    kind=st.sampled_from(["log-mel", "mfcc"]),
    frame_samples=st.integers(2, 40),
    hop_samples=st.integers(1, 50),
    fft_size=st.integers(40, 65),
    window=st.sampled_from(["hann", "hamming", "rectangular"]),
    power=st.sampled_from([1, 2]),
    mel_bins=st.integers(4, 9),
    low_hz=st.floats(0, 300),
    high_hz=st.floats(400, RATE / 2) | st.none(),
    mel_scale=st.sampled_from(["htk", "slaney"]),
    mel_triangles=st.sampled_from(["hertz", "mel"]),
    mel_norm=st.sampled_from(["none", "slaney"]),
    log=st.sampled_from(["ln", "log10", "db"]),
    log_floor=st.sampled_from([1e-3, 1e-2]),
    coefficients=st.integers(1, 4),
)


@settings(max_examples=30, deadline=None)
@given(RULES, st.integers(0, 2**32 - 1))
def test_fast_equals_slow(rules, seed):
    waveform = np.random.default_rng(seed).uniform(-1, 1, 120).astype(np.float32)
    filters = slow_filters(rules, RATE)
    starts = range(0, len(waveform) - rules.frame_samples + 1, rules.hop_samples)
    slow = [
        slow_frame([float(x) for x in waveform[start : start + rules.frame_samples]], rules, filters)
        for start in starts
    ]
    fast = Spectrum(rules, RATE)(waveform)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, slow, atol=2e-3)


def test_reproduces_the_mfccs_that_the_keyword_spotter_was_trained_on():
    rules = read_card(KWS / "educe.toml", DEFAULT_LIMITS).audio
    expected = json.loads((KWS / "expected.json").read_text())["mfcc_of_down.wav"]
    samples = read_audio(KWS / "inputs" / "down.wav", rules.sample_rate, DEFAULT_LIMITS)
    clip = np.zeros(rules.window_samples, np.float32)
    clip[: len(samples)] = peak_normalized(samples)
    features = Spectrum(rules.spectrum, rules.sample_rate)(clip)
    assert features.shape == (49, 10)
    np.testing.assert_allclose(features[: len(expected)], expected, atol=1e-3)


def test_slaney_scale_has_the_published_values():
    hertz = np.array([0.0, 110, 220, 440, 1000, 6400])
    mel = np.array([0.0, 1.65, 3.3, 6.6, 15, 42])
    np.testing.assert_allclose(slaney_mel(hertz), mel, rtol=1e-12)
    np.testing.assert_allclose(slaney_hertz(mel), hertz, rtol=1e-12)


def test_filters_are_those_of_whisper():
    rules = SpectrumInput(
        "log-mel", 400, 160, 400, mel_bins=80, low_hz=0, mel_scale="slaney", mel_norm="slaney"
    )
    filters = mel_filters(rules, 8000, 16000)
    assert filters.shape == (201, 80)
    np.testing.assert_allclose(
        filters[:3, :2], [[0, 0], [0.02486259, 0.00199082], [0, 0.02287177]], atol=1e-7
    )


def test_slaney_norm_gives_every_filter_the_same_area():
    rules = SpectrumInput("log-mel", 400, 160, 2**14, mel_bins=20, mel_norm="slaney")
    areas = mel_filters(rules, 8000, 16000).sum(axis=0) * 16000 / 2**14
    np.testing.assert_allclose(areas, 1, rtol=1e-2)


def test_a_batch_equals_its_rows_and_is_not_modified():
    batch = np.random.default_rng(0).uniform(-1, 1, (5, 3000)).astype(np.float32)
    before = batch.copy()
    spectrum = Spectrum(SMALL, RATE)
    features = spectrum(batch)
    assert features.shape == (5, spectrum.num_frames(3000), 6)
    for row, waveform in zip(features, batch, strict=True):
        np.testing.assert_allclose(row, spectrum(waveform), atol=1e-5)
    np.testing.assert_array_equal(batch, before)


def test_a_long_sound_equals_its_parts():
    waveform = np.random.default_rng(1).uniform(-1, 1, 20 * 5000 + 28).astype(np.float32)
    spectrum = Spectrum(SMALL, RATE)
    whole = spectrum(waveform)
    assert len(whole) == 5000
    for frame in (0, 2047, 2048, 4999):
        part = spectrum(waveform[frame * 20 : frame * 20 + 48])
        np.testing.assert_allclose(whole[frame : frame + 1], part, atol=1e-5)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (47, 0), (48, 1), (67, 1), (68, 2)])
def test_number_of_frames(samples, frames):
    spectrum = Spectrum(SMALL, RATE)
    assert spectrum.num_frames(samples) == frames
    assert spectrum(np.zeros(samples, np.float32)).shape == (frames, 6)


def test_silence_gives_the_floor():
    levels = Spectrum(SMALL, RATE)(np.zeros(48, np.float32))
    np.testing.assert_allclose(levels, math.log(1e-6), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"frame_samples": 65}, "frame_samples = 65 is more than fft_size = 64"),
        ({"high_hz": 1001.0}, "1001 Hz"),
        ({"low_hz": 500.0, "high_hz": 500.0}, "from 500 to 500 Hz"),
        ({"low_hz": float("nan")}, "from nan"),
        ({"kind": "mfcc", "coefficients": 7}, "7 coefficients"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(change, cause):
    with pytest.raises(CardError, match=cause) as caught:
        Spectrum(msgspec.structs.replace(SMALL, **change), RATE)
    assert caught.value.remedy
    assert caught.value.place == "[audio.spectrum]"


def test_hostile_sizes_are_refused_when_the_card_is_read():
    with pytest.raises(msgspec.ValidationError, match="fft_size"):
        msgspec.convert({**msgspec.to_builtins(SMALL), "fft_size": 10**9}, SpectrumInput)
