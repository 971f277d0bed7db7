"""What a model is fed outside of its task: the arrays of real inputs, or random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from educe.cli.inputs import expand_inputs
from educe.limits import DEFAULT_LIMITS
from educe.model import Model
from educe.tasks import TaskOptions, task_for
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
        content = source.source if isinstance(source, Named) else source
        for item in task.open(content):
            feeds = task.preprocess([item])
            if task.stepwise:
                feeds = {name: array[len(array) // 2] for name, array in feeds.items()}
            place = "" if item.row is None else f" row {item.row}"
            name = source.name if isinstance(source, Named) else str(source)
            yield f"{name}{place}", {**feeds, **constants, **states}
