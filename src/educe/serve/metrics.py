"""The server's numbers as Prometheus reads them: each metric's name, what it is, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from educe.generate.statistics import Statistics as GeneratorStatistics
from educe.serve.observation import GRPC
from educe.serve.snapshot import Snapshot
from educe.serve.statistics import Histogram, ModelStatistics

HISTOGRAMS: dict[str, tuple[str, Callable[[ModelStatistics], Histogram]]] = {
    "educe_request_seconds": ("From a request's being there to its answer.", lambda found: found.whole),
    "educe_queue_seconds": ("How long requests waited for their run.", lambda found: found.queue),
    "educe_run_seconds": ("How long their runs took.", lambda found: found.run),
    "educe_batch_rows": ("Rows of a run.", lambda found: found.batch_rows),
    "educe_first_token_seconds": ("Until a text's first token.", lambda found: found.first_token),
    "educe_between_tokens_seconds": (
        "Between a text's tokens, by their mean of each request.",
        lambda found: found.between_tokens,
    ),
}
"""The histograms of models."""

COUNTERS: dict[str, tuple[str, Callable[[GeneratorStatistics], int]]] = {
    "educe_prompt_tokens": ("Tokens of prompts.", lambda found: found.num_prompt_tokens),
    "educe_cached_tokens": (
        "Tokens of prompts that were found in the cache.",
        lambda found: found.num_cached_tokens,
    ),
    "educe_tokens": ("Tokens written.", lambda found: found.num_tokens),
    "educe_draft_tokens": ("Tokens guessed.", lambda found: found.num_draft_tokens),
    "educe_accepted_tokens": ("Tokens guessed that were right.", lambda found: found.num_accepted_tokens),
    "educe_steps": ("Steps of the model.", lambda found: found.num_steps),
    "educe_preemptions": (
        "How often a text lost its memory to others, and was read again.",
        lambda found: found.num_preemptions,
    ),
}
"""The counters of generators, whose names end with ``_total`` in the text."""


def exposition(snapshot: Snapshot) -> bytes:
    """Return all numbers in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(snapshot))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from self._process()
        yield from self._requests()
        yield from self._models()
        yield from self._cache()
        yield from self._texts()
        yield from self._http()

    def _process(self) -> Iterator[Metric]:
        found = self._snapshot.process
        for family in ProcessCollector(registry=None).collect():
            family.samples = [
                sample._replace(value=found.get(sample.name, sample.value)) for sample in family.samples
            ]
            yield family

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "educe_requests",
            "Requests to a model, by what came of them: ok, or the error.",
            labels=("model", "outcome"),
        )
        models = self._snapshot.models
        for name, model in models.items():
            requests.add_metric((name, "ok"), model.statistics.num_answered)
            for kind, count in model.statistics.failures.items():
                requests.add_metric((name, kind), count)
        yield requests
        for metric, (text, of) in HISTOGRAMS.items():
            family = HistogramMetricFamily(metric, text, labels=("model",))
            for name, model in models.items():
                _add(family, (name,), of(model.statistics))
            yield family

    def _models(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("educe_model_ready", "Whether a model answers at once.", labels=("model",))
        memory = GaugeMetricFamily(
            "educe_model_memory_bytes", "Memory of a model's weights.", labels=("model",)
        )
        waiting = GaugeMetricFamily("educe_waiting_requests", "Requests that wait.", labels=("model",))
        running = GaugeMetricFamily("educe_running_requests", "Requests that run.", labels=("model",))
        for name, model in self._snapshot.models.items():
            ready.add_metric((name,), model.is_ready)
            memory.add_metric((name,), model.memory_bytes)
            waiting.add_metric((name,), model.num_waiting)
            running.add_metric((name,), model.num_running)
        yield from (ready, memory, waiting, running)

    def _cache(self) -> Iterator[Metric]:
        hits = CounterMetricFamily(
            "educe_response_cache_hits", "Requests whose answers were there already.", labels=("model",)
        )
        misses = CounterMetricFamily(
            "educe_response_cache_misses", "Requests whose answers were not.", labels=("model",)
        )
        kept = GaugeMetricFamily(
            "educe_response_cache_bytes", "Memory of the answers that are kept.", labels=("model",)
        )
        for name, model in self._snapshot.models.items():
            hits.add_metric((name,), model.statistics.cache_hits.count)
            misses.add_metric((name,), model.statistics.num_cache_misses)
            kept.add_metric((name,), model.cache_bytes)
        yield from (hits, misses, kept)

    def _texts(self) -> Iterator[Metric]:
        generators = {
            name: model.generator
            for name, model in self._snapshot.models.items()
            if model.generator is not None
        }
        for metric, (text, of) in COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=("model",))
            for name, found in generators.items():
                family.add_metric((name,), of(found))
            yield family
        used = GaugeMetricFamily(
            "educe_kv_cache_used_ratio",
            "The share of the memory of keys and values that running texts need.",
            labels=("model",),
        )
        for name, found in generators.items():
            used.add_metric((name,), found.num_used_blocks / max(found.num_blocks, 1))
        yield used

    def _http(self) -> Iterator[Metric]:
        labels = ("method", "route", "status")
        requests = CounterMetricFamily("educe_http_requests", "Requests over HTTP.", labels=labels)
        calls = CounterMetricFamily("educe_grpc_requests", "Calls over gRPC.", labels=("route", "status"))
        for (method, route, status), count in self._snapshot.requests.items():
            if method == GRPC:
                calls.add_metric((route, str(status)), count)
            else:
                requests.add_metric((method, route, str(status)), count)
        yield from (requests, calls)
        if self._snapshot.workers:
            workers = CounterMetricFamily(
                "educe_worker_requests", "Requests of a worker.", labels=("worker",)
            )
            for index, count in sorted(self._snapshot.workers.items()):
                workers.add_metric((str(index),), count)
            yield workers
        seconds = HistogramMetricFamily(
            "educe_http_request_seconds",
            "From a request's header to the end of its answer.",
            labels=("route",),
        )
        call_seconds = HistogramMetricFamily(
            "educe_grpc_request_seconds",
            "From a call's message to the end of its answer.",
            labels=("route",),
        )
        for (is_grpc, route), histogram in self._snapshot.seconds.items():
            _add(call_seconds if is_grpc else seconds, (route,), histogram)
        yield from (seconds, call_seconds)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    bounds = [f"{bound:g}" for bound in histogram.bounds]
    counts = accumulate(histogram.counts)
    buckets = list(zip((*bounds, "+Inf"), map(float, counts), strict=True))
    family.add_metric(labels, buckets, histogram.sum)
