"""What the supervisor and its workers say to each other, beside log entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from educe.errors import EduceError
from educe.serve.description import Description
from educe.serve.opening import ModelSource
from educe.serve.settings import ServerSettings
from educe.serve.snapshot import Snapshot

Action: TypeAlias = Literal["load", "unload"]


@dataclass(frozen=True)
class Beginning:
    """What a worker is told first."""

    index: int
    sources: tuple[ModelSource, ...]
    settings: ServerSettings
    log_level: int


@dataclass(frozen=True)
class Join:
    """A worker asks what the others serve, and is asked what all are asked from now on."""


@dataclass(frozen=True)
class Joined:
    """What the others serve: which models were unloaded, and what is in service of the rest."""

    unloaded: tuple[str, ...]
    in_service: tuple[Description, ...]


@dataclass(frozen=True)
class InService:
    """A version was put in service: by a worker, and from the supervisor for those that have none."""

    description: Description


@dataclass(frozen=True)
class Started:
    """A worker has loaded what it can."""


@dataclass(frozen=True)
class Failed:
    """A worker cannot go on."""

    error: EduceError


@dataclass(frozen=True)
class Readiness:
    """Whether all models answer: of a worker, and from the supervisor of all of them."""

    is_ready: bool


@dataclass(frozen=True)
class Apply:
    """What is to be done with a model: by all, and from the supervisor by one."""

    action: Action
    model: str


@dataclass(frozen=True)
class Live:
    """A worker is asked whether it lives: whether it answers, and no run of a model hangs."""


@dataclass(frozen=True)
class Look:
    """The numbers are asked for; a worker that asks for those of all brings its own."""

    own: Snapshot | None = None


@dataclass(frozen=True)
class End:
    """The server ends, or ends at once."""

    is_hurried: bool
