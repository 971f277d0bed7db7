"""What goes wrong inside the tokenizers library, as a typed error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from educe.errors import EduceError


@contextmanager
def as_error(make: Callable[[str], EduceError]) -> Iterator[None]:
    """Raise what `make` makes of the cause, where the library raises or its own code panics."""
    try:
        yield
    except EduceError:
        raise
    except BaseException as fault:
        if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":
            raise
        raise make(str(fault)[:200]) from None
