"""Several texts, as a caller gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from educe.errors import InputError, OptionError, UserError

Result = TypeVar("Result")


def listed(texts: object) -> list[str]:
    """Return texts as a list.

    Raises:
        InputError: it is one text, or something that holds none.
    """
    found_texts = _listed(texts)
    for number, text in enumerate(found_texts):
        if not isinstance(text, str):
            raise InputError(
                f"is a {type(text).__name__}, no text",
                place=f"texts[{number}]",
                remedy="give a list of str",
            )
    return found_texts


def _listed(texts: object) -> list[Any]:
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        found = "one text" if isinstance(texts, str) else f"a {type(texts).__name__}"
        raise InputError(f"expected a list of texts, found {found}", remedy='give a list, such as ["text"]')
    return list(texts)


def isolated(run: Callable[[list[str]], Iterable[Result]], texts: object) -> list[Result | UserError]:
    """Return the results of texts, in their order; one that cannot be read has its error there.

    Which texts these are is found by halving.

    Args:
        run: Makes results of texts, or raises an error before it makes any.
        texts: The texts.

    Raises:
        InputError: `texts` is no list of texts.
        OptionError: an option is at fault, rather than a text.
    """
    found_texts = _listed(texts)
    found: dict[int, Result | UserError] = {}
    waiting: list[Sequence[int]] = [range(len(found_texts))]
    while waiting:
        part = waiting.pop()
        try:
            found.update(zip(part, run([found_texts[number] for number in part]), strict=True))
        except OptionError:
            raise
        except UserError as error:
            if len(part) == 1:
                error.place = f"texts[{part[0]}]"
                found[part[0]] = error
            else:
                middle = len(part) // 2
                waiting += [part[:middle], part[middle:]]
    return [found[number] for number in range(len(found_texts))]


@contextmanager
def placed(number: int, count: int) -> Iterator[None]:
    """Have an error say of which of `count` texts it is, if there are others."""
    try:
        yield
    except UserError as error:
        if count > 1 and error.place is None:
            error.place = f"texts[{number}]"
        raise
