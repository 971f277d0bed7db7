"""Raw input to arrays, arrays to answers: one file for each task."""

from __future__ import annotations

import importlib
from typing import Any, cast

from educe.errors import OptionError, nearest
from educe.model import Model
from educe.tasks.base import Task, TaskOptions

# Where each task lives: a task's libraries are imported when it is asked for.
_TASKS = {
    "image-classification": "image_classification:ImageClassification",
    "object-detection": "object_detection:ObjectDetection",
    "face-detection": "object_detection:FaceDetection",
    "audio-classification": "audio_classification:AudioClassification",
    "voice-activity-detection": "voice_activity:VoiceActivity",
    "text-classification": "text_classification:TextClassification",
    "file-type": "file_type:FileType",
    "tabular-classification": "tabular:TabularClassification",
    "tabular-regression": "tabular:TabularRegression",
    "tensor": "tensor:TensorTask",
}
NAMES = tuple(_TASKS)
"""The names of all tasks."""


def task_for(model: Model, name: str | None = None, options: TaskOptions | None = None) -> Task[Any]:
    """Return the task for `model`.

    Args:
        name: A task's name; the card's own if absent.
        options: What the caller asks of it.

    Raises:
        OptionError: there is no such task.
        CardError: the card lacks what the task needs.
    """
    chosen = name or model.card.task
    if chosen not in _TASKS:
        raise OptionError(f"unknown task {chosen!r}", remedy=nearest(chosen, NAMES))
    module, _, class_name = _TASKS[chosen].partition(":")
    task = getattr(importlib.import_module(f"educe.tasks.{module}"), class_name)
    return cast("Task[Any]", task(model, options or TaskOptions()))


__all__ = ["NAMES", "Task", "TaskOptions", "task_for"]
