"""Sounds are heard, and timestamps placed, as Hugging Face's library does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from educe.generate.timestamps import TimestampRules
from educe.generate.transcription import Transcriber
from tests.generate.test_transcription import BINS, ROWS, whisper

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


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
