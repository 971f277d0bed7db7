"""A recurrent network."""

from __future__ import annotations

import numpy as np

from benchmarks.architectures.network import Network


def lstm(net: Network) -> None:
    """Write two layers of LSTM (Hochreiter, Schmidhuber, 1997) of 256, and a classifier of the last step."""
    features, hidden = 64, 256
    x = net.input("input", ["batch", "steps", features])
    shape = net.add("Concat", net.constant([2]), net.size(x, 0), net.constant([hidden]), axis=0)
    zeros = net.add("Expand", net.constant(0, np.float32), shape)
    x = net.add("Transpose", x, perm=[1, 0, 2])
    for layer, size in enumerate((features, hidden)):
        matrices = [
            net.weight(net.random(1, 4 * hidden, each, deviation=each**-0.5)) for each in (size, hidden)
        ]
        bias = net.weight(net.random(1, 8 * hidden, deviation=0.1), "bias")
        bounds = (net.constant([layer]), net.constant([layer + 1]), net.constant([0]))
        initial = [net.add("Slice", zeros, *bounds) for _ in range(2)]
        sequence = net.add_several(3, "LSTM", x, *matrices, bias, "", *initial, hidden_size=hidden)[0]
        x = net.add("Squeeze", sequence, net.constant([1]))
    last = net.add("Gather", net.add("Transpose", x, perm=[1, 0, 2]), net.constant(-1), axis=1)
    net.output(net.gemm(last, (hidden, 10)), "logits", ["batch", 10])
