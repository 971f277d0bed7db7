"""What the models have done, as Prometheus asks for it, and as the Open Inference Protocol does.

Source: the protocol's extension of statistics, as Triton has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct, field

from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.routes import Route
from educe.serve.inference import Inference
from educe.serve.observation import Observer
from educe.serve.repository import Entry
from educe.serve.statistics import ModelStatistics

_PLAIN = "text/plain; version=0.0.4; charset=utf-8"


class Duration(Struct):
    """How often something was, and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0


class InferenceStatistics(Struct):
    """Where the time of requests went; reading and writing tensors is part of their runs here."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_infer: Duration
    compute_input: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)


class BatchStatistics(Struct):
    """The runs of a number of rows."""

    batch_size: int
    compute_infer: Duration
    compute_input: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class MemoryUsage(Struct):
    """Memory that a model takes."""

    byte_size: int
    type: Literal["CPU"] = "CPU"
    id: int = 0


class ModelStats(Struct):
    """What a model has done."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    memory_usage: list[MemoryUsage]


class StatisticsAnswer(Struct):
    """What models have done."""

    model_stats: list[ModelStats]


@dataclass(frozen=True)
class Statistics:
    """The routes of what was done.

    Attributes:
        inference: The models.
        observer: What has seen the requests.
    """

    inference: Inference
    observer: Observer

    def routes(self) -> list[Route]:
        """Return the routes."""
        model = "/v2/models/{model}"
        return [
            Route("GET", "/metrics", self.metrics, "What the server has done, for Prometheus.", gives=_PLAIN),
            Route("GET", "/v2/models/stats", self.all, "What all models have done.", gives=StatisticsAnswer),
            *(
                Route("GET", f"{path}/stats", self.one, "What a model has done.", gives=StatisticsAnswer)
                for path in (model, f"{model}/versions/{{version}}")
            ),
        ]

    async def metrics(self, request: Request) -> Response:
        """Return all numbers in the text format of Prometheus."""
        from educe.serve.metrics import exposition

        return Response(exposition(self.inference.repository.entries, self.observer), _PLAIN)

    async def all(self, request: Request) -> Response:
        """Return what all models have done."""
        return _answer(self.inference.repository.entries.values())

    async def one(self, request: Request) -> Response:
        """Return what a model has done."""
        name, version = request.params["model"], request.params.get("version")
        return _answer([self.inference.repository.entry(name, version)])


def _answer(entries: Iterable[Entry]) -> Response:
    return json_response(StatisticsAnswer([stats_of(entry) for entry in entries]))


def stats_of(entry: Entry) -> ModelStats:
    """Return what a model has done, as the protocol says it."""
    deployment, found = entry.deployment, entry.statistics
    return ModelStats(
        entry.source.name,
        "" if deployment is None else deployment.version,
        round(found.last_answer * 1000),
        found.num_rows,
        found.batch_rows.count,
        _inference(found),
        [
            BatchStatistics(rows, Duration(count, round(seconds * 1e9)))
            for rows, (count, seconds) in sorted(found.batches.items())
        ],
        [] if deployment is None else [MemoryUsage(deployment.memory_bytes)],
    )


def _inference(found: ModelStatistics) -> InferenceStatistics:
    def duration(histogram: Any) -> Duration:
        return Duration(histogram.count, round(histogram.sum * 1e9))

    fail = Duration(sum(found.failures.values()))
    return InferenceStatistics(duration(found.whole), fail, duration(found.queue), duration(found.run))
