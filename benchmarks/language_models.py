"""Language models of real shapes with random weights, as their publishers' folders and as GGUF files.

Weights are normal with a deviation of 0.02, as at the start of training, and depend on nothing but their
names. The tokenizer is one of bytes whose merges are made up; its size is the model's own.

Run by ``python -m benchmarks.language_models qwen2.5-0.5b FOLDER --gguf Q4_0 Q8_0``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import AddedToken, Tokenizer, decoders, models

from educe.text import pretokenizers
from educe.text.pieces import BYTES

_DEVIATION = 0.02
_ORDER = "\u0120etaoinshrdlcumwfgypbvkxjqz0123456789.,"
_EPSILON = {"llama": 1e-5, "qwen2": 1e-6}
_PRE_TOKENIZERS = {"llama": "llama-bpe", "qwen2": "qwen2"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder of Llama's family whose embeddings are tied.

    Attributes:
        model_type: ``llama``, or ``qwen2``.
        hidden: Features of a token.
        inner: Features between the feed-forward products.
        layers: How many there are.
        heads: Heads of queries.
        kv_heads: Heads of keys and values.
        vocabulary: Rows of the table of embeddings.
        words: Tokens that are not special; bytes are the first 256.
        special: The tokens that follow these; the last ends a text.
        length: Most tokens of a text.
        rope: What config.json says of rotary positions.
    """

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    words: int
    special: tuple[str, ...]
    length: int
    rope: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight, by its name in Hugging Face's library."""
        kv, inner, hidden = self.kv_heads * self.hidden // self.heads, self.inner, self.hidden
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for layer in range(self.layers):
            attention, mlp = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
            for part, rows in {"q": hidden, "k": kv, "v": kv}.items():
                found[f"{attention}.{part}_proj.weight"] = (rows, hidden)
                if self.model_type == "qwen2":
                    found[f"{attention}.{part}_proj.bias"] = (rows,)
            found[f"{attention}.o_proj.weight"] = (hidden, hidden)
            found |= {f"{mlp}.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
            found[f"{mlp}.down_proj.weight"] = (hidden, inner)
            for part in ("input", "post_attention"):
                found[f"model.layers.{layer}.{part}_layernorm.weight"] = (hidden,)
        return {**found, "model.norm.weight": (hidden,)}

    def config(self) -> dict[str, Any]:
        """Return config.json."""
        first = self.words
        return {
            "model_type": self.model_type,
            "architectures": [f"{self.model_type.capitalize()}ForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.length,
            "rms_norm_eps": _EPSILON[self.model_type],
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": first,
            "eos_token_id": first + len(self.special) - 1,
            **self.rope,
        }


_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES = {
    "qwen2.5-0.5b": Shape(
        "qwen2", 896, 4864, 24, 14, 2, 151936, 151643,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), 32768, {"rope_theta": 1e6},
    ),
    "llama3.2-1b": Shape(
        "llama", 2048, 8192, 16, 32, 8, 128256, 128000,
        ("<|begin_of_text|>", "<|end_of_text|>"), 131072,
        {"rope_theta": 5e5, "rope_scaling": _LLAMA3_SCALING},
    ),
}  # fmt: skip
"""The sizes of published models."""


def make(shape: Shape, folder: Path) -> Path:
    """Write a folder as Hugging Face's library does, its weights as bfloat16, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    tokenizer(shape).save(str(folder / "tokenizer.json"))
    settings = {"bos_token": shape.special[0], "eos_token": shape.special[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    header: dict[str, Any] = {}
    end = 0
    for name, sizes in shape.weights.items():
        start, end = end, end + 2 * int(np.prod(sizes))
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shape.weights:
            file.write(weight(shape, name).astype(ml_dtypes.bfloat16).tobytes())
    return folder


def make_gguf(shape: Shape, path: Path, encoding: str) -> Path:
    """Write the same model as a GGUF file whose matrices have an encoding, and return its path."""
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[shape.model_type]
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_sizes(writer, shape)
    _add_tokenizer(writer, shape)
    names = gguf.get_tensor_name_map(architecture, shape.layers)
    kind = GGMLQuantizationType[encoding]
    for name, sizes in shape.weights.items():
        values, stem = weight(shape, name), name.rpartition(".")
        known = f"{names.get_name(stem[0])}.{stem[2]}"
        if shape.model_type == "llama" and stem[0].endswith(("q_proj", "k_proj")):
            values = adjacent(values, sizes[0] * shape.heads // shape.hidden)
        if len(sizes) > 1:
            writer.add_tensor(known, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(known, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weight(shape: Shape, name: str) -> np.ndarray:
    """Return a weight of a shape as f32 of what bfloat16 holds; norms are ones."""
    sizes = shape.weights[name]
    if name.endswith("norm.weight"):
        return np.ones(sizes, np.float32)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(sizes, np.float32) * np.float32(_DEVIATION)
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def adjacent(values: np.ndarray, heads: int) -> np.ndarray:
    """Return rows with the two features that rotate together side by side, as GGUF's llama has them."""
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def tokenizer(shape: Shape) -> Tokenizer:
    """Return a tokenizer of bytes: frequent pairs of letters are merged, and then pairs of these."""
    merges = list(_merges(shape.words - len(BYTES)))
    tokens = [*BYTES, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pretokenizers.by_name(_PRE_TOKENIZERS[shape.model_type])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in shape.special])
    return made


def _merges(count: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of tokens: as many letters as are needed in pairs, then the pairs in pairs."""
    letters = next(size for size in itertools.count(1) if size**2 + size**4 >= count)
    pairs = list(itertools.product(_ORDER[:letters], repeat=2))
    words = ["".join(pair) for pair in pairs]
    yield from itertools.islice(itertools.chain(pairs, itertools.product(words, repeat=2)), count)


def _add_sizes(writer: GGUFWriter, shape: Shape) -> None:
    width = shape.hidden // shape.heads
    writer.add_context_length(shape.length)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(_EPSILON[shape.model_type])
    writer.add_rope_freq_base(shape.rope["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(shape.vocabulary)
    if "rope_scaling" in shape.rope:
        writer.add_tensor("rope_freqs.weight", llama3_factors(width, **shape.rope))


def llama3_factors(width: int, rope_theta: float, rope_scaling: dict[str, Any]) -> np.ndarray:
    """Return what the wave length of each pair of features is multiplied by, f32[width / 2]."""
    low, high = rope_scaling["low_freq_factor"], rope_scaling["high_freq_factor"]
    waves = 2 * np.pi * rope_theta ** (np.arange(0, width, 2) / width)
    turns = rope_scaling["original_max_position_embeddings"] / waves
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope_scaling["factor"] + smooth)).astype(np.float32)


def _add_tokenizer(writer: GGUFWriter, shape: Shape) -> None:
    state = json.loads(tokenizer(shape).to_str())
    tokens = [*state["model"]["vocab"], *shape.special]
    unused = [f"<|unused {number}|>" for number in range(len(tokens), shape.vocabulary)]
    kinds = [gguf.TokenType.NORMAL] * shape.words + [gguf.TokenType.CONTROL] * len(shape.special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZERS[shape.model_type])
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*kinds, *([gguf.TokenType.UNUSED] * len(unused))])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(shape.words)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def main() -> None:
    """Write a model."""
    parser = argparse.ArgumentParser(description="Write a language model with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", nargs="*", default=[], help="also write model-ENCODING.gguf")
    given = parser.parse_args()
    make(SHAPES[given.shape], given.folder)
    for encoding in given.gguf:
        make_gguf(SHAPES[given.shape], given.folder.parent / f"{given.folder.name}-{encoding}.gguf", encoding)


if __name__ == "__main__":
    main()
