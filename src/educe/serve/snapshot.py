"""`Snapshot`: all numbers of a server at a moment, which those of its other processes can be added to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from educe.generate.generator import Generator
from educe.generate.statistics import Statistics as GeneratorStatistics
from educe.serve.deployment import Entry
from educe.serve.observer import Observer
from educe.serve.repository import Repository
from educe.serve.served import LanguageModelServed
from educe.serve.statistics import Histogram, ModelStatistics

_START = "process_start_time_seconds"
_PROCESS_COUNTER = "process_cpu_seconds_total"
_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_used_blocks")


@dataclass
class ModelSnapshot:
    """What a model is and has done.

    Attributes:
        version: The version in service; empty if there is none.
        is_ready: Whether it answers at once, in every process.
        memory_bytes: Memory of its weights in the process that has most.
        num_waiting: Requests that wait.
        num_running: Requests that run.
        cache_bytes: Memory of the answers that are kept of it.
        statistics: What it has done.
        generator: What it does and has done as a generator; None if it is none, or not loaded.
    """

    version: str = ""
    is_ready: bool = True
    memory_bytes: int = 0
    num_waiting: int = 0
    num_running: int = 0
    cache_bytes: int = 0
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    generator: GeneratorStatistics | None = None

    @classmethod
    def of(cls, entry: Entry) -> ModelSnapshot:
        """Return what a model of this process is and has done."""
        deployment = entry.deployment
        if deployment is None:
            return cls(entry.version, False, statistics=entry.statistics)
        lane, served = deployment.lane, deployment.served
        found = cls(deployment.version, True, deployment.memory_bytes, statistics=entry.statistics)
        if deployment.cache is not None:
            found.cache_bytes = deployment.cache.size_bytes
        if isinstance(served, LanguageModelServed) and isinstance(served.model, Generator):
            found.generator = served.model.statistics()
            found.num_waiting, found.num_running = found.generator.num_waiting, found.generator.num_running
        elif lane is not None:
            found.num_waiting, found.num_running = len(lane.batcher.waiting), lane.num_running
        return found

    def absorb(self, other: ModelSnapshot) -> None:
        """Add what the model is and has done in another process."""
        self.version = self.version or other.version
        self.is_ready = self.is_ready and other.is_ready
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)
        self.num_waiting += other.num_waiting
        self.num_running += other.num_running
        self.cache_bytes += other.cache_bytes
        self.statistics.absorb(other.statistics)
        self.generator = _sum(self.generator, other.generator)

    def past(self) -> ModelSnapshot:
        """Return what the model has done, without what it is."""
        generator = None if self.generator is None else replace(self.generator, **dict.fromkeys(_GAUGES, 0))
        return ModelSnapshot(statistics=self.statistics, generator=generator)


@dataclass
class Snapshot:
    """All numbers of a server, or of one of its processes.

    Attributes:
        models: The models, by name.
        requests: Requests by method, route and status, as `Observer` has them.
        seconds: How long they took.
        workers: Requests by the number of the worker that answered; empty if there are no workers.
        process: What Prometheus' clients say of every process, by the metric's name.
    """

    models: dict[str, ModelSnapshot] = field(default_factory=dict)
    requests: Counter[tuple[str, str, int | str]] = field(default_factory=Counter)
    seconds: dict[tuple[bool, str], Histogram] = field(default_factory=dict)
    workers: Counter[int] = field(default_factory=Counter)
    process: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, repository: Repository, observer: Observer) -> Snapshot:
        """Return the numbers of this process."""
        from prometheus_client import ProcessCollector

        return cls(
            {name: ModelSnapshot.of(entry) for name, entry in repository.entries.items()},
            observer.requests,
            observer.seconds,
            process={
                sample.name: sample.value
                for family in ProcessCollector(registry=None).collect()
                for sample in family.samples
            },
        )

    def past(self) -> Snapshot:
        """Return the counts, which stay when their process has ended."""
        models = {name: model.past() for name, model in self.models.items()}
        process = {name: value for name, value in self.process.items() if name == _PROCESS_COUNTER}
        return Snapshot(models, self.requests, self.seconds, self.workers, process)


def total(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the numbers of several processes as those of one server."""
    whole = Snapshot()
    for each in snapshots:
        for name, model in each.models.items():
            whole.models.setdefault(name, ModelSnapshot()).absorb(model)
        whole.requests.update(each.requests)
        whole.workers.update(each.workers)
        for key, seconds in each.seconds.items():
            whole.seconds.setdefault(key, Histogram()).absorb(seconds)
        for metric, value in each.process.items():
            known = whole.process.get(metric)
            if known is None:
                whole.process[metric] = value
            else:
                whole.process[metric] = min(known, value) if metric == _START else known + value
    return whole


def _sum(one: GeneratorStatistics | None, other: GeneratorStatistics | None) -> GeneratorStatistics | None:
    if one is None or other is None:
        return one or other
    summed = {name: value + getattr(other, name) for name, value in asdict(one).items()}
    return GeneratorStatistics(**{**summed, "block_size": max(one.block_size, other.block_size)})
