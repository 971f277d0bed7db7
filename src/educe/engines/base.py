"""The contract of an engine: it compiles a `Model` to an `Executable`; a `State` is one stream's memory.

An `Executable` is immutable and may be shared between threads. A `State` belongs to one stream and must
not be used by two threads at once. `run` never modifies the arrays it is given, and the arrays it
returns belong to the caller.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from educe.errors import (
    CardError,
    EngineError,
    InputError,
    OptionError,
    Problem,
    nearest,
    refuse_unknown,
)
from educe.model import MapType, Model, OptionalType, SequenceType, TensorType, ValueType

Value: TypeAlias = Any
"""A NumPy array; or a list, a dict or None for sequences, maps and optionals."""

Launch: TypeAlias = Callable[[dict[str, Value]], Sequence[Value]]
"""What an engine compiles a model to: all inputs by name, to all outputs in order."""


@dataclass(frozen=True)
class Options:
    """How a model is compiled.

    Attributes:
        threads: Threads that one run may use; one per usable core if absent.
        graph_optimization: How much the engine may rewrite the graph.
        memory_arena: Whether memory is kept between runs rather than returned.
    """

    threads: int | None = None
    graph_optimization: Literal["none", "basic", "extended", "all"] = "all"
    memory_arena: bool = True

    @classmethod
    def of(cls, **values: Any) -> Options:
        """Return options with `values`; `OptionError` names an unknown option or a value it does not take."""
        refuse_unknown("compile option", values, OPTION_NAMES)
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as fault:
            reason, _, name = str(fault).partition(" - at `$.")
            name = name.rstrip("`")
            raise OptionError(f"compile option {name}={values.get(name)!r}: {reason}") from None


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(Options))
"""The names of all compile options."""


@dataclass(frozen=True)
class Support:
    """Whether an engine can run a model: true, or false with every node that it cannot run."""

    problems: tuple[Problem, ...] = ()

    def __bool__(self) -> bool:
        return not self.problems


class State:
    """The memory of one stream through a recurrent model: what the last step left for the next.

    Attributes:
        values: The array fed to each state input at the next step, by input name.
    """

    __slots__ = ("values",)

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values


class Executable:
    """A model compiled by one engine: immutable, thread-safe.

    Attributes:
        engine: The name of the engine.
        signature: Names and types of inputs and outputs, those that carry state included.
        state: Each state input, with the output that feeds it at the next step.
    """

    __slots__ = ("_inputs", "_launch", "_output_names", "engine", "signature", "state")

    def __init__(self, engine: str, model: Model, launch: Launch) -> None:
        self.engine = engine
        self.signature = model.signature
        self.state = dict(model.card.state)
        self._launch = launch
        self._output_names = tuple(model.signature.outputs)
        self._inputs = tuple((name, _plain(value), value) for name, value in model.signature.inputs.items())

    def run(self, inputs: Mapping[str, Value], state: State | None = None) -> dict[str, Value]:
        """Run the model once.

        Args:
            inputs: An array for every input, by name; those that carry state only when `state` is absent.
            state: The stream's memory. It is fed to the state inputs, and replaced by what the run left.

        Returns:
            An array for every output, by name; with a `state`, those that feed it are left out.

        Raises:
            InputError: an input is missing, unknown, or of the wrong type or shape.
            EngineError: the engine failed.
        """
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            raise InputError(
                f"the inputs are a {type(inputs).__name__}",
                remedy="give a dict: each array by its input's name",
            )
        feeds = dict(inputs) if state is None else self._with_state(inputs, state)
        self._check(feeds)
        outputs = dict(zip(self._output_names, self._launch(feeds), strict=True))
        if state is not None:
            state.values = {name: outputs[source] for name, source in self.state.items()}
            for source in set(self.state.values()):
                del outputs[source]
        return outputs

    def prepare(self, feeds: Mapping[str, Value]) -> None:
        """Make what a run of inputs of these shapes needs, as far as it is known without a run.

        Raises:
            EngineError: it cannot be made.
        """

    def compile_seconds(self) -> float:
        """Return how long this thread's runs so far have compiled, which some do for sizes new to them."""
        return 0.0

    @property
    def most_runs(self) -> int:
        """How many runs beside each other, in as many threads, end sooner than one after the other."""
        return 1

    def crowd(self, by: int) -> None:
        """Take note of so many more, or fewer, threads beside one in which run follows run."""

    def new_state(self, batch: int = 1) -> State:
        """Return the memory of a new stream: zeros, with the unknown size of a state taken as `batch`.

        Raises:
            CardError: a state has several unknown sizes, so that which is the batch cannot be told.
        """
        values = {}
        for name in self.state:
            value = self.signature.inputs[name]
            if not isinstance(value, TensorType) or value.shape is None:
                raise EngineError(f"the state input {name!r} is {value}, whose shape is not known")
            if sum(not isinstance(dim, int) for dim in value.shape) > 1:
                raise CardError(
                    f"the state input {name!r} is {value}: which of its unknown sizes is the batch?",
                    remedy="export the model with fixed sizes but for the batch",
                )
            shape = [dim if isinstance(dim, int) else batch for dim in value.shape]
            values[name] = np.zeros(shape, value.numpy_dtype)
        return State(values)

    def _with_state(self, inputs: Mapping[str, Value], state: State) -> dict[str, Value]:
        for name in state.values:
            if name in inputs:
                raise InputError(
                    f"input {name!r} carries state, and a state is given as well",
                    remedy="give the one or the other",
                )
        return {**inputs, **state.values}

    def _check(self, feeds: dict[str, Value]) -> None:
        for name, plain, expected in self._inputs:
            if name not in feeds:
                strange = next((repr(each) for each in feeds if each not in self.signature.inputs), "")
                raise InputError(
                    f"input {name!r} is missing"
                    + (f", and the model has no {strange[:100]}" if strange else ""),
                    remedy=f"give {name}: {expected}",
                )
            value = feeds[name]
            if plain is None or type(value) is not np.ndarray:
                feeds[name] = _fitted(value, expected, f"input {name!r}")
                continue
            mismatch = plain.mismatch(value)
            if mismatch:
                raise InputError(
                    mismatch, place=f"input {name!r}", remedy=f"the model takes {self.signature}"
                )
        if len(feeds) > len(self._inputs):
            known = self.signature.inputs
            unknown = next(name for name in feeds if name not in known)
            raise InputError(f"the model has no input {unknown!r}", remedy=nearest(unknown, known))

    def __repr__(self) -> str:
        return f"<Executable {self.engine} {self.signature}>"


def _plain(value: ValueType) -> TensorType | None:
    """Return `value` if it is a tensor of numbers, which needs no more than `TensorType.mismatch`."""
    return value if isinstance(value, TensorType) and value.dtype != "str" else None


def _fitted(value: Value, expected: ValueType, place: str) -> Value:
    """Return `value` as engines take it: lists for sequences, arrays of `str` objects for text."""
    if isinstance(expected, OptionalType):
        return None if value is None else _fitted(value, expected.element, place)
    if isinstance(expected, SequenceType):
        if not isinstance(value, list | tuple):
            raise _wrong_kind(value, expected, place, "give a list of arrays")
        items = enumerate(value)
        return [_fitted(item, expected.element, f"{place}, item {index}") for index, item in items]
    if isinstance(expected, MapType):
        if not isinstance(value, Mapping):
            raise _wrong_kind(value, expected, place, "give a dict")
        return dict(value)
    if not isinstance(value, np.ndarray):
        remedy = f"numpy.asarray(value, numpy.dtype({str(expected.numpy_dtype)!r})) gives an array"
        raise _wrong_kind(value, expected, place, remedy)
    mismatch = expected.mismatch(value)
    if mismatch:
        raise InputError(mismatch, place=place)
    return _text(value, place) if expected.dtype == "str" else value


def _text(array: np.ndarray, place: str) -> np.ndarray:
    text = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        if isinstance(item, bytes):
            try:
                item = item.decode()
            except UnicodeDecodeError as fault:
                raise InputError(f"holds bytes that are not UTF-8: {fault.reason}", place=place) from None
        if not isinstance(item, str):
            raise InputError(f"expected text, found a {type(item).__name__} at {list(index)}", place=place)
        text[index] = str(item)
    return text


def _wrong_kind(value: Value, expected: ValueType, place: str, remedy: str) -> InputError:
    return InputError(f"expected {expected}, found a {type(value).__name__}", place=place, remedy=remedy)


class Engine(ABC):
    """Something that compiles and runs models."""

    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str | None:
        """Return the version of the engine's library, or None if it is not installed."""

    @abstractmethod
    def devices(self) -> list[str]:
        """Return the devices the engine can use here, as the engine names them."""

    @abstractmethod
    def supports(self, model: Model) -> Support:
        """Say whether this engine can run `model`, and if not, which nodes keep it from it."""

    @abstractmethod
    def compile(self, model: Model, options: Options) -> Executable:
        """Compile `model`, which is not modified.

        Raises:
            UnsupportedModelError: the engine lacks an operator; the error lists the nodes.
            MissingLibraryError: the engine's library is not installed.
        """


def owned(value: Value) -> Value:
    """Return `value` in memory of its own: it may be an input, a weight, or another output."""
    if isinstance(value, list):
        return [owned(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return value.astype(object)
    return np.array(value) if isinstance(value, np.ndarray | np.generic) else value


def check_state(model: Model) -> None:
    """Raise `CardError` unless the card's state names inputs and outputs that fit each other."""
    for name, source in model.card.state.items():
        given, left = model.signature.inputs.get(name), model.signature.outputs.get(source)
        if not isinstance(given, TensorType) or not isinstance(left, TensorType) or given.dtype != left.dtype:
            raise CardError(
                f"the card says that input {name!r} ({given}) is fed by output {source!r} ({left})",
                path=model.card_origin.source,
                remedy=f"the model's signature is {model.signature}",
            )
