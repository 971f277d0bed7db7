"""`Repository`: which models are loaded, in which version, and within which memory."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Literal

from educe.errors import EduceError
from educe.generate.generator import Generator
from educe.limits import Limits, format_bytes
from educe.model import TensorType
from educe.serve import text_tensors
from educe.serve.batcher import Batcher
from educe.serve.cache import ModelCache, ResponseCache, is_deterministic
from educe.serve.deadline import as_fault
from educe.serve.faults import BadRequest, DeadlineExceeded, NotFound, NotReady, Unprocessable
from educe.serve.lane import Lane
from educe.serve.observation import note_model
from educe.serve.opening import ModelSource, open_model
from educe.serve.served import LanguageModelServed, PredictorModel, Served
from educe.serve.settings import ServerSettings
from educe.serve.statistics import ModelStatistics

_LOG = logging.getLogger("educe.serve")

# What takes longer is worth a word.
_NOTICED_SECONDS = 1.0
_COMPILING = "model %s is compiling: what comes of it is kept, and the next start is quick"
_EVICTED = "evicted: loads when it is asked for"

State = Literal["UNAVAILABLE", "LOADING", "READY"]


@dataclass(eq=False)
class Deployment:
    """A model that is loaded, in one version. A request holds it with ``with`` while it uses it.

    Attributes:
        name: Its name.
        version: Its version.
        served: The model.
        lane: The way of requests to it; None if it plans its own runs.
        memory_bytes: What it counts against the budget.
        statistics: What it has done, in other versions, too.
        cache: Where its answers are kept; None if they are not.
        num_users: Requests that use it now, and runs that nobody waits for any more.
    """

    name: str
    version: str
    served: Served
    lane: Lane | None
    memory_bytes: int
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    cache: ModelCache | None = None
    num_users: int = 0
    is_retired: bool = False

    def __enter__(self) -> Deployment:
        self.num_users += 1
        note_model(self.name, self.version, self.statistics)
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        if fault is not None:
            self.statistics.failed(as_fault(fault))
        run = None if self.lane is None else self.lane.work
        if run is not None and fault is not None:
            run.add_done_callback(lambda ended: self._leave())
        else:
            self._leave()

    @property
    def running_seconds(self) -> float:
        """For how long its present run, or the present step of its texts, has lasted; 0 if there is none."""
        if self.lane is not None:
            return self.lane.running_seconds
        model = self.served.model if isinstance(self.served, LanguageModelServed) else None
        return model.running_seconds if isinstance(model, Generator) else 0.0

    def retire(self) -> None:
        """Return its memory as soon as no request uses it."""
        self.is_retired = True
        if self.cache is not None:
            self.cache.drop()
        if self.num_users == 0:
            self._close()

    def _leave(self) -> None:
        self.num_users -= 1
        if self.is_retired and self.num_users == 0:
            self._close()

    def _close(self) -> None:
        """Close the model where its last step is not waited for by all who use the event loop."""
        if self.lane is not None or self.running_seconds == 0:
            Thread(target=self.served.close, name="educe-close").start()
        else:
            self.num_users += 1
            Thread(
                target=self._close_after_step, args=(asyncio.get_running_loop(),), name="educe-close"
            ).start()

    def _close_after_step(self, loop: asyncio.AbstractEventLoop) -> None:
        self.served.close()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._leave)


@dataclass(eq=False)
class Entry:
    """A model that the server knows.

    Attributes:
        source: Where it is.
        state: Whether it is loaded.
        reason: Why it is not.
        deployment: What answers now.
        task: The name of its task, from when it was first loaded.
        is_wanted: Whether it is to be ready: not if it was unloaded, or made room for another.
        is_unloaded: Whether it was unloaded on purpose, and waits until it is loaded so.
        statistics: What it has done, in all versions.
        loading: What loads it now, for all who wait for it; it goes on when they have gone.
        loading_bytes: The memory that is kept for it while it is loaded.
    """

    source: ModelSource
    state: State = "UNAVAILABLE"
    reason: str = ""
    is_wanted: bool = True
    is_unloaded: bool = False
    deployment: Deployment | None = None
    task: str = ""
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    loading: asyncio.Task[None] | None = None
    loading_bytes: int = 0

    @property
    def version(self) -> str:
        """The version that answers; empty if there is none."""
        return "" if self.deployment is None else self.deployment.version


class Repository:
    """The models of a server. It belongs to one event loop.

    A version is replaced only when the next one is loaded: there is always one that answers, requests keep
    the one that they began with, and one that cannot be loaded changes nothing.

    Args:
        sources: The models.
        settings: Among them the memory for all models, and the bounds on what waits for one.
        pool: Threads for loading and running.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: ServerSettings, pool: Executor) -> None:
        self._settings, self._pool = settings, pool
        self._cache = None if settings.cache_bytes is None else ResponseCache(settings.cache_bytes)
        self._entries = {source.name: Entry(source) for source in sources}
        self._recent: dict[str, None] = {}
        self._retired: list[Deployment] = []

    @property
    def entries(self) -> dict[str, Entry]:
        """All models, by name."""
        return self._entries

    def entry(self, name: str, version: str | None = None) -> Entry:
        """Return a model, whether it is loaded or not.

        Raises:
            NotFound: there is no such model, or it does not answer in the version.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"there is no model {name[:128]!r}", remedy="/v2/repository/index lists them")
        if version is not None and (entry.deployment is None or entry.deployment.version != version):
            raise NotFound(f"the model {name!r} has no version {version!r}", place="model_version")
        return entry

    def listed(self, ready_only: bool) -> list[Entry]:
        """Return all models, or those that answer at once."""
        return [entry for entry in self._entries.values() if entry.state == "READY" or not ready_only]

    @property
    def are_ready(self) -> bool:
        """Whether all models are loaded, but those that were unloaded on purpose."""
        return all(entry.state == "READY" or not entry.is_wanted for entry in self._entries.values())

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Say whether a model, in a version if one is given, answers at once."""
        deployment = self.entry(name).deployment
        return deployment is not None and version in (None, deployment.version)

    @property
    def is_stuck(self) -> bool:
        """Whether a run of a model has lasted longer than any request may, also of one out of use."""
        deployed = [entry.deployment for entry in self._entries.values() if entry.deployment is not None]
        most = self._settings.timeout_seconds
        return any(each.running_seconds > most for each in (*deployed, *self._retired))

    async def use(self, name: str, version: str | None = None, deadline: float = math.inf) -> Deployment:
        """Return a model for a request, which has to hold it at once; what made room for others is loaded.

        Args:
            name: The model's name.
            version: Its version; None for the newest.
            deadline: When the answer is of no use any more, by the loop's clock.

        Raises:
            NotFound: there is no such model or version.
            NotReady: it was unloaded, or cannot be loaded now.
            DeadlineExceeded: the deadline has passed before it was loaded, which goes on.
        """
        entry = self.entry(name)
        while (deployment := entry.deployment) is None:  # which it may be again, if others needed its room
            if entry.is_unloaded and entry.loading is None:
                raise NotReady(f"the model {name!r} was unloaded", remedy="ask the server's admin to load it")
            await self._load(entry, deadline)
        self.entry(name, version)
        self._note_use(name)
        return deployment

    async def load(self, name: str) -> None:
        """Load a model, or its newest version in place of the one that answers.

        Raises:
            NotFound: there is no such model.
            BadRequest: it cannot be loaded; what answered before still does.
        """
        entry = self.entry(name)
        await _end_of_loading(entry)
        try:
            await self._load(entry)
        except NotReady as fault:
            raise BadRequest(fault.cause) from None

    async def unload(self, name: str) -> None:
        """Take a model out of use; requests that use it end first.

        Raises:
            NotFound: there is no such model.
        """
        entry = self.entry(name)
        await _end_of_loading(entry)
        self._drop(entry, "unloaded")
        entry.is_unloaded = True

    async def load_all(self) -> None:
        """Load all models that fit into the memory, in their order; what is wrong with others is logged."""
        for entry in self._entries.values():
            if entry.deployment is not None:  # somebody has asked for it meanwhile
                continue
            with suppress(NotReady):
                has_room = entry.loading is not None or self._has_room(entry)
                entry.is_wanted = not entry.is_unloaded and has_room
                if entry.is_wanted:
                    await self._load(entry)
                elif not entry.is_unloaded:
                    entry.reason = _EVICTED

    def close(self) -> None:
        """Take all models out of use."""
        for entry in self._entries.values():
            if entry.loading is not None:
                entry.loading.cancel()
            self._drop(entry, "the server ends")

    async def _load(self, entry: Entry, deadline: float = math.inf) -> None:
        """Load a model, or wait until it is loaded if it is being loaded already."""
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._loaded(entry))
            entry.loading.add_done_callback(_look_at)
        loading = entry.loading
        seconds = None if math.isinf(deadline) else deadline - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait({loading}, timeout=seconds)
        if not done:
            raise DeadlineExceeded("the request's time passed while its model was loaded")
        await loading

    async def _loaded(self, entry: Entry) -> None:
        entry.state = "LOADING" if entry.deployment is None else "READY"
        loop = asyncio.get_running_loop()
        start, noticed = (
            loop.time(),
            loop.call_later(_NOTICED_SECONDS, _LOG.info, _COMPILING, entry.source.name),
        )
        try:
            self._make_room(entry)
            version, served = await loop.run_in_executor(
                self._pool, _open_newest, entry.source, self._settings.limits
            )
            _check_replaces(entry.deployment, served)
        except Exception as error:
            entry.state = "UNAVAILABLE" if entry.deployment is None else "READY"
            entry.reason = _cause(entry.source.name, error)
            raise NotReady(
                f"the model {entry.source.name!r} cannot be loaded: {entry.reason}",
                retry_after=error.retry_after if isinstance(error, NotReady) else None,
            ) from None
        finally:
            noticed.cancel()
            entry.loading, entry.loading_bytes = None, 0
        old, entry.deployment = entry.deployment, self._deploy(entry, version, served)
        self._note_use(entry.source.name)
        entry.state, entry.reason, entry.is_wanted = "READY", "", True
        entry.is_unloaded, entry.task = False, served.task
        if old is not None:
            self._retire(old)
        seconds = loop.time() - start
        level = logging.DEBUG if old is None and seconds < _NOTICED_SECONDS else logging.INFO
        _LOG.log(level, "model %s version %s is ready after %.1f s", entry.source.name, version, seconds)

    def _deploy(self, entry: Entry, version: str, served: Served) -> Deployment:
        settings = self._settings
        batcher = Batcher(settings.max_batch, settings.max_waiting, settings.target_seconds)
        lane = None
        if isinstance(served, PredictorModel):
            compile_seconds = served.predictor.executable.compile_seconds
            lane = Lane(served.run, batcher, self._pool, compile_seconds, served.is_small, entry.statistics)
        elif served.kind != "generator":
            lane = Lane(
                lambda group, requests: text_tensors.run(served, requests),
                batcher,
                self._pool,
                statistics=entry.statistics,
            )
        return Deployment(
            entry.source.name,
            version,
            served,
            lane,
            served.memory_bytes,
            entry.statistics,
            self._cache_of(entry, served),
        )

    def _cache_of(self, entry: Entry, served: Served) -> ModelCache | None:
        if self._cache is None or not isinstance(served, PredictorModel):
            return None
        is_kept = is_deterministic(served.predictor.task.model)
        return ModelCache(self._cache, entry.statistics) if is_kept else None

    def _make_room(self, entry: Entry) -> None:
        """Take models out of use that were not used for longest, until there is room for one more."""
        needed = entry.source.size_bytes()
        others = [self._entries[name] for name in self._recent if name != entry.source.name]
        idle = [
            (other, other.deployment.memory_bytes)
            for other in others
            if other.deployment is not None and other.deployment.num_users == 0
        ]
        if self._room() + sum(size for _, size in idle) < needed:
            raise NotReady(f"{format_bytes(needed)} of memory are not free", retry_after=1.0)
        for other, _ in idle:
            if self._room() >= needed:
                break
            _LOG.info("model %s makes room for %s", other.source.name, entry.source.name)
            self._drop(other, _EVICTED)
        entry.loading_bytes = needed

    def _note_use(self, name: str) -> None:
        self._recent.pop(name, None)
        self._recent[name] = None

    def _has_room(self, entry: Entry) -> bool:
        try:
            return self._room() >= entry.source.size_bytes()
        except (EduceError, OSError):
            return True  # and loading it says what is wrong

    def _room(self) -> float:
        if self._settings.memory_bytes is None:
            return float("inf")
        used = sum(
            entry.loading_bytes + (0 if entry.deployment is None else entry.deployment.memory_bytes)
            for entry in self._entries.values()
        )
        self._retired = [each for each in self._retired if each.num_users]
        used += sum(each.memory_bytes for each in self._retired)
        return self._settings.memory_bytes - used

    def _drop(self, entry: Entry, reason: str) -> None:
        deployment, entry.deployment = entry.deployment, None
        entry.state, entry.reason, entry.is_wanted = "UNAVAILABLE", reason, False
        self._recent.pop(entry.source.name, None)
        if deployment is not None:
            self._retire(deployment)

    def _retire(self, deployment: Deployment) -> None:
        """Take a version out of use, whose memory counts until the last request that uses it has ended."""
        deployment.retire()
        self._retired = [each for each in (*self._retired, deployment) if each.num_users]


def _open_newest(source: ModelSource, limits: Limits) -> tuple[str, Served]:
    version, path = source.newest()
    return version, open_model(path, source.options, limits)


def _check_replaces(old: Deployment | None, served: Served) -> None:
    """Raise an error if who asks the present version could not ask the next one."""
    if old is None or not isinstance(old.served, PredictorModel):
        return
    if not isinstance(served, PredictorModel) or _inputs(served) != _inputs(old.served):
        raise Unprocessable(
            "the new version takes other inputs than the one that answers; unload that one first"
        )


def _inputs(served: PredictorModel) -> dict[str, object]:
    kinds = served.signature.inputs.items()
    return {name: kind.dtype if isinstance(kind, TensorType) else kind for name, kind in kinds}


async def _end_of_loading(entry: Entry) -> None:
    while entry.loading is not None:
        await asyncio.wait({entry.loading})


def _look_at(loading: asyncio.Task[None]) -> None:
    """Look at what a load has raised, which nobody may be left to do."""
    if not loading.cancelled():
        loading.exception()


def _cause(name: str, error: Exception) -> str:
    """Return why a model cannot be loaded, as clients may know it; the log has more."""
    if isinstance(error, EduceError):
        _LOG.warning("model %s cannot be loaded: %s", name, error)
        return error.cause
    _LOG.error("model %s cannot be loaded", name, exc_info=error)
    return "the server failed at it, and its log says more"
