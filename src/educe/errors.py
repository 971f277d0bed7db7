"""The error tree: what went wrong, where, why, and what to do about it.

EduceError
├── UserError              the caller can mend it                 exit status 2
│   ├── OptionError        a keyword, flag or value that Educe does not take
│   ├── InputError         a picture, sound, text, table or tensor that cannot be used
│   ├── CardError          a model card that is wrong or does not fit its model
│   ├── ModelFileError     a model file that is broken
│   └── LimitError         a file that is larger than the limits allow
├── UnsupportedError       sound, but nothing here can run it      exit status 3
│   ├── UnsupportedFormatError   a file of a kind that Educe does not read
│   ├── UnsupportedModelError    a model with operators that the engine lacks
│   └── MissingLibraryError      an optional library that is not installed
└── InternalError          a fault in Educe or in an engine        exit status 4
    └── EngineError        an engine failed on a model that it accepted
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

# Of a name that is compared with others; a stranger's may be of megabytes.
_NAME_CHARACTERS = 100

Item = TypeVar("Item")
Found = TypeVar("Found")
Fault = TypeVar("Fault", bound="EduceError")


class EduceError(Exception):
    """The base of every error that Educe raises on purpose.

    Args:
        cause: What is wrong, as one sentence: what was expected and what was found.
        path: The file concerned, if there is one.
        place: Where in it: a node, a line, a field, a byte.
        remedy: What the reader can do, as one sentence.
    """

    exit_status: ClassVar[int] = 4

    def __init__(
        self,
        cause: str,
        *,
        path: str | os.PathLike[str] | None = None,
        place: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.path = None if path is None else os.fspath(path)
        self.place = place
        self.remedy = remedy

    def __reduce__(self) -> tuple[Callable[..., EduceError], tuple[object, ...], dict[str, object]]:
        # Subclasses have arguments of their own, of which the state is what counts.
        return _remade, (type(self), *self.args), self.__dict__

    @property
    def kind(self) -> str:
        """The class name, by which programs tell errors apart."""
        return type(self).__name__

    def located(self, path: str | os.PathLike[str]) -> EduceError:
        """Return this error itself, with `path` filled in if it had none."""
        if self.path is None:
            self.path = os.fspath(path)
        return self

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.path, self.place) if part)
        text = f"{where}: {self.cause}" if where else self.cause
        return f"{text} ({self.remedy})" if self.remedy else text


def _remade(kind: type[EduceError], *arguments: object) -> EduceError:
    """Return an error of a class as pickle makes it, without its state."""
    error: EduceError = kind.__new__(kind, *arguments)
    return error


class UserError(EduceError):
    """Something that the caller gave is wrong, and the caller can mend it."""

    exit_status = 2


class OptionError(UserError):
    """A keyword, flag or value that Educe does not take."""


class InputError(UserError):
    """An input that cannot be read, or does not fit the model; `too_long` if the model reads less at once."""

    def __init__(
        self,
        cause: str,
        *,
        too_long: bool = False,
        path: str | os.PathLike[str] | None = None,
        place: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(cause, path=path, place=place, remedy=remedy)
        self.too_long = too_long


class CardError(UserError):
    """A model card that is wrong, or does not fit its model."""


class ModelFileError(UserError):
    """A model file that is broken."""


class LimitError(UserError):
    """A file that is larger than the limits allow; `limit` names the one of `Limits`, if it is one."""

    def __init__(
        self,
        cause: str,
        *,
        limit: str | None = None,
        path: str | os.PathLike[str] | None = None,
        place: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(cause, path=path, place=place, remedy=remedy)
        self.limit = limit


class UnsupportedError(EduceError):
    """Sound in itself, but nothing here can run it."""

    exit_status = 3


class UnsupportedFormatError(UnsupportedError):
    """A file of a kind that Educe does not read."""


@dataclass(frozen=True)
class Problem:
    """One node that cannot be run, and why."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.operator}): {self.reason}"


class UnsupportedModelError(UnsupportedError):
    """A model with operators that the engine lacks; `problems` lists every such node."""

    MAX_SHOWN: ClassVar[int] = 5

    def __init__(
        self,
        cause: str,
        *,
        problems: Sequence[Problem] = (),
        path: str | os.PathLike[str] | None = None,
        place: str | None = None,
        remedy: str | None = None,
    ) -> None:
        shown = "; ".join(str(problem) for problem in problems[: self.MAX_SHOWN])
        hidden = len(problems) - self.MAX_SHOWN
        nodes = f"{shown}; and {hidden} more" if hidden > 0 else shown
        super().__init__(cause, path=path, place=nodes or place, remedy=remedy)
        self.problems = tuple(problems)


class MissingLibraryError(UnsupportedError):
    """An optional library that is not installed; the remedy names the extra that brings it, if one does."""

    def __init__(self, library: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the Python package {library!r}, which is not installed",
            remedy=f"pip install 'educe[{extra}]'" if extra else f"pip install {library}",
        )


class InternalError(EduceError):
    """A fault in Educe or in an engine: worth a report."""


class EngineError(InternalError):
    """An engine failed on a model that it had accepted."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a remedy that names the known name closest to `name`, or lists them all."""
    names = sorted(known)
    matches = difflib.get_close_matches(str(name)[:_NAME_CHARACTERS], names, n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(names)}"


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str], place: str | None = None) -> None:
    """Raise `OptionError` for the first of `given` that is not among `known`."""
    names = list(known)
    for name in given:
        if name not in names:
            raise OptionError(f"unknown {what} {name!r}", place=place, remedy=nearest(name, names))


def each_or_error(
    run: Callable[[Sequence[Item]], Iterable[Found]],
    items: Sequence[Item],
    kinds: type[Fault] | tuple[type[Fault], ...],
) -> list[Found | Fault]:
    """Return what a run of items at once makes of each, in their order; the error of one that is at fault.

    One bad item must not cost its neighbours their results: where a run fails, each half is run by itself.

    Args:
        run: Makes a result of each item, or raises an error.
        items: The items.
        kinds: The errors that an item can be at fault for; others are raised.
    """
    try:
        return [*run(items)]
    except kinds as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return [*each_or_error(run, items[:middle], kinds), *each_or_error(run, items[middle:], kinds)]
