"""Sounds: every container and sample format to the same waveform, hostile files, and their classification."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import wave
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from educe import engines
from educe.cards.file import read_card
from educe.errors import CardError, EduceError, InputError, LimitError, MissingLibraryError
from educe.formats import load
from educe.limits import DEFAULT_LIMITS
from educe.media.audio import audio_windows, open_sound, peak_normalized, read_audio
from educe.model import CardOrigin, Model, Signature, TensorType
from educe.model.card import AudioInput, Card, ScoresOutput, SpectrumInput
from educe.tasks import TaskOptions
from educe.tasks.audio_classification import AudioClassification
from educe.tasks.predictor import Predictor

KWS = Path(__file__).parent.parent / "zoo" / "kws"
NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, 8000).astype(np.float32)


def tone(hertz, rate, seconds=1.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, rate=8000, container="WAV", subtype=None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def wav(raw: bytes, width: int, channels: int = 1, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((channels, width, rate, 0, "NONE", ""))
        sound.writeframes(raw)
    return file.getvalue()


def av_encoded(container: str, codec: str, samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def read(source, rate=8000, limits=DEFAULT_LIMITS) -> np.ndarray:
    return read_audio(source, rate, limits)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_of_every_width_reach_from_minus_one_to_one(width):
    full = 2 ** (8 * width - 1)
    numbers = [-full, -full // 2, 0, full // 2, full - 1]
    # Bytes are stored without sign, with 128 for silence; wider integers with sign, low byte first.
    shift = full if width == 1 else 0
    raw = b"".join((n + shift).to_bytes(width, "little", signed=width > 1) for n in numbers)
    samples = read(wav(raw, width))
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, np.array(numbers) / full, atol=1e-7)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_are_taken_as_they_are(subtype):
    np.testing.assert_array_equal(read(encoded(NOISE * 1.5, subtype=subtype)), NOISE * 1.5)


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [("FLAC", "PCM_16", 1e-4), ("AIFF", "PCM_24", 1e-6), ("OGG", "VORBIS", 0.02), ("MP3", None, 0.02)],
)
def test_containers_are_told_by_content(tmp_path, container, subtype, tolerance):
    path = tmp_path / "sound.txt"
    path.write_bytes(encoded(tone(440, 16000), 16000, container, subtype))
    samples = read(path, 16000)
    assert abs(len(samples) - 16000) < 3000
    middle = samples[4000:12000]
    assert np.abs(middle - best_fit(440, 16000, middle)).max() < tolerance
    assert np.abs(middle).max() == pytest.approx(0.5, abs=tolerance)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("mp4", "aac", 16000), ("webm", "libopus", 48000), ("adts", "aac", 16000)],
)
def test_containers_of_video_are_read_too(container, codec, rate):
    samples = read(av_encoded(container, codec, tone(440, rate, 2.0), rate), 16000)
    assert abs(len(samples) - 32000) < 4000
    middle = samples[8000:24000]
    assert np.abs(middle - best_fit(440, 16000, middle)).max() < 0.02
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.02)


def test_eight_channels_of_aac_are_averaged():
    samples = tone(440, 16000, 2.0)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, 8)[None], "flt", "7.1")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    middle = read(file.getvalue(), 16000)[8000:24000]
    assert np.abs(middle - best_fit(440, 16000, middle)).max() < 0.02


def test_a_sound_track_of_an_unknown_codec_is_refused():
    content = av_encoded("webm", "libopus", NOISE, 48000).replace(b"A_OPUS", b"A_ZZZZ")
    with pytest.raises(InputError, match="codec is unknown"):
        read(content)


def best_fit(hertz, rate, samples):
    """The tone of any phase and loudness that is nearest to `samples`: encoders delay."""
    angles = 2 * np.pi * hertz * np.arange(len(samples)) / rate
    basis = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return basis @ np.linalg.lstsq(basis, samples, rcond=None)[0]


def test_channels_are_averaged():
    left, right = NOISE, NOISE[::-1]
    stereo = np.stack([left, right], axis=1)
    np.testing.assert_allclose(read(encoded(stereo, subtype="FLOAT")), (left + right) / 2, atol=1e-7)


def test_resampling_keeps_what_the_new_rate_can_hold():
    samples = read(encoded(tone(440, 48000) + tone(10000, 48000), 48000, subtype="FLOAT"), 16000)
    assert len(samples) == 16000
    np.testing.assert_allclose(samples[1000:-1000], tone(440, 16000)[1000:-1000], atol=1e-3)


def test_blocks_join_without_a_seam():
    samples = np.random.default_rng(1).uniform(-0.9, 0.9, 600_001).astype(np.float32)
    content = encoded(samples, 48000, subtype="FLOAT")
    np.testing.assert_array_equal(read(content, 48000), samples)
    np.testing.assert_allclose(
        read(content, 16000), soxr.resample(samples, 48000, 16000, quality="HQ"), atol=1e-6
    )


def with_flac_length(content: bytes, num_frames: int) -> bytes:
    """Return a FLAC file whose header claims another number of frames; 0 means that it is unknown."""
    field = struct.unpack(">Q", content[18:26])[0]
    return content[:18] + struct.pack(">Q", field >> 36 << 36 | num_frames) + content[26:]


def test_a_header_without_a_length_is_read_to_the_end():
    flac = with_flac_length(encoded(NOISE, container="FLAC"), 0)
    np.testing.assert_allclose(read(flac), NOISE, atol=1e-4)


def test_the_limit_is_checked_in_the_header_and_while_reading():
    one_second = DEFAULT_LIMITS.raised(audio_seconds=1)
    flac = encoded(np.concatenate([NOISE, NOISE]), container="FLAC")
    assert len(read(with_flac_length(flac, 8000), limits=one_second)) == 8000
    for content in (flac, with_flac_length(flac, 0)):
        with pytest.raises(LimitError, match="2 seconds found, the limit audio_seconds is 1 seconds"):
            read(content, limits=one_second)
    with pytest.raises(LimitError, match="8,589,935 seconds found"):
        read(with_flac_length(flac, 2**36 - 1))


def bad_floats(value):
    samples = NOISE.astype(np.float64)
    samples[5] = value
    return encoded(samples, subtype="DOUBLE")


def video_without_sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        output.mux(stream.encode(None))
    return file.getvalue()


HOSTILE = {
    "nothing": (b"", "is no sound that can be read"),
    "text": (b"hello world" * 50, "is no sound that can be read"),
    "zeros": (bytes(1000), "is no sound that can be read"),
    "empty wav": (wav(b"", 2), "0 samples found"),
    "cut header": (encoded(NOISE)[:20], "is no sound that can be read"),
    "cut flac": (encoded(NOISE, container="FLAC")[:9000], "the sound is broken"),
    "cut mp4": (av_encoded("mp4", "aac", NOISE, 8000)[:2000], "is no sound that can be read"),
    "mp4 magic alone": (b"\0\0\0\x18ftypmp42", "is no sound that can be read"),
    "webm magic alone": (b"\x1a\x45\xdf\xa3" + bytes(100), "is no sound that can be read"),
    "silent video": (video_without_sound(), "holds no sound"),
    "nan": (bad_floats(float("nan")), "a sample of nan found"),
    "infinity": (bad_floats(float("-inf")), "a sample of inf found"),
    "beyond f32": (bad_floats(1e300), "a sample of inf found"),
    "not scaled": (encoded(NOISE * 32768, subtype="FLOAT"), "expected -1 to 1"),
    "rate of 1 Hz": (wav(bytes(20), 2, rate=1), "a rate of 1 Hz found"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_gets_a_typed_error_with_its_path(tmp_path, name):
    content, cause = HOSTILE[name]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=cause) as caught:
        read(path)
    assert caught.value.path == str(path)
    assert caught.value.remedy
    with pytest.raises(InputError, match=cause) as caught:
        read(content)
    assert caught.value.path is None


def test_a_playlist_opens_no_other_file(tmp_path):
    (tmp_path / "secret.wav").write_bytes(encoded(NOISE))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'secret.wav'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match="is no sound"):
        read(playlist)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "sound.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(path)
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.path == str(path)


SEEDS = [
    encoded(NOISE[:600], container="WAV", subtype="PCM_24"),
    encoded(NOISE[:600], container="FLAC"),
    encoded(NOISE[:600], container="OGG"),
    encoded(NOISE[:600], container="AIFF"),
    av_encoded("mp4", "aac", NOISE[:2000], 8000),
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=8))
def test_altered_files_give_samples_or_a_typed_error(seed, changes):
    content = bytearray(seed)
    for position, value in changes:
        content[position % len(content)] = value
    try:
        samples = read(bytes(content), 4000, DEFAULT_LIMITS.raised(audio_seconds=100))
    except EduceError:
        return
    assert samples.ndim == 1
    assert samples.size
    assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("library", "extra", "content"),
    [
        ("soundfile", "audio", encoded(NOISE)),
        ("soxr", "audio", encoded(NOISE, 16000)),
        ("av", "video", av_encoded("mp4", "aac", NOISE, 8000)),
    ],
)
def test_a_missing_library_is_named(monkeypatch, library, extra, content):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=library) as caught:
        read(content)
    assert caught.value.remedy == f"pip install 'educe[{extra}]'"


def test_an_array_is_taken_as_it_is():
    assert open_sound(NOISE, 8000, DEFAULT_LIMITS) is NOISE
    assert open_sound(NOISE.astype(np.float64), 8000, DEFAULT_LIMITS).dtype == np.float32


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (np.zeros((2, 100), np.float32), r"found float32\[2, 100\]"),
        (np.zeros(100, np.int16), r"found int16\[100\]"),
        (np.zeros(0, np.float32), r"found float32\[0\]"),
        (np.full(3, np.nan, np.float32), "a sample of nan"),
        ([0.0, 0.1], "found list"),
    ],
)
def test_what_is_no_waveform_is_refused(source, cause):
    with pytest.raises(InputError, match=cause) as caught:
        open_sound(source, 8000, DEFAULT_LIMITS)
    assert caught.value.remedy


def test_an_array_that_is_too_long_is_refused():
    with pytest.raises(LimitError, match="2 seconds found"):
        open_sound(np.zeros(8001, np.float32), 8000, DEFAULT_LIMITS.raised(audio_seconds=1))


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 70))
def test_windows_cover_the_sound_and_no_more(length, window_samples, hop_samples):
    samples = np.arange(1, length + 1, dtype=np.float32)
    windows = audio_windows(samples, window_samples, hop_samples, DEFAULT_LIMITS)
    for index, window in enumerate(windows):
        part = samples[index * hop_samples :][:window_samples]
        assert part.size
        np.testing.assert_array_equal(window, np.pad(part, (0, window_samples - len(part))))
    end = (len(windows) - 1) * hop_samples + window_samples
    assert end >= length or len(windows) * hop_samples >= length
    assert len(windows) == 1 or end - hop_samples < length


def test_a_window_larger_than_the_limits_is_refused():
    with pytest.raises(LimitError, match="tensor_bytes"):
        audio_windows(NOISE, 10**12, 10**12, DEFAULT_LIMITS)


def test_peak_is_the_largest_sample():
    np.testing.assert_allclose(peak_normalized(np.array([-0.9, 0.1], np.float32)), [-9, 1], rtol=1e-6)
    quiet = np.array([-0.5, 0, 1e-40], np.float32)
    assert peak_normalized(quiet) is quiet


@pytest.fixture(scope="module")
def keywords() -> Predictor:
    card = read_card(KWS / "educe.toml", DEFAULT_LIMITS)
    model = load(KWS / "model.onnx").with_card(card, CardOrigin("educe.toml"))
    return Predictor(AudioClassification(model, TaskOptions()), engines.compile(model, "onnxruntime"))


def test_spoken_words_are_recognised(keywords):
    cases = json.loads((KWS / "expected.json").read_text())["cases"]
    answers = keywords.map([KWS / "inputs" / name for name in cases])
    for answer, case in zip(answers, cases.values(), strict=True):
        best = answer.predictions[0]
        assert (best.label, round(best.score, 3)) == (case["label"], pytest.approx(case["score"], abs=2e-3))
        assert len(answer.predictions) == 5


def test_loudness_makes_no_difference(keywords):
    samples = read(KWS / "inputs" / "yes.wav", 16000)
    loud, soft = keywords(samples), keywords(samples / 8)
    assert loud.predictions[0].label == soft.predictions[0].label == "yes"
    assert loud.predictions[0].score == pytest.approx(soft.predictions[0].score, abs=1e-5)


def test_scores_of_a_longer_sound_are_averaged(keywords):
    words = [read(KWS / "inputs" / f"{word}.wav", 16000) for word in ("yes", "stop")]
    padded = [np.pad(peak_normalized(word), (0, 16000 - len(word))) for word in words]
    both = keywords(np.concatenate(padded))
    assert {prediction.label for prediction in both.top(2)} == {"yes", "stop"}
    for prediction in both.top(2):
        alone = keywords(padded[("yes", "stop").index(prediction.label)]).predictions[0]
        assert prediction.score == pytest.approx(alone.score / 2, abs=0.02)


def fake(shape, audio: AudioInput, dtype: str = "f32", **card) -> Model:
    signature = Signature({"x": TensorType(dtype, shape)}, {"y": TensorType("f32", ("N", 3))})
    labels = ("low", "middle", "high")
    described = Card(task="audio-classification", labels=labels, audio=audio, **card)
    return Model(None, signature, "fake", None, "", 0, {}, described)


MEL = SpectrumInput("log-mel", frame_samples=32, hop_samples=16, fft_size=32, mel_bins=6)
SPECTRAL = AudioInput(sample_rate=8000, window_samples=80, spectrum=MEL)
PLAIN = AudioInput(sample_rate=8000, window_samples=80, hop_samples=40)


def features(shape, audio=SPECTRAL, dtype="f32", samples=NOISE[:80]):
    task = AudioClassification(fake(shape, audio, dtype), TaskOptions())
    return task.preprocess(list(task.open(samples)))["x"]


def test_the_signature_decides_how_features_lie():
    frames_first = features(("N", 4, 6))
    assert frames_first.shape == (1, 4, 6)
    np.testing.assert_array_equal(features((1, 6, 4)), frames_first.transpose(0, 2, 1))
    np.testing.assert_array_equal(features(("N", 1, 6, None)), frames_first.transpose(0, 2, 1)[:, None])
    np.testing.assert_array_equal(features(("N", "T", 6, 1)), frames_first[..., None])
    np.testing.assert_array_equal(features(("N", 24)), frames_first.reshape(1, 24))
    np.testing.assert_array_equal(features(None), frames_first)
    assert features(("N", 4, 6), dtype="f16").dtype == np.float16


def test_waveforms_are_cut_into_windows():
    windows = features(("N", 1, 80), PLAIN, samples=NOISE[:130])
    assert windows.shape == (3, 1, 80)
    np.testing.assert_array_equal(windows[1, 0], NOISE[40:120])
    np.testing.assert_array_equal(windows[2, 0], np.pad(NOISE[80:130], (0, 30)))


def test_scores_are_averaged_by_item_after_the_activation():
    task = AudioClassification(
        fake(("N", 80), PLAIN, scores=ScoresOutput(activation="softmax")), TaskOptions(top=2)
    )
    items = [*task.open(NOISE[:80]), *task.open(NOISE[:120])]
    task.preprocess(items)
    logits = np.array([[0, 0, np.log(2)], [100, 0, 0], [0, 100, 0]], np.float32)
    first, second = task.postprocess({"y": logits}, items)
    assert [(p.label, round(p.score, 4)) for p in first.predictions] == [("high", 0.5), ("low", 0.25)]
    assert [(p.label, round(p.score, 4)) for p in second.predictions] == [("low", 0.5), ("middle", 0.5)]
    with pytest.raises(CardError, match="has 2 rows for 3 windows"):
        task.postprocess({"y": logits[:2]}, items)


def test_threshold_cuts_the_ranking():
    task = AudioClassification(fake(("N", 80), PLAIN), TaskOptions(threshold=0.4))
    items = list(task.open(NOISE[:80]))
    task.preprocess(items)
    found = task.postprocess({"y": np.array([[0.5, 0.1, 0.4]], np.float32)}, items)[0]
    assert [p.label for p in found.predictions] == ["low", "high"]


@pytest.mark.parametrize(
    ("shape", "dtype", "change", "cause"),
    [
        (("N", 5, 6), "f32", {}, r"a window gives features \[4, 6\]"),
        (("N", 80), "f32", {}, r"input 'x' is f32\[N,80\]"),
        (("N", 4, 6), "i8", {}, "not of floats"),
        (("N", 4, 6), "f32", {"window_samples": 31}, "less than one frame"),
        (("N", 4, 6), "f32", {"input": "z"}, "no tensor input 'z'"),
        (("N", 4, 6), "f32", {"sample_rate": 30}, r"\[audio.spectrum\]: the filters reach from 20 to 15 Hz"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(shape, dtype, change, cause):
    audio = msgspec.structs.replace(SPECTRAL, **change)
    with pytest.raises(CardError, match=cause) as caught:
        AudioClassification(fake(shape, audio, dtype), TaskOptions())
    assert caught.value.remedy


def test_a_card_without_audio_is_refused():
    with pytest.raises(CardError, match=r"no section \[audio\]"):
        AudioClassification(fake(("N", 80), None), TaskOptions())


def test_features_larger_than_the_limits_are_refused():
    dense = msgspec.structs.replace(PLAIN, hop_samples=1)
    task = AudioClassification(
        fake(("N", 80), dense), TaskOptions(limits=DEFAULT_LIMITS.raised(tensor_bytes=10**6))
    )
    with pytest.raises(LimitError, match="tensor_bytes"):
        task.preprocess(list(task.open(NOISE)))
