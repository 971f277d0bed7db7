"""Bare FastAPI, a thread for each request, without batches: ``python fastapi_pictures.py PORT``."""

from __future__ import annotations

import sys

import pictures
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

app = FastAPI()


@app.post("/classify")
async def classify(request: Request) -> dict[str, int]:
    content = await request.body()
    return {"class": await run_in_threadpool(lambda: pictures.classes([pictures.read(content)])[0])}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
