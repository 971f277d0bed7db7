"""A recurrent language model answers as PyTorch's modules do, from a folder with their weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from educe.formats import checkpoint
from educe.generate.recurrent import RecurrentRunner
from educe.generate.step import Slice

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is installed by make test-parity")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

VOCABULARY, EMBEDDING, LENGTH = 53, 24, 70


@pytest.mark.parametrize(("hidden", "layers"), [(16, 1), (37, 3)])
def test_an_lstm_answers_as_in_pytorch(tmp_path: Path, hidden: int, layers: int) -> None:
    torch.manual_seed(hidden)
    modules = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(VOCABULARY, EMBEDDING),
            "lstm": torch.nn.LSTM(EMBEDDING, hidden, layers, batch_first=True),
            "head": torch.nn.Linear(hidden, VOCABULARY),
        }
    )
    safetensors.save_file(modules.state_dict(), tmp_path / "model.safetensors")
    config = {
        "model_type": "lstm",
        "vocab_size": VOCABULARY,
        "embedding_size": EMBEDDING,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    texts = torch.randint(VOCABULARY, (3, LENGTH))
    with torch.no_grad():
        states, _ = modules["lstm"](modules["embedding"](texts))
        expected = modules["head"](states).numpy()
    runner = RecurrentRunner(checkpoint.load(tmp_path), max_length=LENGTH)
    runner.allocate(3)
    for cut in (LENGTH, 1, 33):
        parts = [(0, cut), (cut, LENGTH)][: 1 + (cut < LENGTH)]
        found = [
            runner.run([Slice(text[a:b].tolist(), a, [n], b - a) for n, text in enumerate(texts)])
            for a, b in parts
        ]
        whole = np.concatenate([part.reshape(3, -1, VOCABULARY) for part in found], 1)
        np.testing.assert_allclose(whole, expected, atol=1e-5, rtol=1e-5)
