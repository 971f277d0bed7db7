"""`Entry` and `Deployment`: a model that a server knows, and a version of it that is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Literal

from educe.generate.generator import Generator
from educe.serve.cache import ModelCache
from educe.serve.collecting import note_dropped
from educe.serve.deadline import as_fault
from educe.serve.description import Description
from educe.serve.lane import Lane
from educe.serve.observation import note_model
from educe.serve.opening import ModelSource
from educe.serve.served import LanguageModelServed, Served
from educe.serve.statistics import ModelStatistics

State = Literal["UNAVAILABLE", "LOADING", "READY"]


@dataclass(eq=False)
class Deployment:
    """A model that is loaded, in one version. A request holds it with ``with`` while it uses it.

    Attributes:
        description: What it is.
        served: The model.
        lane: The way of requests to it; None if it plans its own runs.
        memory_bytes: What it counts against the budget.
        statistics: What it has done, in other versions, too.
        cache: Where its answers are kept; None if they are not.
        num_users: Requests that use it now, and runs that nobody waits for any more.
        when_free: Called when no request uses it after it was taken out of use.
    """

    description: Description
    served: Served
    lane: Lane | None
    memory_bytes: int
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    cache: ModelCache | None = None
    num_users: int = 0
    when_free: Callable[[], object] = lambda: None
    is_retired: bool = False

    def __enter__(self) -> Deployment:
        self.num_users += 1
        note_model(self.name, self.version, self.statistics)
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        if fault is not None:
            self.statistics.failed(as_fault(fault))
        lane = self.lane if isinstance(fault, asyncio.CancelledError) else None
        runs = None if lane is None else lane.end_of_runs()
        if runs is not None:
            runs.add_done_callback(lambda ended: self._leave())
        else:
            self._leave()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.description.name

    @property
    def version(self) -> str:
        """The version."""
        return self.description.version

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
            self.when_free()
            Thread(target=self._close_served, name="educe-close").start()
        else:
            self.num_users += 1
            Thread(
                target=self._close_after_step, args=(asyncio.get_running_loop(),), name="educe-close"
            ).start()

    def _close_served(self) -> None:
        self.served.close()
        note_dropped()

    def _close_after_step(self, loop: asyncio.AbstractEventLoop) -> None:
        self._close_served()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._leave)


@dataclass(eq=False)
class Entry:
    """A model that the server knows.

    One version of a model is in service, from when it was first loaded until the model is unloaded, or
    loaded by request in a newer one. It is what comes back when it has made room for another model.

    Attributes:
        source: Where it is.
        reason: Why it is not, or not in its newest version.
        description: What is in service, loaded or not; None if nothing is.
        deployment: What answers now.
        is_wanted: Whether it is to be ready: not if it was unloaded, or made room for another.
        is_unloaded: Whether it was unloaded on purpose, and waits until it is loaded so.
        statistics: What it has done, in all versions.
        loading: What loads it now, for all who wait for it; it goes on when they have gone.
        is_replacing: Whether what loads it now looks for a newer version than the one in service.
        loading_bytes: The memory that is kept for it while it is loaded.
        num_waiting: Requests that wait until it is loaded.
    """

    source: ModelSource
    reason: str = ""
    description: Description | None = None
    deployment: Deployment | None = None
    is_wanted: bool = True
    is_unloaded: bool = False
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    loading: asyncio.Task[None] | None = None
    is_replacing: bool = False
    loading_bytes: int = 0
    num_waiting: int = 0

    @property
    def version(self) -> str:
        """The version in service; empty if there is none."""
        return "" if self.description is None else self.description.version

    @property
    def state(self) -> State:
        """Whether it is loaded."""
        if self.deployment is not None:
            return "READY"
        return "UNAVAILABLE" if self.loading is None else "LOADING"

    @property
    def is_ready(self) -> bool:
        """Whether it answers at once, or comes back by itself when it is asked."""
        return self.deployment is not None or not (self.is_wanted or self.is_unloaded)

    @property
    def memory_bytes(self) -> int:
        """What it counts against the budget."""
        return self.loading_bytes + (0 if self.deployment is None else self.deployment.memory_bytes)
