"""Sounds are heard, and timestamps placed, as Hugging Face's library does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from educe.generate.timestamps import TimestampRules
from educe.generate.transcription import Transcriber
from educe.model.checkpoint import Checkpoint
from tests.generate.test_transcription import BINS, ID, LETTERS, MOST, ROWS, WORDS, whisper

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]


def test_spectrograms_are_those_of_transformers(tmp_path) -> None:
    own = Transcriber(whisper(tmp_path))
    theirs = transformers.WhisperFeatureExtractor(feature_size=BINS, chunk_length=1)
    rng = np.random.default_rng(4)
    for size in (3000, 16_000):
        sound = np.cumsum(rng.standard_normal(size)).astype(np.float32) / 200
        expected = theirs(sound, sampling_rate=16_000, return_tensors="np").input_features[0]
        np.testing.assert_allclose(own.features(sound)[:, : 2 * ROWS], expected[:, : 2 * ROWS], atol=1e-4)


def test_timestamps_are_placed_by_the_rules_of_transformers() -> None:
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    first, end, none, most, words = 20, 15, 19, 6, 40
    config = SimpleNamespace(
        no_timestamps_token_id=none, eos_token_id=end, bos_token_id=end, max_initial_timestamp_index=most,
        _detect_timestamp_from_logprob=True,
    )  # fmt: skip
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=2)
    rules = TimestampRules(first, end, none, most)
    rng = np.random.default_rng(4)
    for _ in range(500):
        written: list[int] = []
        for _ in range(rng.integers(0, 6)):
            least = max([first, *(token for token in written if token >= first)])
            written.append(int(rng.integers(least, words) if rng.random() < 0.5 else rng.integers(0, end)))
        scores = rng.standard_normal(words).astype(np.float32) * 2
        expected = theirs(torch.tensor([[3, 4, *written]]), torch.from_numpy(scores[None].copy()))[0].numpy()
        rules.apply(scores, written)
        np.testing.assert_array_equal(scores == -np.inf, expected == -np.inf)


def network_of(given: Checkpoint) -> Any:
    """Return the network of transformers that has the weights of a checkpoint."""
    ends = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ID["<|endoftext|>"])
    config = transformers.WhisperConfig(
        **{**given.config, **ends}, decoder_start_token_id=ID["<|startoftranscript|>"],
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    network = transformers.WhisperForConditionalGeneration(config).eval()
    weights = {
        name: torch.from_numpy(weight.data.view(np.float32).reshape(weight.shape))
        for name, weight in given.weights.items()
    }
    network.load_state_dict(weights, strict=False)
    network.tie_weights()
    tasks = {task: ID[f"<|{task}|>"] for task in ("transcribe", "translate")}
    for name, value in {
        **given.generation, "no_timestamps_token_id": ID["<|notimestamps|>"], "task_to_id": tasks,
        "is_multilingual": True, "prev_sot_token_id": ID["<|startofprev|>"], "max_length": MOST,
    }.items():  # fmt: skip
        setattr(network.generation_config, name, value)
    return network


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize(("no_speech", "logprob"), [(None, None), (2.7e-5, 0.0), (1.5e-5, -0.45)])
def test_long_sounds_are_written_down_as_by_transformers(tmp_path, conditioned, no_speech, logprob) -> None:
    given = whisper(tmp_path)
    own, network = Transcriber(given), network_of(given)
    size, window = 16_000 * 3, 0.02 * ROWS
    sound = (np.random.default_rng(3).standard_normal(size) * 0.1).astype(np.float32)
    features = torch.from_numpy(own.features(sound)[None, :, : size // 160])
    expected = network.generate(
        features, attention_mask=torch.ones(1, features.shape[-1]), language="en", task="transcribe",
        return_timestamps=True, return_segments=True, temperature=(0.0,), no_speech_threshold=no_speech,
        logprob_threshold=logprob, condition_on_prev_tokens=conditioned,
    )  # fmt: skip
    found = own.transcribe(
        sound, language="en", temperature=0.0, no_speech_threshold=no_speech, logprob_threshold=logprob,
        compression_ratio_threshold=None, condition_on_previous_text=conditioned,
    )  # fmt: skip
    theirs = [
        (float(each["start"]), float(each["end"]), "".join(WORDS[token] for token in each["tokens"].tolist()
         if token < len(LETTERS)))
        for each in expected["segments"][0]
    ]  # fmt: skip
    # What follows a sound is silence here, and zeros there.
    last = size / 16_000 - window
    ours = [(each.start_seconds, each.end_seconds, each.text) for each in found.segments]
    assert [pytest.approx(each[:2]) for each in theirs if each[2] and each[0] < last] == [
        each[:2] for each in ours if each[0] < last
    ]
    assert [each[2] for each in theirs if each[2] and each[0] < last] == [
        each[2] for each in ours if each[0] < last
    ]
