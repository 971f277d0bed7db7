"""CTranslate2 folders: values as in the file, Hugging Face's names, CTranslate2's own translations."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.errors import EduceError, LimitError, ModelFileError, UnsupportedModelError
from educe.formats import checkpoint, ctranslate2
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint

HEAD, POSITIONS = "decoder/projection/weight", "encoder/position_encodings/encodings"
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def variable(name: str, array: np.ndarray, version: int) -> bytes:
    head = text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
    if version >= 4:
        return head + struct.pack("<BI", TYPES[array.dtype.name], array.nbytes) + array.tobytes()
    return head + struct.pack("<BI", array.itemsize, array.size) + array.tobytes()


def model_bin(
    variables: dict[str, np.ndarray],
    version: int = 6,
    aliases: dict[str, str] | None = None,
    name: str = "TransformerSpec",
) -> bytes:
    body = b"".join(variable(key, array, version) for key, array in variables.items())
    content = struct.pack("<I", version) + text(name) + struct.pack("<II", 7, len(variables)) + body
    if version < 3:
        return content
    pairs = b"".join(text(alias) + text(target) for alias, target in (aliases or {}).items())
    return content + struct.pack("<I", len(aliases or {})) + pairs


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = (127 / np.abs(matrix).max(1)).astype(np.float32)
    return np.rint(matrix * scale[:, None]).astype(np.int8), scale


def transformer(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the variables of a network of one layer, width 4, 5 words of source and 6 of target."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/embeddings_0/weight": (5, 4),
        "decoder/embeddings/weight": (6, 4),
    }
    linears = {"decoder/projection": (6, 4)}
    for side in ("encoder", "decoder"):
        at = f"{side}/layer_0"
        linears |= {f"{at}/self_attention/linear_0": (12, 4), f"{at}/self_attention/linear_1": (4, 4),
                    f"{at}/ffn/linear_0": (8, 4), f"{at}/ffn/linear_1": (4, 8)}  # fmt: skip
        norms = [f"{side}/layer_norm", f"{at}/self_attention/layer_norm", f"{at}/ffn/layer_norm"]
        shapes |= {f"{norm}/{part}": (4,) for norm in norms for part in ("gamma", "beta")}
    at = "decoder/layer_0/attention"
    linears |= {f"{at}/linear_0": (4, 4), f"{at}/linear_1": (8, 4), f"{at}/linear_2": (4, 4)}
    shapes |= {f"{at}/layer_norm/gamma": (4,), f"{at}/layer_norm/beta": (4,)}
    for name, shape in linears.items():
        shapes |= {f"{name}/weight": shape, f"{name}/bias": shape[:1]}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def folder(path: Path, content: bytes, config: dict[str, Any] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "model.bin").write_bytes(content)
    (path / "source_vocabulary.json").write_text(json.dumps(["<blank>", "<s>", "</s>", "a"]))
    (path / "target_vocabulary.json").write_text(json.dumps(["<blank>", "<s>", "</s>", "<unk>", "b", "c"]))
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def loaded(path: Path, variables: dict[str, np.ndarray], **options: Any) -> Checkpoint:
    return checkpoint.load(folder(path, model_bin(variables, **options)))


class Forward:
    """The network as Hugging Face's M2M100 computes it, with padding's id 0."""

    def __init__(self, model: Checkpoint) -> None:
        self.config = model.config
        self.w = {name: weight.array() for name, weight in model.weights.items()}

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def normed(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def embedded(self, ids: list[int], side: str) -> np.ndarray:
        half = self.config["d_model"] // 2
        steps = np.exp(-np.log(10000) / (half - 1) * np.arange(half))
        angles = np.outer(np.arange(len(ids)) + self.config["pad_token_id"] + 1, steps)
        places = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        return self.w[f"model.{side}.embed_tokens.weight"][ids] * np.sqrt(2 * half) + places

    def attention(self, x: np.ndarray, other: np.ndarray, name: str, causal: bool) -> np.ndarray:
        heads = self.config["decoder_attention_heads"]
        q, k, v = (
            self.linear(of, f"{name}.{part}_proj").reshape(len(of), heads, -1).swapaxes(0, 1)
            for of, part in ((x, "q"), (other, "k"), (other, "v"))
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = scores + (np.triu(np.full(scores.shape[1:], -np.inf), 1) if causal else 0)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), f"{name}.out_proj")

    def stack(self, ids: list[int], side: str, memory: np.ndarray | None = None) -> np.ndarray:
        x = self.embedded(ids, side)
        for layer in range(self.config[f"{side}_layers"]):
            at = f"model.{side}.layers.{layer}"
            h = self.normed(x, f"{at}.self_attn_layer_norm")
            x = x + self.attention(h, h, f"{at}.self_attn", causal=memory is not None)
            if memory is not None:
                h = self.normed(x, f"{at}.encoder_attn_layer_norm")
                x = x + self.attention(h, memory, f"{at}.encoder_attn", causal=False)
            h = self.normed(x, f"{at}.final_layer_norm")
            x = x + self.linear(np.maximum(self.linear(h, f"{at}.fc1"), 0), f"{at}.fc2")
        return self.normed(x, f"model.{side}.layer_norm")

    def greedy(self, source: list[int]) -> list[int]:
        memory = self.stack(source, "encoder")
        ids = [self.config["decoder_start_token_id"]]
        while len(ids) < 20 and ids[-1] != self.config["eos_token_id"]:
            last = self.stack(ids, "decoder", memory)[-1]
            ids.append(int(self.linear(last, "lm_head").argmax()))
        return ids[1:-1]


@pytest.mark.parametrize(("name", "kind"), [("transliteration", "f32"), ("transliteration_int8", "int8")])
def test_the_real_models_write_what_ctranslate2_writes(zoo: Path, name: str, kind: str) -> None:
    model = checkpoint.load(zoo / name)
    assert model.model_type == "m2m_100"
    assert model.tokenizer is not None
    source, target = model.tokenizer.source, model.tokenizer.target
    assert source is not None
    assert target is not None
    forward = Forward(model)
    for case in json.loads((zoo / "transliteration" / "expected.json").read_text())[kind]:
        ids = [source.tokens.index(letter) for letter in case["source"]]
        assert "".join(target.tokens[i] for i in forward.greedy(ids)) == case["greedy"]


def test_the_facts_of_the_real_model(zoo: Path) -> None:
    model = checkpoint.load(zoo / "transliteration_int8")
    encodings = {name: weight.encoding for name, weight in model.weights.items()}
    assert encodings["model.encoder.layers.3.self_attn.k_proj.weight"] == "I8"
    assert encodings["model.encoder.layers.3.self_attn.k_proj.bias"] == "F32"
    assert (model.config["vocab_size"], model.config["decoder_vocab_size"]) == (51, 43)
    assert (model.config["encoder_layers"], model.config["decoder_layers"]) == (6, 6)
    assert model.generation["decoder_start_token_id"] == 1
    assert not any(name.endswith("scale") for name in model.weights)


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("is_quantized", [False, True])
def test_values_are_those_of_the_file(
    tmp_path: Path, rng: np.random.Generator, version: int, is_quantized: bool
) -> None:
    variables = transformer(rng)
    fused = variables["decoder/layer_0/attention/linear_1/weight"]
    if is_quantized:
        for name in [name for name in variables if name.endswith("weight")]:
            variables[name], variables[f"{name}_scale"] = quantized(variables[name])
    variables["encoder/num_heads"] = variables["decoder/num_heads"] = np.int16(2)
    found = loaded(tmp_path, variables, version=version)
    keys = found.weights["model.decoder.layers.0.encoder_attn.k_proj.weight"]
    values = found.weights["model.decoder.layers.0.encoder_attn.v_proj.weight"].array()
    if is_quantized:
        q = variables["decoder/layer_0/attention/linear_1/weight"]
        scale = variables["decoder/layer_0/attention/linear_1/weight_scale"]
        fused = q * (np.float32(1) / scale)[:, None]
        assert keys.encoding == "I8"
    np.testing.assert_array_equal(np.concatenate([keys.array(), values]), fused)
    assert found.config["encoder_attention_heads"] == found.config["decoder_attention_heads"] == 2
    assert found.config["decoder_ffn_dim"] == 8
    assert len(found.weights) == sum(not n.endswith(("_scale", "heads")) for n in variables) + 4 * 2 + 2
    assert found.tokenizer is not None
    assert found.tokenizer.source is not None
    assert found.tokenizer.source.tokens[-1] == "<unk>"


def test_half_precision_and_int16_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    variables = transformer(rng)
    half = variables["encoder/layer_norm/gamma"].astype(np.float16)
    short = np.arange(24).reshape(6, 4).astype(np.int16)
    variables |= {"encoder/layer_norm/gamma": half, "decoder/projection/weight": short,
                  "decoder/projection/weight_scale": np.float32(4), "num_heads": np.int8(1)}  # fmt: skip
    found = loaded(tmp_path, variables).weights
    np.testing.assert_array_equal(found["model.encoder.layer_norm.weight"].array(), half.astype(np.float32))
    np.testing.assert_array_equal(found["lm_head.weight"].array(), short / np.float32(4))


def test_aliases_share_their_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    variables = transformer(rng) | {"num_heads": np.int8(1)}
    del variables["decoder/projection/weight"]
    q, scale = quantized(variables["decoder/embeddings/weight"])
    variables |= {"decoder/embeddings/weight": q, "decoder/embeddings/weight_scale": scale}
    found = loaded(
        tmp_path, variables, aliases={"decoder/projection/weight": "decoder/embeddings/weight"}
    ).weights
    embeddings = found["model.decoder.embed_tokens.weight"]
    assert np.shares_memory(found["lm_head.weight"].data, embeddings.data)
    np.testing.assert_array_equal(found["lm_head.weight"].array(), embeddings.array())


def test_the_settings_of_translation_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    content = model_bin(transformer(rng) | {"num_heads": np.int8(1)})
    config = {"decoder_start_token": "</s>", "add_source_eos": True}
    found = checkpoint.load(folder(tmp_path, content, config)).generation
    assert found["decoder_start_token_id"] == 2
    assert found["add_source_eos"] is True
    with pytest.raises(UnsupportedModelError, match="layer_norm_epsilon"):
        checkpoint.load(folder(tmp_path, content, {"layer_norm_epsilon": 1e-6}))
    with pytest.raises(ModelFileError, match="no word of the target vocabulary"):
        checkpoint.load(folder(tmp_path, content, {"decoder_start_token": ["<s>"]}))


@pytest.mark.parametrize(
    ("changes", "kind", "cause"),
    [
        ({"pre_norm": np.int8(0)}, UnsupportedModelError, "pre_norm"),
        ({"encoder/alibi": np.int8(1)}, UnsupportedModelError, "alibi"),
        ({"decoder/unheard_of": np.int8(1)}, UnsupportedModelError, "unheard_of"),
        ({"decoder/project_in/weight": np.ones((4, 4), np.float32)}, UnsupportedModelError, "project_in"),
        ({POSITIONS: np.ones((9, 4), np.float32)}, UnsupportedModelError, "encodings"),
        ({"num_heads": np.int8(0)}, ModelFileError, "0 heads"),
        ({"num_heads": np.int8(3)}, ModelFileError, "3 heads"),
        ({"num_heads": np.float32("nan")}, UnsupportedModelError, "nan"),
        ({"num_heads": np.float32("inf")}, ModelFileError, "inf heads"),
        ({"num_heads": np.float32(1.5)}, ModelFileError, "1.5 heads"),
        ({"activation": np.float32("inf")}, UnsupportedModelError, "no one whole number"),
        ({"activation": np.int8(1), "decoder/activation": np.int8(2)}, UnsupportedModelError, "activation"),
        ({"encoder/scale_embeddings": np.float32(1)}, UnsupportedModelError, "scale_embeddings"),
        ({"activation": np.int8(-1)}, ModelFileError, "activation -1"),
        ({"activation": np.float32("nan")}, UnsupportedModelError, "nan"),
        ({"encoder/embeddings_0/weight": np.ones(4, np.float32)}, ModelFileError, "no matrix"),
        ({"encoder/embeddings_0/weight": np.ones((4, 4), np.float32)}, ModelFileError, "embeds 4"),
        ({"decoder/embeddings/weight": np.ones((9, 4), np.float32)}, ModelFileError, "embeds 9"),
        ({"encoder/embeddings_0/weight": np.ones((5, 0), np.float32)}, ModelFileError, "heads for 0"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(7, np.float32)}, ModelFileError, "7 rows"),
        ({"decoder/projection/weight": np.ones((6, 4), np.int8)}, ModelFileError, "no usable scale"),
        (
            {HEAD: np.ones((6, 4), np.int8), f"{HEAD}_scale": np.zeros(6, np.float32)},
            ModelFileError,
            "no usable scale",
        ),
        (
            {HEAD: np.ones((6, 4), np.int8), f"{HEAD}_scale": np.ones(5, np.float32)},
            ModelFileError,
            "no usable scale",
        ),
    ],
    ids=lambda case: str(case)[:40],
)  # fmt: skip
def test_other_networks_are_refused(
    tmp_path: Path,
    rng: np.random.Generator,
    changes: dict[str, np.ndarray],
    kind: type[EduceError],
    cause: str,
) -> None:
    with pytest.raises(kind, match=cause):
        loaded(tmp_path, transformer(rng) | {"num_heads": np.int8(1)} | changes)


def test_a_network_without_layers_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    variables = {name: array for name, array in transformer(rng).items() if "encoder/layer_0" not in name}
    with pytest.raises(ModelFileError, match="fc1"):
        loaded(tmp_path, variables | {"num_heads": np.int8(1)})


def test_other_specifications_and_versions_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(UnsupportedModelError, match="WhisperSpec"):
        loaded(tmp_path, transformer(rng), name="WhisperSpec")
    with pytest.raises(UnsupportedModelError, match="version 7"):
        ctranslate2.load(folder(tmp_path, model_bin({}, version=7)), Limits())


def test_vocabularies_that_lack_or_are_broken_are_named(tmp_path: Path, zoo: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(zoo / "transliteration", path)
    words = path / "source_vocabulary.txt"
    content = words.read_bytes()
    for broken, cause in ((b"\xff", "no UTF-8"), (b"", "has 1 words"), (content + b"x\n", "has 52 words")):
        words.write_bytes(broken)
        with pytest.raises(ModelFileError, match=cause):
            checkpoint.load(path)
    words.write_bytes(content.replace(b"\n", b"\r\n"))
    assert checkpoint.load(path).config["vocab_size"] == 51
    words.unlink()
    with pytest.raises(ModelFileError, match=r"neither source_vocabulary\.txt nor shared"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"5", b'["a", 5]', b"[" * 100_000, b"", b"\xff", b'["a"], "words": []'])
def test_broken_word_lists_are_refused(tmp_path: Path, rng: np.random.Generator, content: bytes) -> None:
    path = folder(tmp_path, model_bin(transformer(rng) | {"num_heads": np.int8(1)}))
    (path / "source_vocabulary.json").write_bytes(content)
    with pytest.raises(ModelFileError):
        checkpoint.load(path)


def read(content: bytes) -> ctranslate2.ModelFile:
    start = time.perf_counter()
    try:
        return ctranslate2.read_model(np.frombuffer(content, np.uint8), Path("model.bin"))
    finally:
        assert time.perf_counter() - start < 20


def refused(content: bytes) -> EduceError:
    with pytest.raises((ModelFileError, UnsupportedModelError)) as caught:
        read(content)
    return caught.value


SMALL = {"a/weight": np.ones((2, 3), np.int8), "a/weight_scale": np.ones(2, np.float32)}


@pytest.mark.parametrize("version", [2, 3, 6])
def test_every_truncation_is_refused(version: int) -> None:
    content = model_bin(SMALL, version)
    assert read(content).variables.keys() == SMALL.keys()
    for length in range(len(content)):
        refused(content[:length])
    assert "bytes follow" in str(refused(content + b"\0"))


@pytest.mark.parametrize(("layout", "mask"), [("<I", 2**32 - 1), ("<H", 2**16 - 1), ("<B", 255)])
def test_every_place_at_every_extreme(layout: str, mask: int) -> None:
    """Every integer lies at one of the places, whatever its width."""
    content = model_bin(SMALL, 6, {"b/weight": "a/weight"})
    for place in range(len(content) - struct.calcsize(layout) + 1):
        for value in (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, mask - 1, mask):
            altered = bytearray(content)
            struct.pack_into(layout, altered, place, value & mask)
            with contextlib.suppress(ModelFileError, UnsupportedModelError):
                read(bytes(altered))


def test_names_that_stand_twice_are_refused() -> None:
    twice = (
        struct.pack("<I", 6)
        + text("T")
        + struct.pack("<II", 7, 2)
        + 2 * variable("a", np.ones(2, np.int8), 6)
    )
    assert "'a' stands there twice" in str(refused(twice + struct.pack("<I", 0)))
    for aliases in ({"b": "nothing"}, {"a/weight": "a/weight"}):
        assert "should stand for" in str(refused(model_bin(SMALL, 6, aliases)))


def test_altered_bytes_of_a_folder_are_read_or_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = folder(tmp_path, content := model_bin(transformer(rng) | {"num_heads": np.int8(1)}))
    for _ in range(300):
        altered = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            altered[place] = rng.integers(0, 256)
        (path / "model.bin").write_bytes(altered)
        with contextlib.suppress(EduceError):
            checkpoint.load(path)


def test_links_and_limits(tmp_path: Path, rng: np.random.Generator) -> None:
    path = folder(tmp_path / "model", model_bin(transformer(rng) | {"num_heads": np.int8(1)}))
    for name in ("external_bytes", "tokenizer_bytes", "card_bytes"):
        with pytest.raises(LimitError, match=name):
            checkpoint.load(path, Limits(**{name: 1}))
    for name in ("target_vocabulary.json", "model.bin"):
        (path / name).replace(tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
        with pytest.raises(ModelFileError, match="symbolic link"):
            checkpoint.load(path)
