"""Several texts, as a caller gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from educe.errors import CardError, InputError, LimitError, ModelFileError, UserError, each_or_error

Result = TypeVar("Result")

# What a text can be at fault for: all of a user's errors but wrong options.
_OF_A_TEXT = (InputError, LimitError, CardError, ModelFileError)


def listed(texts: object) -> list[str]:
    """Return texts as a list.

    Raises:
        InputError: it is one text, or something that holds none.
    """
    found_texts = list(several(texts, "a list of texts"))
    for number, text in enumerate(found_texts):
        if not isinstance(text, str):
            raise InputError(
                f"is a {type(text).__name__}, no text",
                place=f"texts[{number}]",
                remedy="give a list of str",
            )
    return found_texts


def several(given: object, what: str) -> Iterable[Any]:
    """Return what holds several things, as it is.

    Args:
        given: What may hold them.
        what: What they are, for the error.

    Raises:
        InputError: it is a single thing, or none at all.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        found = "one text" if isinstance(given, str) else f"a {type(given).__name__}"
        raise InputError(f"expected {what}, found {found}", remedy='give a list, such as ["text"]')
    return given


def isolated(run: Callable[[Sequence[str]], Iterable[Result]], texts: object) -> list[Result | UserError]:
    """Return the results of texts, in their order; one that cannot be read has its error there.

    Args:
        run: Makes results of texts, or raises an error before it makes any.
        texts: The texts.

    Raises:
        InputError: `texts` is no list of texts.
        OptionError: an option is at fault, rather than a text.
    """
    found = each_or_error(run, list(several(texts, "a list of texts")), _OF_A_TEXT)
    for number, each in enumerate(found):
        if isinstance(each, UserError):
            each.place = f"texts[{number}]"
    return found


@contextmanager
def placed(number: int, count: int) -> Iterator[None]:
    """Have an error say of which of `count` texts it is, if there are others."""
    try:
        yield
    except UserError as error:
        if count > 1 and error.place is None:
            error.place = f"texts[{number}]"
        raise
