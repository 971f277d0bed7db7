"""Embeddings of a thousand sentences beside ONNX Runtime and OpenVINO, each with its best batches.

python -m benchmarks.embeddings FOLDER [--threads 2]

FOLDER has a sentence encoder such as all-MiniLM-L6-v2. The sentences are those of Python's own manual, of all
lengths. The others are given the network as PyTorch exports it, the sentences in order of their lengths, so
that little is padding, and the size of batch that is fastest for each. All take turns; tokens are there.
Each is compared with Educe at the same precision: 32-bit floats, bfloat16 where the other can, and 8-bit
weights with activations that are quantised by the way.
Run where ``make test-parity`` has installed PyTorch and transformers.
"""

from __future__ import annotations

import argparse
import itertools
import pydoc_data.topics
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from educe.formats import checkpoint
from educe.generate.embedding import Embedder

COUNT, ROUNDS = 1000, 5
TRIED = 4
"""The best size of batches is looked for with one sentence of so many."""
PRECISIONS = ("f32", "bf16", "int8")
BATCHES = (1, 4, 8, 16, 32)
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def main() -> None:
    """Print how long each takes, the fastest run and the median."""
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    network = checkpoint.load(given.folder)
    own = {each: Embedder(network, precision=each, threads=given.threads) for each in PRECISIONS}
    ids = [own["f32"].tokens(text, truncate=True) for text in sentences()]
    print(f"{len(ids):,} sentences, {sum(map(len, ids)):,} tokens, the longest {max(map(len, ids)):,}")
    with tempfile.TemporaryDirectory() as folder:
        file, quantised = Path(folder) / "encoder.onnx", Path(folder) / "int8.onnx"
        export(given.folder, file)
        quantise(file, quantised)
        peers = {
            ("onnxruntime", "f32"): onnxruntime(file, given.threads),
            ("onnxruntime", "int8"): onnxruntime(quantised, given.threads),
            ("openvino", "f32"): openvino(file, given.threads, "f32"),
            ("openvino", "bf16"): openvino(file, given.threads, "bf16"),
        }
        runs: dict[tuple[str, str], Callable[[], np.ndarray]] = {
            ("educe", precision): partial(embedder.embed_tokens, ids) for precision, embedder in own.items()
        }
        for name, run in peers.items():
            runs[name] = best(name, run, ids)
        report(runs)


def quantise(file: Path, to: Path) -> None:
    """Write the network with weights of 8 bits, whose products quantise what they are given."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(file, to, per_channel=True, weight_type=QuantType.QInt8)


def sentences() -> list[str]:
    """Return sentences of Python's manual."""
    text = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    found = re.split(r"(?<=[.!?:])\s+(?=[A-Z])|\n\n+", text)
    plain = [" ".join(each.split()) for each in found]
    return [each for each in plain if len(each) > 20][:: max(1, len(plain) // COUNT)][:COUNT]


def export(folder: Path, file: Path) -> None:
    """Write the network with batches of any size and length, means and lengths of one included."""
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, attn_implementation="eager")

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            states = self.encoder(**dict(zip(NAMES, inputs, strict=True))).last_hidden_state
            mask = inputs[1].unsqueeze(-1).to(states.dtype)
            return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))

    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in NAMES)
    axes = {name: {0: "batch", 1: "length"} for name in NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pooled().eval(), example, file, input_names=[*NAMES], output_names=["y"], opset_version=17,
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip


def onnxruntime(file: Path, threads: int) -> Callable[[dict[str, Any]], np.ndarray]:
    """Return what runs a batch in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino(file: Path, threads: int, precision: str) -> Callable[[dict[str, Any]], np.ndarray]:
    """Return what runs a batch in OpenVINO."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda feeds: np.array(compiled(feeds)[0])


def best(
    name: tuple[str, str], run: Callable[[dict[str, Any]], np.ndarray], ids: Sequence[Sequence[int]]
) -> Callable[[], np.ndarray]:
    """Return the run of all sentences by batches of the size that is fastest for some of them."""
    found = {}
    for size in BATCHES:
        some = partial(batched, run, ids[::TRIED], size)
        some()
        found[size] = timed(some)
    size = min(found, key=lambda size: found[size])
    print(f"{' '.join(name)}: batches of {size}")
    return partial(batched, run, ids, size)


def batched(
    run: Callable[[dict[str, Any]], np.ndarray], ids: Sequence[Sequence[int]], size: int
) -> np.ndarray:
    """Return the vectors of all sentences, in their order."""
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    vectors: list[Any] = [None] * len(ids)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        length = max(len(ids[number]) for number in part)
        feeds = {name: np.zeros((len(part), length), np.int64) for name in NAMES}
        for row, number in enumerate(part):
            feeds["input_ids"][row, : len(ids[number])] = ids[number]
            feeds["attention_mask"][row, : len(ids[number])] = 1
        for number, vector in zip(part, run(feeds), strict=True):
            vectors[number] = vector
    return np.array(vectors)


def report(runs: dict[tuple[str, str], Callable[[], np.ndarray]]) -> None:
    """Print the times of all, which take turns, beside Educe's, and how far all are from the first."""
    vectors = {name: run() for name, run in runs.items()}
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for name, run in itertools.chain.from_iterable([*runs.items()] for _ in range(ROUNDS)):
        times[name].append(timed(run))
    right = vectors["educe", "f32"]
    for name, taken in times.items():
        own, apart = times["educe", name[1]], np.abs(vectors[name] - right).max()
        ratios = f"{min(taken) / min(own):.2f} ({statistics.median(taken) / statistics.median(own):.2f})"
        label, least, median = " ".join(name), min(taken), statistics.median(taken)
        print(f"{label:<17}{least:.3f} s ({median:.3f})  ratio {ratios}  apart {apart:.1e}")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
