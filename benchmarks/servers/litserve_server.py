"""LitServe, with its faster queue: ``python litserve_server.py PORT``."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import model
import numpy as np


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request) -> np.ndarray:  # noqa: ANN001
        given = request["inputs"][0]
        return np.array(given["data"], np.float32).reshape(given["shape"])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return model.run(rows)

    def encode_response(self, found: np.ndarray) -> dict[str, Any]:
        output = {"name": model.OUTPUT, "shape": found.shape, "datatype": "FP32"}
        return {"model_name": "model", "outputs": [{**output, "data": found.ravel().tolist()}]}


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/v2/models/model/infer"), accelerator="cpu", fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error")
