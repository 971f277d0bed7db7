"""Triton by way of PyTriton, with its dynamic batcher: ``python triton_server.py PORT``."""

from __future__ import annotations

import os
import sys
import sysconfig

# Triton's stub looks for the library of the interpreter that runs this.
if "PYTRITON_READY" not in os.environ:
    os.environ["PYTRITON_READY"] = "1"
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    os.execv(sys.executable, [sys.executable, *sys.argv])

import model
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

NUM_FEATURES, NUM_OUTPUTS = (int(text) for text in os.environ["MODEL_SIZES"].split(","))


@batch
def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
    return {model.OUTPUT: model.run(inputs[model.INPUT])}


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(
        http_port=port,
        grpc_port=port + 1000,
        metrics_port=port + 2000,
        http_address="127.0.0.1",
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            "model",
            infer,
            inputs=[Tensor(name=model.INPUT, dtype=np.float32, shape=(NUM_FEATURES,))],
            outputs=[Tensor(name=model.OUTPUT, dtype=np.float32, shape=(NUM_OUTPUTS,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
        )
        triton.serve()
