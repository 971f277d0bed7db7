"""Public architectures as ONNX models with random weights, written as PyTorch's exporter writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx

from benchmarks.architectures import convolutional, recurrent, tabular, transformer
from benchmarks.architectures.network import Network

ARCHITECTURES: dict[str, Callable[[Network], None]] = {
    "resnet50": convolutional.resnet50,
    "vgg16": convolutional.vgg16,
    "mobilenet_v2": convolutional.mobilenet_v2,
    "efficientnet_b0": convolutional.efficientnet_b0,
    "squeezenet1_1": convolutional.squeezenet1_1,
    "unet": convolutional.unet,
    "bert_base": transformer.bert_base,
    "minilm_l6": transformer.minilm_l6,
    "vit_s16": transformer.vit_s16,
    "lstm": recurrent.lstm,
    "mlp": tabular.mlp,
    "ranker": tabular.ranker,
}
"""What writes each network, by its name."""


def build(name: str) -> onnx.ModelProto:
    """Return the architecture `name`; its weights depend on nothing but the name."""
    network = Network(name)
    ARCHITECTURES[name](network)
    return network.model()


def stored(name: str, folder: Path) -> Path:
    """Return the file of the architecture `name` in `folder`, written if it is not there as it is now."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    path = folder / f"{name}-{digest.hexdigest()[:12]}" / "model.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        onnx.save(build(name), part)
        part.replace(path)
    return path
