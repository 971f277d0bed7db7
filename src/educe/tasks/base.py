"""The contract of a task: raw input to arrays, arrays to an answer; no engine is involved.

A task is immutable and may be shared between threads. The life of an input::

    open(source) -> Items -> preprocess(items) -> feeds -> [the engine] -> outputs -> postprocess -> findings
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from educe.errors import CardError, OptionError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model import Model, TensorType
from educe.tasks.answer import Prediction

if TYPE_CHECKING:
    from typing_extensions import Self

Feeds = dict[str, Any]
Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class TaskOptions:
    """What a caller may ask of any task.

    Attributes:
        top: Most predictions in an answer, best first; the task's own default if absent.
        threshold: Lowest score of a prediction; the card's own if absent.
        limits: The bounds on input files.

    Raises:
        OptionError: `top` is no positive integer, or `threshold` not within 0 and 1.
    """

    top: int | None = None
    threshold: float | None = None
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        top, threshold = self.top, self.threshold
        if top is not None and (not isinstance(top, int) or top < 1):
            raise OptionError(f"top={top!r} is not a positive integer", remedy="use 1 or more")
        if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
            raise OptionError(
                f"threshold={threshold!r} is not within 0 and 1", remedy="use a score such as 0.5"
            )


_TOP_CLASSES = 5

ContentT = TypeVar("ContentT")


@dataclass(frozen=True)
class Item(Generic[ContentT]):
    """One thing to answer about: a picture, a frame of a video, a sound, a text, a row of a table.

    Attributes:
        content: What `preprocess` takes.
        frame: Position in a video, from 0.
        row: Position in a table or in a file of lines, from 0.
        time_seconds: Time in a video.
        memory: What `postprocess` needs to remember of the preprocessing, such as the scale of a picture.
    """

    content: ContentT
    frame: int | None = None
    row: int | None = None
    time_seconds: float | None = None
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What the outputs say about one item.

    Attributes:
        predictions: Best first.
        outputs: For raw tensors: the output arrays themselves, by name.
    """

    predictions: list[Prediction] = field(default_factory=list)
    outputs: dict[str, np.ndarray] | None = None


class Task(ABC, Generic[ContentT]):
    """What a model is for: turns raw input into its tensors, and its tensors into findings.

    Attributes:
        name: The task's name in cards, answers and on the command line.
        default_batch: How many items are run at once where the model lets the batch vary.
        suffixes: The file names that the task takes out of a folder; all if absent. A file that is named
            itself is judged by its content alone.
        takes_video: Whether a source can be a video, of which each frame is an item.
        takes_stream: Whether a source can be an open binary file, which is read as it is needed.
        takes_text: Whether a `str` is the content itself, where other tasks take the name of a file.
        largest_batch: Most items that may be run at once without one changing another's answer.
        stepwise: Whether the feeds of one item have a leading axis of time steps, which the predictor runs
            one after the other through a state, stacking the outputs.
        feeds_are_rows: Whether the first axis of every feed counts things that the model treats alike, so
            that they may be run in several parts.
    """

    name: ClassVar[str]
    default_batch: ClassVar[int] = 1
    suffixes: ClassVar[frozenset[str] | None] = None
    takes_video: ClassVar[bool] = False
    takes_stream: ClassVar[bool] = False
    stepwise: ClassVar[bool] = False
    feeds_are_rows: ClassVar[bool] = True
    takes_text: ClassVar[bool] = False
    largest_batch: int | None = None

    def __init__(self, model: Model, options: TaskOptions) -> None:
        self.model = model
        self.card = model.card
        self.options = options

    def with_options(self, options: TaskOptions) -> Self:
        """Return the same task with other options, which only say what becomes of outputs."""
        changed = copy.copy(self)
        changed.options = options
        return changed

    @abstractmethod
    def open(self, source: Any) -> Iterator[Item[ContentT]]:
        """Yield the items in `source`: a path, bytes, or an object that the task names in its docstring.

        Raises:
            InputError: the source cannot be read; raised while iterating, too.
        """

    @abstractmethod
    def preprocess(self, items: Sequence[Item[ContentT]]) -> Feeds:
        """Return the input arrays for `items`, stacked along the first axis, by input name."""

    @abstractmethod
    def postprocess(self, outputs: Outputs, items: Sequence[Item[ContentT]]) -> list[Findings]:
        """Return the findings for each of `items`, in their order."""

    @property
    def top_classes(self) -> int:
        """Most classes in an answer."""
        return _TOP_CLASSES if self.options.top is None else self.options.top

    def tensor_input(self, name: str | None) -> tuple[str, TensorType]:
        """Return the name and type of the graph input that takes the content.

        Args:
            name: The name that the card gives; if absent, the only input that is no state and no constant.

        Raises:
            CardError: there is no such input, or several could be meant.
        """
        inputs = self.model.signature.inputs
        if name is None:
            free = [key for key in inputs if key not in self.card.state and key not in self.card.constants]
            if len(free) != 1:
                raise self.card_error(
                    f"the model has {len(free)} inputs that the card does not settle: {', '.join(free)}",
                    'say which one takes the content, with input = "..."',
                )
            name = free[0]
        value = inputs.get(name)
        if not isinstance(value, TensorType):
            raise self.card_error(
                f"the model has no tensor input {name!r}", f"it takes {self.model.signature}"
            )
        return name, value

    def tensor_output(self, name: str | None, position: int = 0) -> str:
        """Return `name`, or the output at `position` if it is absent; either must hold numbers.

        Raises:
            CardError: there is no such output, or it is text, a sequence or a map.
        """
        chosen = self.graph_output(name, position)
        kind = self.model.signature.outputs[chosen]
        if not isinstance(kind, TensorType) or kind.dtype == "str":
            raise self.card_error(f"the output {chosen!r} is {kind}, not numbers", "name another output")
        return chosen

    def graph_output(self, name: str | None, position: int = 0) -> str:
        """Return `name`, or the output at `position`, those of states left out, if it is absent.

        Raises:
            CardError: there is no such output.
        """
        outputs = [key for key in self.model.signature.outputs if key not in self.card.state.values()]
        if name is None and position < len(outputs):
            return outputs[position]
        if name is None or name not in self.model.signature.outputs:
            raise self.card_error(f"the model has no output {name!r}", f"it gives {', '.join(outputs)}")
        return name

    def constants(self) -> Feeds:
        """Return the arrays of the card's constant inputs."""
        feeds: Feeds = {}
        for name, number in self.card.constants.items():
            value = self.model.signature.inputs.get(name)
            if not isinstance(value, TensorType):
                raise self.card_error(f"the model has no input {name!r}", f"it takes {self.model.signature}")
            shape = [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
            feeds[name] = np.full(shape, number, value.numpy_dtype)
        return feeds

    def card_error(self, cause: str, remedy: str) -> CardError:
        """Return an error that says the card is at fault, and where it came from."""
        return CardError(
            f"{cause} (card: {self.model.card_origin.source})", path=self.model.path, remedy=remedy
        )
