"""`Repository`: which models are loaded, in which version, and within which memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from educe.errors import EduceError, ModelFileError, OptionError
from educe.limits import format_bytes
from educe.machine import usable_cores
from educe.serve import text_tensors
from educe.serve.batcher import Batcher
from educe.serve.cache import ModelCache, ResponseCache, is_deterministic
from educe.serve.deployment import Deployment, Entry
from educe.serve.description import Description
from educe.serve.faults import (
    BadRequest,
    NotFound,
    NotReady,
    Overloaded,
    Unprocessable,
)
from educe.serve.lane import Lane
from educe.serve.observation import note_model
from educe.serve.opening import ModelSource, open_model, size_bytes
from educe.serve.served import PredictorModel, Served
from educe.serve.settings import ServerSettings
from educe.store import Store

_LOG = logging.getLogger("educe.serve")

# What takes longer is worth a word.
_NOTICED_SECONDS = 1.0
_COMPILING = "model %s is compiling: what comes of it is kept, and the next start is quick"
_LOOK_SECONDS = 0.25
_EVICTED = "evicted: loads when it is asked for"
_NO_ROOM = "there was no room: loads when it is asked for"


class Repository:
    """The models of a server. It belongs to one event loop.

    A version is replaced only when the next one is loaded: there is always one that answers, requests keep
    the one that they began with, and one that cannot be loaded changes nothing.

    Models that need room get it one after the other, in the order in which they were asked for. Those that
    have to go for it answer the requests that they have, and no others: these wait until their model is
    loaded again, behind all that wait for room already. So none keeps another out.

    Args:
        sources: The models.
        settings: Among them the memory for all models, and the bounds on what waits for one.
        pool: Threads for running.

    Attributes:
        when_in_service: Called with the description of each version that is put in service here.

    Raises:
        OptionError: a model has no version that the memory can hold.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: ServerSettings, pool: Executor) -> None:
        self._settings, self._pool = settings, pool
        # Loads take long, and runs never wait for them.
        self._loading = ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="educe-serve-loading")
        self._cache = None if settings.cache_bytes is None else ResponseCache(settings.cache_bytes)
        self._entries = {source.name: Entry(source) for source in sources}
        self._recent: dict[str, None] = {}
        self._retired: list[Deployment] = []
        self._turn, self._change = asyncio.Lock(), asyncio.Event()
        self.when_in_service: Callable[[Description], object] = lambda description: None
        for source in sources:
            self._check_can_fit(source)

    @property
    def entries(self) -> dict[str, Entry]:
        """All models, by name."""
        return self._entries

    def entry(self, name: str, version: str | None = None) -> Entry:
        """Return a model, whether it is loaded or not.

        Raises:
            NotFound: there is no such model, or the version is not in service.
        """
        entry = self._entries.get(name)
        if entry is None:
            near = get_close_matches(name[:128], self._entries, n=1)
            remedy = [*(f"did you mean {each!r}?" for each in near), "/v2/repository/index lists them"]
            raise NotFound(f"there is no model {name[:128]!r}", remedy=" ".join(remedy))
        if version not in (None, entry.version):
            raise NotFound(f"the model {name!r} has no version {version!r}", place="model_version")
        return entry

    async def describe(self, name: str, version: str | None = None) -> Description:
        """Return what is in service of a model, which makes no room for it.

        Args:
            name: The model's name.
            version: Its version; None for the one in service.

        Raises:
            NotFound: there is no such model or version.
            NotReady: nothing is known of it: it was unloaded, cannot be loaded, or was never asked for.
        """
        entry = self.entry(name)
        is_untried = entry.is_wanted and not entry.reason
        if entry.description is None and (is_untried or entry.loading is not None):
            await self._load(entry)
        description = entry.description
        if description is None:
            raise NotReady(f"the model {name!r} is not loaded: {entry.reason}")
        self.entry(name, version)
        note_model(name, description.version, entry.statistics)
        return description

    def put_in_service(self, description: Description) -> None:
        """Put a version in service that another process has loaded, unless one is already."""
        entry = self.entry(description.name)
        if entry.description is None and not entry.is_unloaded:
            entry.description = description

    def listed(self, ready_only: bool) -> list[Entry]:
        """Return all models, or those that answer at once."""
        return [entry for entry in self._entries.values() if entry.state == "READY" or not ready_only]

    @property
    def are_ready(self) -> bool:
        """Whether all models answer, but those that were unloaded on purpose."""
        return all(entry.is_ready or entry.is_unloaded for entry in self._entries.values())

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Say whether a model answers, in a version if one is given; one that comes back by itself does."""
        entry = self.entry(name)
        return entry.is_ready and version in (None, entry.version)

    @property
    def is_stuck(self) -> bool:
        """Whether a run of a model has lasted longer than any request may, also of one out of use."""
        deployed = [entry.deployment for entry in self._entries.values() if entry.deployment is not None]
        most = self._settings.timeout_seconds
        return any(each.running_seconds > most for each in (*deployed, *self._retired))

    async def use(self, name: str, version: str | None = None) -> Deployment:
        """Return a model for a request, which has to hold it at once; it is loaded first if it is not.

        The load goes on when the request waits for it no longer.

        Args:
            name: The model's name.
            version: Its version; None for the one in service.

        Raises:
            NotFound: there is no such model or version.
            NotReady: it was unloaded, or cannot be loaded now.
            Overloaded: too many requests wait until it is loaded.
        """
        entry = self.entry(name)
        if version is not None and entry.description is not None:
            self.entry(name, version)
        while (deployment := entry.deployment) is None:  # which it may be again, if it was unloaded
            if entry.loading is None:
                _check_not_unloaded(entry)
            await self._wait(entry)
        self.entry(name, version)
        self._note_use(name)
        return deployment

    async def load(self, name: str) -> None:
        """Load a model, or its newest version in place of the one in service.

        If none is in service, it is the newest that can be loaded.

        Raises:
            NotFound: there is no such model.
            BadRequest: it cannot be loaded; the version in service stays so.
        """
        entry = self.entry(name)
        await _end_of_loading(entry)
        try:
            await self._load(entry, is_replacing=entry.description is not None)
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
        entry.is_unloaded, entry.description = True, None

    async def load_all(self) -> None:
        """Load all models that fit into the memory, in their order; what is wrong with others is logged.

        Raises:
            OptionError: a model does not take an option.
        """
        for entry in self._entries.values():
            if entry.deployment is not None:  # somebody has asked for it meanwhile
                continue
            has_room = entry.loading is not None or self._has_room(entry)
            entry.is_wanted = not entry.is_unloaded and has_room
            if entry.is_wanted:
                try:
                    await self._load(entry)
                except NotReady as fault:
                    if isinstance(fault.__cause__, OptionError):
                        raise _of_model(entry.source.name, fault.__cause__) from None
            elif not entry.is_unloaded:
                entry.reason = _NO_ROOM

    def close(self) -> None:
        """Take all models out of use."""
        for entry in self._entries.values():
            if entry.loading is not None:
                entry.loading.cancel()
            self._drop(entry, "the server ends")
        self._loading.shutdown(wait=False, cancel_futures=True)

    async def _wait(self, entry: Entry) -> None:
        """Wait as a request until a model is loaded."""
        if entry.num_waiting >= self._settings.max_waiting:
            raise Overloaded("too many requests wait until the model is loaded", retry_after=1.0)
        is_replacing = entry.is_replacing
        entry.num_waiting += 1
        try:
            await self._load(entry)
        except NotReady:
            if not (is_replacing and entry.description):  # else the version in service comes back
                raise
        finally:
            entry.num_waiting -= 1
            self._change.set()

    async def _load(self, entry: Entry, *, is_replacing: bool = False) -> None:
        """Load a model, or wait until it is loaded if it is being loaded already."""
        if entry.loading is None:
            entry.is_replacing = is_replacing
            entry.loading = asyncio.create_task(self._loaded(entry))
            entry.loading.add_done_callback(_look_at)
        loading = entry.loading
        await asyncio.wait({loading})
        await loading

    async def _loaded(self, entry: Entry) -> None:
        loop, name = asyncio.get_running_loop(), entry.source.name
        start = loop.time()
        noticing = asyncio.create_task(_notice_compiling(name, Store.num_missing))
        try:
            description, served, reason = await self._opened(entry)
        except NotReady as fault:
            entry.reason = fault.cause
            entry.is_wanted = entry.is_wanted or not entry.is_replacing
            raise NotReady(f"the model {name!r}: {fault.cause}") from fault.__cause__
        finally:
            noticing.cancel()
            entry.loading, entry.loading_bytes, entry.is_replacing = None, 0, False
            self._change.set()
        old, entry.deployment = entry.deployment, self._deploy(entry, description, served)
        self._note_use(name)
        entry.reason, entry.is_wanted = reason, True
        entry.is_unloaded, entry.description = False, description
        self.when_in_service(description)
        if old is not None:
            self._retire(old)
        seconds = loop.time() - start
        level = logging.DEBUG if old is None and seconds < _NOTICED_SECONDS else logging.INFO
        _LOG.log(level, "model %s version %s is ready after %.1f s", name, description.version, seconds)

    async def _opened(self, entry: Entry) -> tuple[Description, Served, str]:
        """Return a model in the first of its versions that can be loaded, and what is wrong with newer ones.

        Raises:
            NotReady: there is none; the cause is an `OptionError` if one does not take an option.
        """
        faults: list[tuple[str, Exception]] = []
        try:
            versions = self._versions(entry)
        except (EduceError, OSError) as error:
            versions, faults = [], [(entry.version, error)]
            _log_fault(entry.source.name, entry.version, error)
        for version, path in versions:
            try:
                description, served = await self._opened_version(entry, version, path)
            except Exception as error:
                entry.loading_bytes = 0
                faults.append((version, error))
                _log_fault(entry.source.name, version, error)
            else:
                reason = _reason(*faults[0]) if faults else ""
                if faults:
                    _LOG.warning("model %s is served in version %s: %s", entry.source.name, version, reason)
                return description, served, reason
        of_option = next((error for _, error in faults if isinstance(error, OptionError)), None)
        raise NotReady(_reason(*faults[0])) from of_option or faults[0][1]

    def _versions(self, entry: Entry) -> list[tuple[str, Path]]:
        """Return the versions of which one is to be loaded, in the order in which they are tried.

        The version in service is looked for alone, the newest one if it is asked for, and any if none is.
        """
        found = entry.source.versions()
        if entry.is_replacing:
            return found[:1]
        if entry.description is None:
            return found
        present = [each for each in found if each[0] == entry.version]
        if not present:
            raise ModelFileError("it is not there any more", path=entry.source.path)
        return present

    async def _opened_version(self, entry: Entry, version: str, path: Path) -> tuple[Description, Served]:
        await self._make_room(entry, size_bytes(path))
        served = await asyncio.get_running_loop().run_in_executor(
            self._loading, open_model, path, entry.source.options, self._settings.limits
        )
        description = Description.of(entry.source.name, version, served)
        if entry.description is not None and not description.takes_inputs_of(entry.description):
            raise Unprocessable(
                "it takes other inputs than the version in service", remedy="unload that one first"
            )
        return description, served

    def _deploy(self, entry: Entry, description: Description, served: Served) -> Deployment:
        settings = self._settings
        batcher = Batcher(settings.max_batch, settings.max_waiting, settings.target_seconds)
        lane = None
        if isinstance(served, PredictorModel):
            executable = served.predictor.executable
            batcher.max_runs = executable.most_runs
            lane = Lane(
                served.run,
                batcher,
                self._pool,
                executable.crowd,
                executable.compile_seconds,
                served.is_small,
                entry.statistics,
            )
        elif served.kind != "generator":
            lane = Lane(
                lambda group, requests: text_tensors.run(served, requests),
                batcher,
                self._pool,
                statistics=entry.statistics,
            )
        return Deployment(
            description,
            served,
            lane,
            served.memory_bytes,
            entry.statistics,
            self._cache_of(entry, served),
            when_free=self._change.set,
        )

    def _cache_of(self, entry: Entry, served: Served) -> ModelCache | None:
        if self._cache is None or not isinstance(served, PredictorModel):
            return None
        is_kept = is_deterministic(served.predictor.task.model)
        return ModelCache(self._cache, entry.statistics) if is_kept else None

    async def _make_room(self, entry: Entry, needed: int) -> None:
        """Wait until there is room for one more model, which others make.

        Raises:
            OptionError: there never will be.
        """
        budget = self._settings.memory_bytes
        if budget is None:
            return
        if needed + entry.memory_bytes > budget:
            raise self._too_large(needed, entry.memory_bytes, budget)
        async with self._turn:
            while self._room() < needed:
                self._change.clear()
                for other in self._dispensable(entry, needed):
                    _LOG.info("model %s makes room for %s", other.source.name, entry.source.name)
                    self._drop(other, _EVICTED)
                if self._room() < needed:
                    await self._change.wait()
            entry.loading_bytes = needed

    def _dispensable(self, entry: Entry, needed: int) -> list[Entry]:
        """Return the models that have to go; none if there is room soon, or not even without all of them.

        Those that no request uses go first, of them those that were not used for longest.
        """
        leaving = sum(each.memory_bytes for each in self._retired if each.num_users)
        lacking = needed - self._room() - leaving
        # What a request has waited for is there until it has it.
        loaded = [
            (other, deployment)
            for name in self._recent
            if name != entry.source.name
            and not (other := self._entries[name]).num_waiting
            and (deployment := other.deployment) is not None
        ]
        chosen: list[tuple[Entry, Deployment]] = []
        for each in sorted(loaded, key=lambda each: each[1].num_users > 0):
            if lacking > 0:
                chosen.append(each)
                lacking -= each[1].memory_bytes
        if lacking > 0:
            return []
        for each in chosen[::-1]:
            if each[1].memory_bytes <= -lacking:
                chosen.remove(each)
                lacking += each[1].memory_bytes
        return [other for other, _ in chosen]

    def _note_use(self, name: str) -> None:
        self._recent.pop(name, None)
        self._recent[name] = None

    def _has_room(self, entry: Entry) -> bool:
        try:
            return self._room() >= size_bytes(self._versions(entry)[0][1])
        except (EduceError, OSError):
            return True  # and loading it says what is wrong

    def _check_can_fit(self, source: ModelSource) -> None:
        """Raise an error if no version of a model fits into the memory, whatever made room."""
        budget = self._settings.memory_bytes
        with suppress(ModelFileError, OSError):
            sizes = [size_bytes(path) for _, path in source.versions()]
            if budget is not None and min(sizes) > budget:
                raise _of_model(source.name, self._too_large(sizes[0], 0, budget))

    def _too_large(self, needed: int, own: int, budget: int) -> OptionError:
        beside = f" beside the {format_bytes(own)} of the version in service" if own else ""
        each = " for each worker" if self._settings.workers > 1 else ""
        return OptionError(
            f"it needs {format_bytes(needed)}{beside}, and memory_bytes is {format_bytes(budget)}{each}",
            remedy="unload the model first, or give more memory" if own else "give more memory",
        )

    def _room(self) -> float:
        if self._settings.memory_bytes is None:
            return float("inf")
        used = sum(entry.memory_bytes for entry in self._entries.values())
        self._retired = [each for each in self._retired if each.num_users]
        used += sum(each.memory_bytes for each in self._retired)
        return self._settings.memory_bytes - used

    def _drop(self, entry: Entry, reason: str) -> None:
        deployment, entry.deployment = entry.deployment, None
        entry.reason, entry.is_wanted = reason, False
        self._recent.pop(entry.source.name, None)
        if deployment is not None:
            self._retire(deployment)

    def _retire(self, deployment: Deployment) -> None:
        """Take a version out of use, whose memory counts until the last request that uses it has ended."""
        deployment.retire()
        self._retired = [each for each in (*self._retired, deployment) if each.num_users]
        self._change.set()


async def _end_of_loading(entry: Entry) -> None:
    while entry.loading is not None:
        await asyncio.wait({entry.loading})


def _look_at(loading: asyncio.Task[None]) -> None:
    """Look at what a load has raised, which nobody may be left to do."""
    if not loading.cancelled():
        loading.exception()


def _check_not_unloaded(entry: Entry) -> None:
    if entry.is_unloaded:
        raise NotReady(
            f"the model {entry.source.name!r} was unloaded", remedy="ask the server's admin to load it"
        )


async def _notice_compiling(name: str, num_missing: int) -> None:
    """Say that a model takes long because something is made for it that the store did not have."""
    await asyncio.sleep(_NOTICED_SECONDS)
    while Store.num_missing == num_missing:
        await asyncio.sleep(_LOOK_SECONDS)
    _LOG.info(_COMPILING, name)


def _of_model(name: str, error: OptionError) -> OptionError:
    """Return an error of the options, which are those of all models, with the model that it is of."""
    return OptionError(f"the model {name!r}: {error.cause}", place=error.place, remedy=error.remedy)


def _reason(version: str, error: Exception) -> str:
    """Return why a version cannot be loaded, as clients may know it; the log has more."""
    cause = error.cause if isinstance(error, EduceError) else "the server failed at it, and its log says more"
    return f"version {version} cannot be loaded: {cause}" if version else cause


def _log_fault(name: str, version: str, error: Exception) -> None:
    what = f"{name} version {version}" if version else name
    if isinstance(error, OptionError):  # which ends the server, or is told to who asked
        _LOG.debug("model %s cannot be loaded: %s", what, error)
    elif isinstance(error, EduceError):
        _LOG.warning("model %s cannot be loaded: %s", what, error)
    else:
        _LOG.error("model %s cannot be loaded", what, exc_info=error)
