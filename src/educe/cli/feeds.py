"""What a model is fed outside of its task: the arrays of real inputs, or random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from educe.cli.inputs import expand_inputs
from educe.errors import EduceError, InputError
from educe.limits import DEFAULT_LIMITS
from educe.model import Model
from educe.tasks import Task, TaskOptions, task_for
from educe.tasks.base import Item
from educe.tasks.predictor import Named


def feeds_of(model: Model, data: list[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield arrays for every input of `model`, by name: those of `data`, one item each, or random numbers."""
    from educe.bench.feeds import random_feeds

    if not data:
        yield "random numbers", random_feeds(model)
        return
    task = task_for(model, None, TaskOptions())
    sources, failures = expand_inputs(data, task, DEFAULT_LIMITS)
    for error in failures:
        raise error
    constants, random = task.constants(), random_feeds(model)
    states = {name: random[name] for name in model.card.state}
    for source in sources:
        content, name = (source.source, source.name) if isinstance(source, Named) else (source, str(source))
        for item in _items(task, content, name):
            feeds = task.preprocess([item])
            if task.stepwise:
                feeds = {key: array[len(array) // 2] for key, array in feeds.items()}
            place = "" if item.row is None else f" row {item.row}"
            yield f"{name}{place}", {**feeds, **constants, **states}


def _items(task: Task[Any], content: Any, name: str) -> Iterator[Item[Any]]:
    """Yield what `content` holds.

    Raises:
        EduceError: it cannot be read.
    """
    try:
        yield from task.open(content)
    except EduceError as error:
        raise error.located(name) from None
    except OSError as fault:
        cause = f"cannot be read: {fault.strerror or fault}"
        raise InputError(cause, path=name, remedy="check the disk") from None
