"""Triton by way of PyTriton, with its dynamic batcher: ``python triton_server.py PORT``."""

from __future__ import annotations

import os
import sys

import pytriton_serving  # isort: skip

import model
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor

NUM_FEATURES, NUM_OUTPUTS = (int(text) for text in os.environ["MODEL_SIZES"].split(","))


@batch
def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
    return {model.OUTPUT: model.run(inputs[model.INPUT])}


if __name__ == "__main__":
    pytriton_serving.serve(
        int(sys.argv[1]),
        infer_func=infer,
        inputs=[Tensor(name=model.INPUT, dtype=np.float32, shape=(NUM_FEATURES,))],
        outputs=[Tensor(name=model.OUTPUT, dtype=np.float32, shape=(NUM_OUTPUTS,))],
        config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
    )
