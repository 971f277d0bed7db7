"""The model as peers run it: by ONNX Runtime, in one thread, as a model so small is fastest."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

_OPTIONS = onnxruntime.SessionOptions()
_OPTIONS.intra_op_num_threads = int(os.environ.get("MODEL_THREADS", "1"))
_SESSION = onnxruntime.InferenceSession(
    os.environ["MODEL_PATH"], _OPTIONS, providers=["CPUExecutionProvider"]
)
INPUT = _SESSION.get_inputs()[0].name
OUTPUT = _SESSION.get_outputs()[0].name


def run(rows: np.ndarray) -> np.ndarray:
    """Return the model's output."""
    return _SESSION.run([OUTPUT], {INPUT: rows})[0]
