"""Which door of the package opens a language model: by the name of its architecture."""

from __future__ import annotations

from dataclasses import dataclass

from educe.errors import UnsupportedModelError
from educe.generate.architectures.bert import ENCODERS
from educe.generate.runners import RUNNERS, SOURCE_RUNNERS
from educe.model.checkpoint import Checkpoint

_HEARS = "whisper"


@dataclass(frozen=True)
class Door:
    """A function of `educe` that opens models of some types.

    Attributes:
        name: The function's name.
        commands: The commands that run these models.
        model_types: Their architectures, as Hugging Face names them.
    """

    name: str
    commands: tuple[str, ...]
    model_types: frozenset[str]


DOORS = (
    Door(
        "generator",
        ("generate", "chat", "score", "perplexity"),
        frozenset(RUNNERS),
    ),
    Door("translator", ("translate",), frozenset(SOURCE_RUNNERS) - {_HEARS}),
    Door("transcriber", ("transcribe",), frozenset([_HEARS])),
    Door("embedder", ("embed",), frozenset(ENCODERS)),
)


def door_of(checkpoint: Checkpoint) -> Door | None:
    """Return the door of a model; None if none opens it."""
    return next((door for door in DOORS if checkpoint.model_type in door.model_types), None)


def check_door(checkpoint: Checkpoint, name: str) -> None:
    """Check that no other door than `name` opens a model.

    Raises:
        UnsupportedModelError: another one does; the error names it.
    """
    door = door_of(checkpoint)
    if door is not None and door.name != name:
        raise UnsupportedModelError(
            f"models of the type {checkpoint.model_type!r} are not for educe.{name}",
            path=checkpoint.path,
            remedy=f"open it with educe.{door.name}, or on the command line with educe {door.commands[0]}",
        )
