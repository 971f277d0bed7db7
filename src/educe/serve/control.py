"""`Control`: what loads and unloads models in all of a server."""

from __future__ import annotations

from typing import Protocol


class Control(Protocol):
    """A server's models, in all of its processes: of one its `Repository`, of several a `Worker` in each."""

    @property
    def are_ready(self) -> bool:
        """Whether all models answer, but those that were unloaded on purpose."""
        ...

    async def load(self, name: str) -> None:
        """Load a model, or its newest version in place of the one in service.

        Raises:
            NotFound: there is no such model.
            BadRequest: it cannot be loaded; the version in service stays so.
        """

    async def unload(self, name: str) -> None:
        """Take a model out of use; requests that use it end first.

        Raises:
            NotFound: there is no such model.
        """
