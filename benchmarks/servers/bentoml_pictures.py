"""BentoML with adaptive batches; photos as Base64: ``python bentoml_pictures.py PORT``."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import bentoml
import pictures


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Service:
    @bentoml.api(
        route="/classify",
        batchable=True,
        max_batch_size=pictures.MAX_BATCH,
        max_latency_ms=max(1, round(pictures.DELAY_SECONDS * 1000)),
    )
    def classify(self, photos: list[str]) -> list[int]:
        return pictures.classes([pictures.read(base64.b64decode(photo)) for photo in photos])


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", f"{Path(__file__).stem}:Service"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", sys.argv[1]])
