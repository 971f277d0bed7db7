"""Bare FastAPI, in one process, without batches: ``python fastapi_server.py PORT``."""

from __future__ import annotations

import sys

import model
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    inputs: list[Tensor]


app = FastAPI()


@app.post("/v2/models/model/infer")
async def infer(request: Request) -> dict[str, object]:
    given = request.inputs[0]
    found = model.run(np.array(given.data, np.float32).reshape(given.shape))
    output = {"name": model.OUTPUT, "shape": found.shape, "datatype": "FP32", "data": found.ravel().tolist()}
    return {"model_name": "model", "outputs": [output]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
