"""Encoders of text give the vectors that Hugging Face's library gives, however texts are mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.formats import checkpoint
from educe.generate.architectures.relative import buckets
from educe.generate.embedding import Embedder

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(90))]
_SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 200,
    "pad_token_id": 0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {**_SIZES, "hidden_act": "gelu_new"}),
    "roberta": ("roberta", {**_SIZES, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {**_SIZES, "pad_token_id": 1, "type_vocab_size": 1}),
    "mpnet": ("mpnet", {**_SIZES, "pad_token_id": 1}),
    "distilbert": (
        "distilbert",
        {"vocab_size": len(WORDS), "dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    kind, fields = CASES[name]
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(kind, initializer_range=0.2, **fields)
    network = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    own = Embedder(checkpoint.load(tmp_path), batch_tokens=200)
    rng = np.random.default_rng(3)
    texts = [rng.integers(2, len(WORDS), count).tolist() for count in (1, 5, 33, 180, 64, 2, 150, 17)]
    expected = []
    for ids in texts:
        with torch.no_grad():
            states = network(torch.tensor([ids])).last_hidden_state[0]
        expected.append(states.mean(0).numpy())
    np.testing.assert_allclose(own.embed_tokens(texts), expected, atol=1e-5)


@pytest.mark.parametrize("both_ways", [True, False])
def test_distances_are_in_the_buckets_of_t5(both_ways: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    for count, furthest in ((32, 128), (8, 20), (64, 256)):
        distances = np.arange(-2 * furthest, 2 * furthest + 1)
        theirs = T5Attention._relative_position_bucket(
            torch.from_numpy(distances), bidirectional=both_ways, num_buckets=count, max_distance=furthest
        )
        np.testing.assert_array_equal(buckets(distances, count, furthest, both_ways), theirs.numpy())
