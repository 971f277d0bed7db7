"""Embeddings: texts to vectors, as numbers or as base64."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from educe.generate.embedding import Embedder
from educe.serve.deployment import Deployment
from educe.serve.faults import BadRequest
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.openai import embedding_types as embeddings
from educe.serve.http.openai.errors import OPENAI, in_words_of
from educe.serve.http.openai.types import Usage
from educe.serve.http.openai.writing import deployed, language_model, prompts_of
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.text_tensors import Work
from educe.serve.threads import in_thread

_TOKENS = "tokens"
# One runs, and the next is there when it ends.
_MOST_PARTS = 2
_EMBEDDING = msgspec.json.Decoder(embeddings.EmbeddingRequest)


@dataclass(frozen=True)
class Embeddings:
    """The route of embeddings.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                "/v1/embeddings",
                self.embed,
                "Make vectors of texts.",
                takes=embeddings.EmbeddingRequest,
                gives=embeddings.EmbeddingAnswer,
                family=OPENAI,
            )
        ]

    async def embed(self, request: Request) -> Response:
        """Make vectors of texts."""
        asked = request.json(_EMBEDDING)
        texts = prompts_of(asked.input, "input")
        most = self.inference.settings.server_limits.num_inputs
        if len(texts) > most:
            raise BadRequest(f"more than {most} texts", place="input", remedy="send them in parts")
        with await deployed(self.inference, asked.model) as deployment:
            model: Embedder = language_model(deployment, "embedder")
            if asked.dimensions not in (None, model.dimensions):
                raise BadRequest(
                    f"the model's vectors have {model.dimensions} elements",
                    place="dimensions",
                    remedy="leave it out",
                )
            assert deployment.lane is not None
            cut = partial(_tokens, model, texts, asked.truncate)
            with in_words_of({}):
                ids = await deployment.lane.read(cut, self.inference.pool, request.deadline, asked.priority)
                vectors = await _vectors(self.inference, deployment, ids, request.deadline, asked.priority)
        return await in_thread(self.inference.pool, partial(_answer, asked, ids, vectors))


def _answer(asked: embeddings.EmbeddingRequest, ids: Sequence[list[int]], vectors: np.ndarray) -> Response:
    count = sum(map(len, ids))
    found = [
        embeddings.Embedding(index, _written(vector, asked.encoding_format))
        for index, vector in enumerate(vectors)
    ]
    return json_response(embeddings.EmbeddingAnswer(found, asked.model, Usage(count, count)))


def _tokens(model: Embedder, texts: Sequence[str | list[int]], truncate: bool) -> list[list[int]]:
    found = []
    for index, text in enumerate(texts):
        if isinstance(text, str):
            with in_words_of({"": f"input[{index}]"}):
                found.append(model.tokens(text, truncate=truncate))
            continue
        most, size = model.max_tokens, int(model.checkpoint.config["vocab_size"])
        taken = text[:most] if truncate else text
        if len(taken) > most or max(taken) >= size:
            raise BadRequest(f"expected at most {most} tokens below {size}", place=f"input[{index}]")
        found.append(taken)
    return found


async def _vectors(
    inference: Inference, deployment: Deployment, ids: Sequence[list[int]], deadline: float, priority: int
) -> np.ndarray:
    """Return the vectors of texts, which run in parts so that others' come between.

    So few parts wait at a time that an idle server refuses none, whatever its bounds are.
    """
    lane, settings = deployment.lane, inference.settings
    assert lane is not None
    size = settings.max_batch
    parts = [ids[first : first + size] for first in range(0, len(ids), size)]
    found: list[Any] = [None] * len(parts)
    following = iter(range(len(parts)))

    async def run_following() -> None:
        for index in following:
            work, rows = Work(parts[index], {}, Embedder.embed_tokens), len(parts[index])
            found[index], _ = await lane.submit(_TOKENS, work, rows, deadline=deadline, priority=priority)

    # With a target, what waits longer than it allows is refused.
    most = 1 if settings.target_seconds is not None else min(_MOST_PARTS, settings.max_waiting)
    runs = [asyncio.ensure_future(run_following()) for _ in parts[:most]]
    try:
        await asyncio.gather(*runs)
        return np.concatenate(found)
    except BaseException as fault:
        for run in runs:  # the others, if one has failed
            run.cancel()
        ends = None if isinstance(fault, asyncio.CancelledError) else lane.end_of_runs()
        if ends is not None:  # one of them, perhaps, which uses the model
            await asyncio.shield(ends)
        raise


def _written(vector: np.ndarray, form: str) -> Any:
    if form == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
