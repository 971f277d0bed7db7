"""`Closing`: what gives its memory back when it is closed, or at the end of a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from educe.errors import OptionError
from educe.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self


class Closing:
    """A model that runs until it is closed, as its subclasses do.

    Attributes:
        checkpoint: The model.
    """

    checkpoint: Checkpoint
    _held: tuple[str, ...]
    """The attributes that hold weights and caches."""
    _is_closed = False

    def close(self) -> None:
        """Return the memory; it is of no use afterwards."""
        self._is_closed = True
        for name in self._held:
            self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.checkpoint.model_type} {self.checkpoint.path}>"

    def _check_open(self) -> None:
        if self._is_closed:
            raise OptionError(f"the {type(self).__name__.lower()} is closed", remedy="make another")
