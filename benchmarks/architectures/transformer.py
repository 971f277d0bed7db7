"""Transformers: encoders of text, and one of pictures."""

from __future__ import annotations

import numpy as np

from benchmarks.architectures.network import Network

_VOCABULARY = 30522
_POSITIONS = 512
_MASKED = float(np.finfo(np.float32).min)


def bert_base(net: Network) -> None:
    """Write BERT-base (Devlin et al., 2018), uncased: 12 layers of 768, with its pooler."""
    x = _encoder(net, layers=12, width=768, heads=12)
    first = net.add("Gather", x, net.constant(0), axis=1)
    net.output(x, "last_hidden_state", ["batch", "sequence", 768])
    net.output(net.add("Tanh", net.gemm(first, (768, 768), gain=1)), "pooler_output", ["batch", 768])


def minilm_l6(net: Network) -> None:
    """Write MiniLM-L6 (Wang et al., 2020): 6 layers of 384, as sentence embeddings use it."""
    x = _encoder(net, layers=6, width=384, heads=12)
    net.output(x, "last_hidden_state", ["batch", "sequence", 384])


def _encoder(net: Network, layers: int, width: int, heads: int) -> str:
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, types = (net.input(name, ["batch", "sequence"], np.int64) for name in names)
    net.card["constants"] = "{attention_mask = 1, token_type_ids = 0}"
    positions = net.add(
        "Slice", net.constant([range(_POSITIONS)]), net.constant([0]), net.size(ids, 1), net.constant([1])
    )
    tables = ((_VOCABULARY, ids), (2, types), (_POSITIONS, positions))
    words, kinds, places = (
        net.add("Gather", net.weight(net.random(rows, width)), rows_of) for rows, rows_of in tables
    )
    x = _layer_norm(net, net.add("Add", net.add("Add", words, kinds), places), width)
    hidden = net.add("Cast", net.add("Unsqueeze", mask, net.constant([1, 2])), to=1)
    inverted = net.add("Sub", net.constant(1, np.float32), hidden)
    bias = net.add("Mul", inverted, net.constant(_MASKED, np.float32))
    for _ in range(layers):
        x = _encoder_layer(net, x, bias, width, heads)
    return x


def _encoder_layer(net: Network, x: str, bias: str, width: int, heads: int) -> str:
    """Attend, then feed forward, each normalised after its residual."""
    query, key, value = (net.linear(x, (width, width)) for _ in range(3))
    query, value = (_split_heads(net, each, width, heads, [0, 2, 1, 3]) for each in (query, value))
    scores = net.add("MatMul", query, _split_heads(net, key, width, heads, [0, 2, 3, 1]))
    scores = net.add("Div", scores, net.constant((width / heads) ** 0.5, np.float32))
    weights = net.add("Softmax", net.add("Add", scores, bias), axis=-1)
    attended = net.add("Transpose", net.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    attended = net.view(attended, net.size(attended, 0), net.size(attended, 1), width)
    x = _layer_norm(net, net.add("Add", net.linear(attended, (width, width)), x), width)
    inner = net.gelu(net.linear(x, (width, 4 * width)))
    return _layer_norm(net, net.add("Add", net.linear(inner, (4 * width, width), gain=2), x), width)


def _split_heads(net: Network, x: str, width: int, heads: int, order: list[int]) -> str:
    parted = net.view(x, net.size(x, 0), net.size(x, 1), heads, width // heads)
    return net.add("Transpose", parted, perm=order)


def _layer_norm(net: Network, x: str, width: int, epsilon: float = 1e-12) -> str:
    scale = net.weight(net.rng.uniform(0.8, 1.2, width).astype(np.float32))
    bias = net.weight(net.random(width, deviation=0.1), "bias")
    return net.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def vit_s16(net: Network) -> None:
    """Write ViT-S/16 (Dosovitskiy et al., 2020; Touvron et al., 2021): 12 layers of 384, for 224 x 224."""
    width, heads, patches = 384, 6, 14 * 14
    x = net.input("input", ["batch", 3, 224, 224])
    batch = net.size(x, 0)
    x = net.conv(x, (3, width), 16, 16, padding=0, bias=True, gain=1)
    x = net.add("Transpose", net.view(x, batch, width, patches), perm=[0, 2, 1])
    shape = net.add("Concat", batch, net.constant([1]), net.constant([width]), axis=0)
    token = net.add("Expand", net.weight(net.random(1, 1, width)), shape)
    x = net.add("Concat", token, x, axis=1)
    x = net.add("Add", x, net.weight(net.random(1, patches + 1, width, deviation=0.5)))
    for _ in range(12):
        x = net.add("Add", x, _attention(net, _layer_norm(net, x, width, 1e-6), width, heads, patches + 1))
        inner = net.gelu(net.linear(_layer_norm(net, x, width, 1e-6), (width, 4 * width)))
        x = net.add("Add", x, net.linear(inner, (4 * width, width)))
    first = net.add("Gather", _layer_norm(net, x, width, 1e-6), net.constant(0), axis=1)
    net.output(net.gemm(first, (width, 1000), gain=1), "logits", ["batch", 1000])


def _attention(net: Network, x: str, width: int, heads: int, tokens: int) -> str:
    """Attend, as ``scaled_dot_product_attention`` is exported: query and key are both scaled."""
    size = width // heads
    batch = net.size(x, 0)
    parted = net.view(net.linear(x, (width, 3 * width)), batch, tokens, 3, heads, size)
    parted = net.add("Transpose", parted, perm=[2, 0, 3, 1, 4])
    query, key, value = (net.add("Gather", parted, net.constant(index), axis=0) for index in range(3))
    scale = net.constant(size**-0.25, np.float32)
    query = net.add("Mul", query, scale)
    key = net.add("Mul", net.add("Transpose", key, perm=[0, 1, 3, 2]), scale)
    weights = net.add("Softmax", net.add("MatMul", query, key), axis=-1)
    attended = net.add("Transpose", net.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return net.linear(net.view(attended, batch, tokens, width), (width, width))
