"""Triton by way of PyTriton, with its dynamic batcher, photos as bytes: ``python triton_pictures.py P``."""

from __future__ import annotations

import os
import sys
import sysconfig

# Triton's stub looks for the library of the interpreter that runs this.
if "PYTRITON_READY" not in os.environ:
    os.environ["PYTRITON_READY"] = "1"
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import pictures
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def classify(photo: np.ndarray) -> dict[str, np.ndarray]:
    found = pictures.classes([pictures.read(bytes(row)) for row in photo])
    return {"class": np.array(found, np.int64)[:, None]}


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
            classify,
            inputs=[Tensor(name="photo", dtype=np.uint8, shape=(-1,))],
            outputs=[Tensor(name="class", dtype=np.int64, shape=(1,))],
            config=ModelConfig(
                max_batch_size=pictures.MAX_BATCH,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(pictures.DELAY_SECONDS * 1e6)),
            ),
        )
        triton.serve()
