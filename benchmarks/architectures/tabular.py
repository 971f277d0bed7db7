"""Networks for tables: a small classifier, and a ranker with an embedding."""

from __future__ import annotations

import numpy as np

from benchmarks.architectures.network import Network


def mlp(net: Network) -> None:
    """Write a perceptron of 50, 256, 256 and 10."""
    x = net.input("input", ["batch", 50])
    for sizes in ((50, 256), (256, 256)):
        x = net.relu(net.gemm(x, sizes))
    net.output(net.gemm(x, (256, 10)), "logits", ["batch", 10])


def ranker(net: Network) -> None:
    """Write a ranker: 8 categories embedded in 16 dimensions, beside 13 numbers, and a perceptron above."""
    numbers = net.input("numbers", ["batch", 13])
    ids = net.input("ids", ["batch", 8], np.int64)
    embedded = net.add("Gather", net.weight(net.random(100_000, 16)), ids)
    embedded = net.view(embedded, net.size(embedded, 0), 8 * 16)
    x = net.add("Concat", numbers, embedded, axis=1)
    for sizes in ((13 + 8 * 16, 256), (256, 64)):
        x = net.relu(net.gemm(x, sizes))
    net.output(net.add("Sigmoid", net.gemm(x, (64, 1))), "score", ["batch", 1])
