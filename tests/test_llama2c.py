"""llama2.c files: values as in the file, Hugging Face's names and order, and the published story."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from educe.errors import EduceError, LimitError, ModelFileError
from educe.formats import checkpoint
from educe.formats.llama2c import read_vocabulary
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint
from tests.test_checkpoint_folders import weights_file, write

SMALL = (8, 12, 2, 2, 1, 6, 4)


@pytest.fixture(scope="module")
def stories(zoo: Path) -> Checkpoint:
    return checkpoint.load(zoo / "stories260K" / "stories260K.bin")


def small(header: tuple[int, ...] = SMALL, vocab_size: int = 6) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return a file and its arrays by llama2.c's names, layers stacked."""
    rng = np.random.default_rng(3)
    shapes = {
        "tok_embeddings": (vocab_size, 8), "attention_norm": (2, 8), "wq": (2, 8, 8), "wk": (2, 4, 8),
        "wv": (2, 4, 8), "wo": (2, 8, 8), "ffn_norm": (2, 8), "w1": (2, 12, 8), "w2": (2, 8, 12),
        "w3": (2, 12, 8), "norm": (8,), "cos": (4, 2), "sin": (4, 2),
    }  # fmt: skip
    if header[5] < 0:
        shapes["output"] = (vocab_size, 8)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return struct.pack("<7i", *header) + b"".join(a.tobytes() for a in arrays.values()), arrays


def tokens(*entries: tuple[float, bytes], longest: int = 7) -> bytes:
    body = b"".join(struct.pack("<fi", score, len(text)) + text for score, text in entries)
    return struct.pack("<i", longest) + body


def logits(model: Checkpoint, ids: list[int]) -> np.ndarray:
    """Return the scores of the token after `ids`, as Hugging Face's Llama computes them."""
    w = {name: weight.array() for name, weight in model.weights.items()}
    heads, groups = model.config["num_attention_heads"], model.config["num_key_value_heads"]
    width = model.config["hidden_size"] // heads
    angles = np.outer(np.arange(len(ids)), 1 / 10000 ** (np.arange(0, width, 2) / width))
    cos, sin = np.tile(np.cos(angles), 2)[:, None], np.tile(np.sin(angles), 2)[:, None]

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"model.{name}.weight"]

    def turned(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, -1)
        return x * cos + np.concatenate([-second, first], -1) * sin

    x = w["model.embed_tokens.weight"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(model.config["num_hidden_layers"]):
        at = f"layers.{layer}"
        h = normed(x, f"{at}.input_layernorm")
        q, k, v = (
            (h @ w[f"model.{at}.self_attn.{part}_proj.weight"].T).reshape(len(ids), -1, width)
            for part in "qkv"
        )
        k, v = (np.repeat(part, heads // groups, 1) for part in (turned(k), v))
        scores = np.einsum("ihd,jhd->hij", turned(q), k) / np.sqrt(width) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", scores, v).reshape(len(ids), -1)
        x = x + mixed @ w[f"model.{at}.self_attn.o_proj.weight"].T
        h = normed(x, f"{at}.post_attention_layernorm")
        gate, up = (h @ w[f"model.{at}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"model.{at}.mlp.down_proj.weight"].T
    return normed(x, "norm")[-1] @ w["model.embed_tokens.weight"].T


def test_the_facts_of_the_real_model(stories: Checkpoint, zoo: Path) -> None:
    assert stories.model_type == "llama"
    assert stories.config["num_hidden_layers"] == 5
    assert stories.config["tie_word_embeddings"] is True
    assert stories.num_parameters == 260_032
    assert stories.notes == ()
    assert checkpoint.load(zoo / "stories260K").digest.hexdigest() == stories.digest.hexdigest()


def test_the_real_model_scores_as_published(stories: Checkpoint, zoo: Path) -> None:
    cases = json.loads((zoo / "stories260K" / "expected.json").read_text())["cases"]
    for case in cases:
        found = logits(stories, case["prompt_ids"])
        for token, score in case["next_token_top5"]:
            assert found[token] == pytest.approx(score, abs=1e-3)


def test_the_real_tokenizer(stories: Checkpoint, zoo: Path) -> None:
    assert stories.tokenizer is not None
    vocabulary = stories.tokenizer.source
    assert vocabulary is not None
    assert len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types) == 512
    assert vocabulary.tokens[:4] == ("<unk>", "<s>", "</s>", "<0x00>")
    assert vocabulary.types[:4] == (2, 3, 3, 6)
    assert vocabulary.special == {"unk": 0, "bos": 1, "eos": 2}
    story = json.loads((zoo / "stories260K" / "expected.json").read_text())["cases"][0]
    text = "".join(vocabulary.tokens[i] for i in story["greedy_ids"][1:20]).replace("▁", " ")
    assert text.strip().startswith("Once upon a time, there was")


@pytest.mark.parametrize("vocab_size", [6, -6])
def test_values_are_those_of_the_file(tmp_path: Path, vocab_size: int) -> None:
    content, arrays = small((*SMALL[:5], vocab_size, 4))
    (tmp_path / "m.bin").write_bytes(content)
    found = checkpoint.load(tmp_path / "m.bin")
    assert found.config["vocab_size"] == 6
    assert found.config["tie_word_embeddings"] is (vocab_size > 0)
    names = {"attention_norm": "input_layernorm", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj",
             "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj",
             "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    for layer in range(2):
        for own, name in names.items():
            read = found.weights[f"model.layers.{layer}.{name}.weight"].array()
            np.testing.assert_array_equal(read, arrays[own][layer])
        # Of a head of four rows, the pairs (0, 1) and (2, 3) become (0, 2) and (1, 3).
        for own, name, order in (("wq", "q", [0, 2, 1, 3, 4, 6, 5, 7]), ("wk", "k", [0, 2, 1, 3])):
            read = found.weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"].array()
            np.testing.assert_array_equal(read, arrays[own][layer][order])
    outer = {"tok_embeddings": "model.embed_tokens.weight", "norm": "model.norm.weight"}
    for own, name in (outer | ({"output": "lm_head.weight"} if vocab_size < 0 else {})).items():
        np.testing.assert_array_equal(found.weights[name].array(), arrays[own])
    assert len(found.weights) == 20 + (vocab_size < 0)


def test_metas_names_in_a_folder_are_the_same_model(tmp_path: Path) -> None:
    content, arrays = small()
    (tmp_path / "m.bin").write_bytes(content)
    inner = {"wq": "attention.wq", "wk": "attention.wk", "wv": "attention.wv", "wo": "attention.wo",
             "w1": "feed_forward.w1", "w2": "feed_forward.w2", "w3": "feed_forward.w3",
             "attention_norm": "attention_norm", "ffn_norm": "ffn_norm"}  # fmt: skip
    flat = {f"layers.{i}.{name}.weight": arrays[own][i] for own, name in inner.items() for i in range(2)}
    flat |= {f"{name}.weight": arrays[name] for name in ("tok_embeddings", "norm")}
    config = {"dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 6,
              "max_seq_len": 4}  # fmt: skip
    folder = write(tmp_path / "f", config__json=config, model__safetensors=weights_file(flat))
    one, other = checkpoint.load(tmp_path / "m.bin"), checkpoint.load(folder)
    assert one.config == other.config
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(weight.array(), other.weights[name].array())


def meta_folder(path: Path, config: bytes, **arrays: np.ndarray) -> Path:
    flat = {f"layers.0.attention.{name}.weight": array for name, array in arrays.items()}
    return write(path, config__json=config, model__safetensors=weights_file(flat))


@pytest.mark.parametrize("name", ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**64, 1.5, True, "8", None], ids=str)
def test_metas_configuration_at_its_extremes(tmp_path: Path, name: str, value: object) -> None:
    config = {"dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 6}
    folder = meta_folder(tmp_path, json.dumps(config | {name: value}).encode(), wq=small()[1]["wq"][0])
    with pytest.raises(ModelFileError, match=f"field '{name}'"):
        checkpoint.load(folder)


@pytest.mark.parametrize("shape", [(), (0, 8), (0,), (7, 8), (2, 8)])
def test_queries_that_are_no_heads_of_pairs_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    config = {"dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "vocab_size": 6}
    folder = meta_folder(tmp_path, json.dumps(config).encode(), wq=np.zeros(shape, np.float32))
    with pytest.raises(ModelFileError, match="not 2 heads of pairs"):
        checkpoint.load(folder)


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("value", [0, -1, 3, 7, 2**31 - 1, -(2**31), 2**30, 20_000])
def test_every_number_of_the_header_at_its_extremes(tmp_path: Path, field: int, value: int) -> None:
    content, _ = small()
    altered = bytearray(content)
    struct.pack_into("<i", altered, 4 * field, value)
    (tmp_path / "m.bin").write_bytes(altered)
    start = time.perf_counter()
    with pytest.raises(EduceError, match="no model that Educe knows"):
        checkpoint.load(tmp_path / "m.bin")
    assert time.perf_counter() - start < 20


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content, _ = small()
    for length in [*range(64), *range(64, len(content), 97), len(content) - 1]:
        (tmp_path / "m.bin").write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            checkpoint.load(tmp_path / "m.bin")


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(small()[0])
    found = checkpoint.load(tmp_path / "m.bin")
    assert found.tokenizer is None
    assert "tokenizer.bin" in found.notes[0]


def test_the_tokenizer_beside_is_found(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(small()[0])
    words = tokens(*[(-float(n), f" w{n}".encode()) for n in range(6)])
    (tmp_path / "tok6.bin").write_bytes(words)
    found = checkpoint.load(tmp_path).tokenizer
    assert found is not None
    assert found.source is not None
    assert found.source.tokens[5] == "▁w5"
    assert found.source.scores[5] == -5
    with pytest.raises(LimitError, match="tokenizer_bytes"):
        checkpoint.load(tmp_path, Limits(tokenizer_bytes=10))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (tokens((0, b"a")), "should follow"),
        (tokens((0, b"a"), (0, b"b"), (0, b"c")), "bytes follow the last"),
        (tokens((0, b"a"), (0, b"\xff")), "no UTF-8"),
        (tokens((0, b"a"), (float("nan"), b"b")), "not finite"),
        (tokens((0, b"a"), (0, b"b" * 9)), "has the length 9"),
        (struct.pack("<ifi", 2**31 - 1, 0, 2**31 - 1), "should follow"),
        (struct.pack("<ifi", 7, 0, -1), "has the length -1"),
        (struct.pack("<ifi", -1, 0, 0), "has the length 0"),
        (b"", "should follow"),
    ],
)
def test_broken_tokenizers_are_refused(content: bytes, cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause):
        read_vocabulary(content, 2, Path("tok2.bin"))


def test_altered_tokenizers_are_read_or_refused(zoo: Path, rng: np.random.Generator) -> None:
    content = np.frombuffer((zoo / "stories260K" / "tok512.bin").read_bytes(), np.uint8)
    for _ in range(200):
        altered = content.copy()
        altered[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        with contextlib.suppress(ModelFileError):
            read_vocabulary(altered.tobytes(), 512, Path("tok512.bin"))
