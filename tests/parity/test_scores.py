"""Chances of tokens are those of transformers, where a model has more ids than its tokenizer has tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import educe
from tests.stories import write_chat_model

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def padded(folder: Path) -> Any:
    """Return the model of stories with eight more rows, and save it where its tokenizer lies."""
    write_chat_model(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(5)
    model.resize_token_embeddings(520, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[512:] *= 20
    model.save_pretrained(folder)
    return model


def test_every_way_to_ask_for_chances_has_those_of_transformers(tmp_path: Path) -> None:
    model = padded(tmp_path)
    with educe.generator(tmp_path, precision="f32", cache="f32") as writer:
        prompt = [*writer.encode("Once upon a time"), 515]
        written = writer.generate(prompt, max_tokens=20, logprobs=0).outputs[0]
        ids = [*prompt, *written.tokens]
        score = writer.score(ids)
        text = "Once upon a time there was a little girl."
        weighed, read = writer.perplexity(text).logprobs, writer.encode(text)

    def expected(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([tokens])).logits[0, :-1], dim=-1)
        assert rows[:, 512:].exp().sum(dim=-1).max() > 1e-2  # what shares of fewer rows would differ by
        return np.asarray(rows.numpy()[np.arange(len(tokens) - 1), tokens[1:]])

    np.testing.assert_allclose([choice.logprob for choice in score.choices], expected(ids), atol=2e-4)
    chosen = [choice.logprob for choice in written.logprobs]
    np.testing.assert_allclose(chosen, expected(ids)[len(prompt) - 1 :], atol=2e-4)
    np.testing.assert_allclose(weighed, expected(read), atol=2e-4)
