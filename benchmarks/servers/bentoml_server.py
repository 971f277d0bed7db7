"""BentoML: ``python bentoml_server.py PORT``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import model
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Service:
    @bentoml.api(route="/v2/models/model/infer")
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        given = inputs[0]
        found = model.run(np.array(given["data"], np.float32).reshape(given["shape"]))
        output = {"name": model.OUTPUT, "shape": found.shape, "datatype": "FP32"}
        return {"model_name": "model", "outputs": [{**output, "data": found.ravel().tolist()}]}


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", f"{Path(__file__).stem}:Service"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", sys.argv[1]])
