"""Small language models of random weights, as folders, and sounds for them."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from educe.model.checkpoint import Checkpoint
from tests.generate import test_embedding, test_transcription


def write(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a model as Hugging Face lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**checkpoint.config, "model_type": checkpoint.model_type}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(checkpoint.generation))
    save_file({name: each.array() for name, each in checkpoint.weights.items()}, folder / "model.safetensors")
    assert checkpoint.tokenizer is not None
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    return folder


def wav(samples: np.ndarray) -> bytes:
    """Return samples of 16 bits, 16,000 a second, as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def write_embedder(folder: Path) -> Path:
    """Write an encoder of letters."""
    arrays = test_embedding.random_arrays(np.random.default_rng(0))
    return write(test_embedding.bert(arrays, folder), folder)


def write_transcriber(folder: Path) -> Path:
    """Write a model that hears."""
    folder.mkdir(parents=True, exist_ok=True)
    return write(test_transcription.whisper(folder), folder)
