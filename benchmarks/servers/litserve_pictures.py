"""LitServe with batches; photos as Base64, as its requests are JSON: ``python litserve_pictures.py PORT``."""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np
import pictures


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request) -> np.ndarray:  # noqa: ANN001
        return pictures.read(base64.b64decode(request["photo"]))

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def predict(self, rows: list[np.ndarray]) -> list[int]:
        return pictures.classes(rows if isinstance(rows, list) else [rows])

    def unbatch(self, output: list[int]) -> list[int]:
        return output

    def encode_response(self, found) -> dict[str, int]:  # noqa: ANN001
        return {"class": found[0] if isinstance(found, list) else found}


if __name__ == "__main__":
    api = Api(api_path="/classify", max_batch_size=pictures.MAX_BATCH, batch_timeout=pictures.DELAY_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error")
