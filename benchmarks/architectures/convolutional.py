"""Convolutional networks: classifiers of pictures of 224 x 224, and a U-Net."""

from __future__ import annotations

import numpy as np

from benchmarks.architectures.network import Network

SILU_GAIN = 2.8
"""A SiLU keeps 0.355 of the second moment of normal input."""

GATED_GAIN = 11.0
"""A gate of a sigmoid near 0.5 after a SiLU takes three quarters of what that leaves."""


def resnet50(net: Network) -> None:
    """Write ResNet-50 (He et al., 2015, "Deep Residual Learning"), with the stride in the 3 x 3."""
    x = net.input("input", ["batch", 3, 224, 224])
    x = net.relu(net.norm(net.conv(x, (3, 64), 7, 2, gain=1), 64))
    x = net.pool(x, "Max", 3, 2, pads=[1] * 4)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _bottleneck(net, x, channels, width, stride)
            channels = 4 * width
    _classify(net, x, channels)


def _bottleneck(net: Network, x: str, channels: int, width: int, stride: int) -> str:
    y = net.relu(net.norm(net.conv(x, (channels, width)), width))
    y = net.relu(net.norm(net.conv(y, (width, width), 3, stride), width))
    y = net.norm(net.conv(y, (width, 4 * width)), 4 * width, gain=0.3)
    if channels != 4 * width:
        x = net.norm(net.conv(x, (channels, 4 * width), 1, stride), 4 * width)
    return net.relu(net.add("Add", y, x))


def _classify(net: Network, x: str, channels: int) -> None:
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    net.output(net.gemm(pooled, (channels, 1000)), "logits", ["batch", 1000])


def vgg16(net: Network) -> None:
    """Write VGG-16 (Simonyan, Zisserman, 2014), configuration D."""
    x = net.input("input", ["batch", 3, 224, 224])
    channels = 3
    for convolutions, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convolutions):
            x = net.relu(net.conv(x, (channels, width), 3, bias=True, gain=1 if channels == 3 else 2))
            channels = width
        x = net.pool(x, "Max", 2, 2)
    x = net.add("Flatten", x, axis=1)
    for sizes in ((512 * 7 * 7, 4096), (4096, 4096)):
        x = net.relu(net.gemm(x, sizes))
    net.output(net.gemm(x, (4096, 1000)), "logits", ["batch", 1000])


def mobilenet_v2(net: Network) -> None:
    """Write MobileNetV2 (Sandler et al., 2018) of width 1."""
    x = net.input("input", ["batch", 3, 224, 224])
    x = _relu6(net, net.norm(net.conv(x, (3, 32), 3, 2, gain=1), 32))
    channels = 32
    stages = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # fmt: skip
    for expansion, width, blocks, stride in stages:
        for block in range(blocks):
            x = _inverted_residual(net, x, (channels, width), expansion, 1 if block else stride)
            channels = width
    x = _relu6(net, net.norm(net.conv(x, (channels, 1280), gain=1), 1280))
    _classify(net, x, 1280)


def _relu6(net: Network, x: str) -> str:
    return net.add("Clip", x, net.constant(0, np.float32), net.constant(6, np.float32))


def _inverted_residual(net: Network, x: str, sizes: tuple[int, int], expansion: int, stride: int) -> str:
    channels, width = sizes
    hidden = channels * expansion
    y = x
    if expansion > 1:
        y = _relu6(net, net.norm(net.conv(y, (channels, hidden), gain=1), hidden))
    y = _relu6(net, net.norm(net.conv(y, (hidden, hidden), 3, stride, groups=hidden), hidden))
    y = net.norm(net.conv(y, (hidden, width)), width, gain=0.5)
    return net.add("Add", x, y) if stride == 1 and channels == width else y


def efficientnet_b0(net: Network) -> None:
    """Write EfficientNet-B0 (Tan, Le, 2019)."""
    x = net.input("input", ["batch", 3, 224, 224])
    x = net.silu(net.norm(net.conv(x, (3, 32), 3, 2, gain=1), 32))
    channels = 32
    stages = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
    )  # fmt: skip
    for expansion, kernel, stride, width, blocks in stages:
        for block in range(blocks):
            x = _mbconv(net, x, (channels, width), expansion, kernel, 1 if block else stride)
            channels = width
    x = net.silu(net.norm(net.conv(x, (channels, 1280), gain=1), 1280))
    _classify(net, x, 1280)


def _mbconv(net: Network, x: str, sizes: tuple[int, int], expansion: int, kernel: int, stride: int) -> str:
    channels, width = sizes
    hidden, squeezed = channels * expansion, channels // 4
    y = x
    if expansion > 1:
        y = net.silu(net.norm(net.conv(y, (channels, hidden), gain=1), hidden))
    y = net.conv(y, (hidden, hidden), kernel, stride, groups=hidden, gain=SILU_GAIN)
    y = net.silu(net.norm(y, hidden))
    gate = net.silu(net.conv(net.add("GlobalAveragePool", y), (hidden, squeezed), bias=True))
    gate = net.add("Sigmoid", net.conv(gate, (squeezed, hidden), bias=True))
    y = net.norm(net.conv(net.add("Mul", gate, y), (hidden, width), gain=GATED_GAIN), width, gain=0.5)
    return net.add("Add", y, x) if stride == 1 and channels == width else y


def squeezenet1_1(net: Network) -> None:
    """Write SqueezeNet 1.1 (Iandola et al., 2016)."""
    x = net.input("input", ["batch", 3, 224, 224])
    x = net.relu(net.conv(x, (3, 64), 3, 2, padding=0, bias=True, gain=1))
    channels = 64
    for index, (squeezed, width) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        if index in (0, 2, 4):
            x = net.pool(x, "Max", 3, 2, pads=[0] * 4, ceil_mode=1)
        s = net.relu(net.conv(x, (channels, squeezed), bias=True))
        one = net.relu(net.conv(s, (squeezed, width), bias=True))
        three = net.relu(net.conv(s, (squeezed, width), 3, bias=True))
        x = net.add("Concat", one, three, axis=1)
        channels = 2 * width
    x = net.relu(net.conv(x, (channels, 1000), bias=True))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    net.output(pooled, "logits", ["batch", 1000])


def unet(net: Network) -> None:
    """Write a U-Net (Ronneberger et al., 2015) of 32 to 512 channels, normalised, for 256 x 256."""
    x = net.input("input", ["batch", 3, 256, 256])
    widths = (32, 64, 128, 256, 512)
    channels, skipped = 3, []
    for width in widths:
        if channels != 3:
            skipped.append(x)
            x = net.pool(x, "Max", 2, 2)
        x = _twice(net, x, channels, width)
        channels = width
    for width in reversed(widths[:-1]):
        weight = net.weight(net.random(channels, width, 2, 2, deviation=(2 / channels) ** 0.5))
        bias = net.weight(net.random(width, deviation=0.1), "bias")
        x = net.add("ConvTranspose", x, weight, bias, kernel_shape=[2, 2], strides=[2, 2])
        x = _twice(net, net.add("Concat", skipped.pop(), x, axis=1), 2 * width, width)
        channels = width
    mask = net.add("Sigmoid", net.conv(x, (channels, 1), bias=True))
    net.output(mask, "mask", ["batch", 1, 256, 256])


def _twice(net: Network, x: str, channels: int, width: int) -> str:
    x = net.relu(net.norm(net.conv(x, (channels, width), 3), width))
    return net.relu(net.norm(net.conv(x, (width, width), 3), width))
