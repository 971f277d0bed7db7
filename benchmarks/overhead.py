"""What Educe adds to the engine: around one photo, and around one call.

1. A warm predictor on one 640x480 JPEG and a 224x224 classifier, its engine's run left out, against Pillow
   decoding and resizing the same file.
2. `Executable.run` against the engine's own call, on a model of one small addition.

Run by ``make bench``, or ``python -m benchmarks.overhead``. Interleaved; minimum and median are printed.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

import educe

ZOO = Path(__file__).parents[1] / "zoo"
ROUNDS = 300
CALLS = 5000


def main() -> None:
    """Print both figures."""
    photo()
    call()


def photo() -> None:
    """Compare pre- and postprocessing with Pillow's decode and resize."""
    content = jpeg_640x480()
    predictor = educe.predictor(ZOO / "mobilenet_v2" / "model.onnx", threads=1)
    own, pillow = [], []
    for _ in range(ROUNDS):
        seconds = predictor(content).seconds
        own.append(seconds.preprocess + seconds.postprocess)
        pillow.append(timed(lambda: decode_and_resize(content)))
    report("pre- and postprocessing", own[20:], "Pillow's decode and resize", pillow[20:], 1e3, "ms")


def call() -> None:
    """Compare `Executable.run` with the engine's own call."""
    import onnxruntime

    model = addition()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exe = educe.compile(model, threads=1)
    feeds = {name: np.ones((1, 8), np.float32) for name in "ab"}
    own, bare = [], []
    for _ in range(CALLS):
        own.append(timed(lambda: exe.run(feeds)))
        bare.append(timed(lambda: session.run(["y"], feeds)))
    report("Executable.run", own[200:], "the engine's own call", bare[200:], 1e6, "µs")
    print(f"  added: {(statistics.median(own) - statistics.median(bare)) * 1e6:.2f} µs (median)")


def decode_and_resize(content: bytes) -> Image.Image:
    """Do what any program must: decode the file, and resize its shorter side to 256."""
    image = Image.open(io.BytesIO(content))
    return image.convert("RGB").resize((341, 256), Image.Resampling.BILINEAR)


def jpeg_640x480() -> bytes:
    """Return a real photo as a JPEG of 640 by 480 pixels."""
    buffer = io.BytesIO()
    photo = Image.open(ZOO / "detection" / "000000160012.jpg").convert("RGB")
    photo.resize((640, 480), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def addition() -> onnx.ModelProto:
    """Return y = a + b."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "aby"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])], "addition", values[:2], values[2:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(first: str, ours: list[float], second: str, theirs: list[float], factor: float, unit: str) -> None:
    """Print minimum and median of both, and their ratio."""
    for name, seconds in ((first, ours), (second, theirs)):
        low, middle = min(seconds) * factor, statistics.median(seconds) * factor
        print(f"{name:30} min {low:8.3f} {unit}   median {middle:8.3f} {unit}")
    ratios = min(ours) / min(theirs), statistics.median(ours) / statistics.median(theirs)
    print(f"  ratio: {ratios[0]:.2f} (min), {ratios[1]:.2f} (median)")


if __name__ == "__main__":
    main()
