"""Triton by way of PyTriton, with its dynamic batcher, photos as bytes: ``python triton_pictures.py P``."""

from __future__ import annotations

import sys

import pytriton_serving  # isort: skip

import numpy as np
import pictures
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor


@batch
def classify(photo: np.ndarray) -> dict[str, np.ndarray]:
    found = pictures.classes([pictures.read(bytes(row)) for row in photo])
    return {"class": np.array(found, np.int64)[:, None]}


if __name__ == "__main__":
    pytriton_serving.serve(
        int(sys.argv[1]),
        infer_func=classify,
        inputs=[Tensor(name="photo", dtype=np.uint8, shape=(-1,))],
        outputs=[Tensor(name="class", dtype=np.int64, shape=(1,))],
        config=ModelConfig(
            max_batch_size=pictures.MAX_BATCH,
            batcher=DynamicBatcher(max_queue_delay_microseconds=round(pictures.DELAY_SECONDS * 1e6)),
        ),
    )
