"""Texts to vectors: a small BERT against NumPy, in any company, pooled as its folder says."""

from __future__ import annotations

import dataclasses
import json
from math import erf
from pathlib import Path

import numpy as np
import pytest

from educe.errors import InputError, ModelFileError, OptionError, UnsupportedModelError
from educe.generate.embedding import Embedder
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Weight

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
HIDDEN, INNER, LAYERS, HEADS, POSITIONS = 24, 40, 2, 3, 50
CONFIG = {
    "vocab_size": len(WORDS), "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
}  # fmt: skip
TEXTS = ["a", "b c d e f", "", "x " * 45, "q r s", "z " * 31, "a"]


def random_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.LayerNorm.weight": (HIDDEN,), f"{name}.LayerNorm.bias": (HIDDEN,)}

    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **norm("embeddings"),
        "pooler.dense.weight": (HIDDEN, HIDDEN),
    }
    for number in range(LAYERS):
        at = f"encoder.layer.{number}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
            shapes |= {f"{at}.{part}.weight": (HIDDEN, HIDDEN), f"{at}.{part}.bias": (HIDDEN,)}
        for part, sizes in (
            ("attention.output.dense", (HIDDEN, HIDDEN)),
            ("intermediate.dense", (INNER, HIDDEN)),
            ("output.dense", (HIDDEN, INNER)),
        ):
            shapes |= {f"{at}.{part}.weight": sizes, f"{at}.{part}.bias": sizes[:1]}
        shapes |= norm(f"{at}.attention.output") | norm(f"{at}.output")
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}


def bert(arrays: dict[str, np.ndarray], path: Path) -> Checkpoint:
    return Checkpoint(
        model_type="bert",
        config=CONFIG,
        weights={
            name: Weight(name, array.shape, "F32", array.view(np.uint8).reshape(-1))
            for name, array in arrays.items()
        },
        tokenizer=TokenizerFiles(files={"vocab.txt": "\n".join(WORDS).encode()}),
        generation={},
        path=path,
        content=[b"bert"],
    )


@pytest.fixture
def arrays(rng) -> dict[str, np.ndarray]:
    return random_arrays(rng)


@pytest.fixture
def model(arrays, tmp_path: Path) -> Checkpoint:
    return bert(arrays, tmp_path)


def modules(path: Path, *kinds: str, **pooling: bool) -> None:
    listed = [{"path": "1_Pooling" if kind == "Pooling" else "", "type": f"st.{kind}"} for kind in kinds]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def states(arrays: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        return x * arrays[f"{name}.LayerNorm.weight"] + arrays[f"{name}.LayerNorm.bias"]

    rows = [arrays[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
    x = normed(rows[0][ids] + rows[1][: len(ids)] + rows[2][0], "embeddings")
    for number in range(LAYERS):
        at, size = f"encoder.layer.{number}", HIDDEN // HEADS
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        seen = []
        for head in range(0, HIDDEN, size):
            own = np.s_[:, head : head + size]
            weights = np.exp(q[own] @ k[own].T / np.sqrt(size))
            seen.append(weights / weights.sum(1, keepdims=True) @ v[own])
        x = normed(x + linear(np.hstack(seen), f"{at}.attention.output.dense"), f"{at}.attention.output")
        h = linear(x, f"{at}.intermediate.dense")
        h = h * (1 + np.vectorize(erf)(h / np.sqrt(2))) / 2
        x = normed(x + linear(h, f"{at}.output.dense"), f"{at}.output")
    return x


@pytest.mark.parametrize("how", ["mean_tokens", "max_tokens", "cls_token"])
def test_vectors_are_those_of_the_network(model, arrays, how) -> None:
    modules(model.path, "Transformer", "Pooling", "Normalize", **{f"pooling_mode_{how}": True})
    own = Embedder(model, batch_tokens=60)
    pool = {"mean_tokens": lambda x: x.mean(0), "max_tokens": lambda x: x.max(0), "cls_token": lambda x: x[0]}
    expected = [pool[how](states(arrays, own.tokens(text))) for text in TEXTS]
    expected = [vector / np.linalg.norm(vector) for vector in expected]
    steps: list[tuple[int, int]] = []
    found = own.embed(TEXTS, progress=lambda done, total: steps.append((done, total)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(steps) > 1
    assert steps == [(done, len(TEXTS)) for done in sorted({done for done, _ in steps})]
    assert steps[-1][0] == len(TEXTS)
    assert own.embed([]).shape == (0, HIDDEN)


def test_a_vector_does_not_depend_on_the_other_texts(model) -> None:
    together = Embedder(model, batch_tokens=60).embed(TEXTS)
    np.testing.assert_array_equal(together[0], together[6])
    for limits in (1, 4096):
        own = Embedder(model, batch_tokens=limits, threads=1)
        for text, vector in zip(TEXTS, together, strict=True):
            np.testing.assert_array_equal(own.embed([text])[0], vector)
        np.testing.assert_array_equal(own.embed(TEXTS), together)


def test_rounded_weights_stay_close(model) -> None:
    modules(model.path, "Transformer", "Pooling", "Normalize", pooling_mode_mean_tokens=True)
    exact, rounded = (Embedder(model, precision=precision).embed(TEXTS) for precision in ("f32", "int8"))
    assert (exact * rounded).sum(1).min() > 0.98


def test_a_long_text_is_cut_only_where_asked(model) -> None:
    (model.path / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    modules(model.path, "Transformer")
    own = Embedder(model)
    with pytest.raises(InputError, match="has 12 tokens, and the model reads 9"):
        own.embed(["a", "a b c d e f g h i j"])
    kept = own.tokens("a b c d e f g h i j", truncate=True)
    assert kept == own.tokens("a b c d e f g")
    with pytest.raises(InputError, match="truncate=True"):
        Embedder(dataclasses.replace(model, path=model.path / "none")).embed(["a " * 49])


def test_what_is_not_known_is_refused_by_name(model) -> None:
    modules(model.path, "Transformer", "Pooling", "Dense", pooling_mode_mean_tokens=True)
    with pytest.raises(UnsupportedModelError, match="the module 'Dense' in place 3"):
        Embedder(model)
    modules(model.path, "Transformer", "Pooling", pooling_mode_weightedmean_tokens=True)
    with pytest.raises(UnsupportedModelError, match="pools by 'weightedmean_tokens'"):
        Embedder(model)
    modules(model.path, "Transformer", "Pooling", pooling_mode_cls_token=True, pooling_mode_max_tokens=True)
    with pytest.raises(UnsupportedModelError, match="pools by"):
        Embedder(model)
    (model.path / "modules.json").write_text("{}")
    with pytest.raises(ModelFileError, match="is no list of modules"):
        Embedder(model)
    (model.path / "modules.json").unlink()
    with pytest.raises(UnsupportedModelError, match="of the type 'llama'"):
        Embedder(dataclasses.replace(model, model_type="llama"))
    with pytest.raises(ModelFileError, match="has no tokenizer"):
        Embedder(dataclasses.replace(model, tokenizer=None))
    with pytest.raises(OptionError, match="batch_tokens"):
        Embedder(model, batch_tokens=0)


def test_settings_that_cannot_be_are_refused(model) -> None:
    modules(model.path, "Transformer")
    for fields, kind in (
        ({"max_seq_length": -1}, ModelFileError),
        ({"max_seq_length": "9"}, ModelFileError),
        ({"do_lower_case": True}, UnsupportedModelError),
    ):
        (model.path / "sentence_bert_config.json").write_text(json.dumps(fields))
        with pytest.raises(kind):
            Embedder(model)
    (model.path / "sentence_bert_config.json").unlink()
    for fields in ({"num_attention_heads": 5}, {"max_position_embeddings": 7}, {"hidden_size": "x"}):
        with pytest.raises(ModelFileError):
            Embedder(dataclasses.replace(model, config={**CONFIG, **fields}))


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        ("hello", "expected a list of texts, found one text"),
        (b"hello", "expected a list of texts, found a bytes"),
        (5, "expected a list of texts, found a int"),
        (["a", None], r"texts\[1\]: is a NoneType, no text"),
        (["a", "b " * 60], r"texts\[1\]: .* and the model reads 50"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_with_its_place(model, texts, cause) -> None:
    with pytest.raises(InputError, match=cause):
        Embedder(model).embed(texts)


def test_options_of_vectors_are_checked(model) -> None:
    own = Embedder(model)
    with pytest.raises(OptionError, match="truncate: is 'x'"):
        own.embed(["a"], truncate="x")
    with pytest.raises(OptionError, match="did you mean 'truncate'"):
        own.embed(["a"], truncat=True)
    with pytest.raises(OptionError, match=r"batch_tokens: .*from 1 to"):
        Embedder(model, batch_tokens=10**12)


def test_a_text_that_is_too_long_costs_no_other(model) -> None:
    embedder = Embedder(model)
    found = embedder.batch(["a", "x " * 900, "b c"])
    assert isinstance(found[1], InputError)
    assert found[1].place == "texts[1]"
    np.testing.assert_array_equal(np.stack([found[0], found[2]]), embedder.embed(["a", "b c"]))


def test_a_closed_embedder_says_so(model) -> None:
    with Embedder(model) as embedder:
        assert repr(embedder).startswith("<Embedder bert ")
    with pytest.raises(OptionError, match="the embedder is closed"):
        embedder.embed(["a"])
