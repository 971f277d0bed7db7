"""Several texts, as a caller gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from educe.errors import InputError, UserError


def listed(texts: object) -> list[str]:
    """Return texts as a list.

    Raises:
        InputError: it is one text, or something that holds none.
    """
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        found = "one text" if isinstance(texts, str) else f"a {type(texts).__name__}"
        raise InputError(f"expected a list of texts, found {found}", remedy='give a list, such as ["text"]')
    found_texts = list(texts)
    for number, text in enumerate(found_texts):
        if not isinstance(text, str):
            raise InputError(
                f"is a {type(text).__name__}, no text",
                place=f"texts[{number}]",
                remedy="give a list of str",
            )
    return found_texts


@contextmanager
def placed(number: int, count: int) -> Iterator[None]:
    """Have an error say of which of `count` texts it is, if there are others."""
    try:
        yield
    except UserError as error:
        if count > 1 and error.place is None:
            error.place = f"texts[{number}]"
        raise
