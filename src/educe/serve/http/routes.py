"""`Route` and `Router`: what the server answers, each route with all that is known of it, in one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import msgspec

from educe.serve.access import Access
from educe.serve.faults import MethodNotAllowed, NotFound, Refusal
from educe.serve.http.exchange import Request, Response
from educe.serve.http.v2_types import V2Error

_ALL_ROUTES = "/openapi.json lists all"
# Of longer ones the comparison with routes would take too long.
_LONGEST_PATH = 100

Handle: TypeAlias = "Callable[[Request], Awaitable[Response]]"


_MOST_KNOWN = 1000


@dataclass(frozen=True)
class Family:
    """Routes whose errors have one form.

    Attributes:
        error: The type of an error's body.
        body_of: Returns such a body for a refusal.
    """

    error: type
    body_of: Callable[[Refusal], Any]


OPEN_INFERENCE = Family(V2Error, lambda refused: V2Error(str(refused)))
"""The errors of the Open Inference Protocol, which all routes have that belong to nothing else."""


@dataclass(frozen=True)
class Content:
    """A body that is no JSON and yet of a type, such as a form.

    Attributes:
        media_type: Its media type.
        kind: Its type.
    """

    media_type: str
    kind: Any


@dataclass(frozen=True)
class Route:
    """Something that the server answers.

    Attributes:
        method: The method.
        path: The path, names in braces standing for one segment each.
        handle: What answers.
        summary: What it is, as one sentence.
        takes: The type of the body if it is JSON, a `Content`, a media type, or a tuple of these; None for no
            body.
        gives: The same of the answer.
        queries: The type whose fields what follows the question mark may name; None where it is not read.
        access: Who may ask.
        family: In whose form errors are answered.
        statuses: Statuses of answers that are none of the errors that all routes have.
    """

    method: str
    path: str
    handle: Handle
    summary: str
    takes: Any = None
    gives: Any = None
    queries: type[msgspec.Struct] | None = None
    access: Access = "key"
    family: Family = OPEN_INFERENCE
    statuses: tuple[int, ...] = (200,)


class Router:
    """Finds the route of a request.

    Args:
        routes: All routes.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._static: dict[str, dict[str, Route]] = {}
        self._tree: dict[str, Any] = {}
        self._known: dict[tuple[str, str], tuple[Route, dict[str, str]]] = {}
        self._families = {route.path.split("/")[1]: route.family for route in self.routes}
        self._paths = sorted({route.path for route in self.routes})
        for route in self.routes:
            if "{" not in route.path:
                self._static.setdefault(route.path, {})[route.method] = route
                continue
            node = self._tree
            for segment in route.path.split("/")[1:]:
                node = node.setdefault("*" if segment.startswith("{") else segment, {})
            node.setdefault("", {})[route.method] = route

    def family(self, path: str) -> Family:
        """Return the family of the routes that begin as a path does, whether there is one of it or not."""
        return self._families.get(path.split("/")[1] if path.startswith("/") else "", OPEN_INFERENCE)

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route of a request, with what its path has in the places of names.

        A slash at a path's end makes no difference.

        Raises:
            NotFound: there is none.
            MethodNotAllowed: there are only such of other methods.
        """
        if len(path) > _LONGEST_PATH:  # not to be remembered
            return self._find(method, path)
        known = self._known.get((method, path))
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[method, path] = self._find(method, path)
        return known

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        values: tuple[str, ...] = ()
        found = self._static.get(path) or self._static.get(path.removesuffix("/"))
        if found is None:
            found, values = self._walk(path.removesuffix("/"))
        route = found.get(method) or (found.get("GET") if method == "HEAD" else None)
        if route is None:
            raise MethodNotAllowed(tuple(sorted(found)))
        if not values:
            return route, {}
        names = [segment[1:-1] for segment in route.path.split("/") if segment.startswith("{")]
        return route, dict(zip(names, values, strict=True))

    def _walk(self, path: str) -> tuple[dict[str, Route], tuple[str, ...]]:
        node: dict[str, Any] = self._tree
        values: list[str] = []
        for segment in path.split("/")[1:]:
            following = node.get(segment) if segment not in ("*", "") else None
            if following is None:
                following = node.get("*")
                values.append(segment)
            if following is None or not segment:
                raise self._not_found(path)
            node = following
        routes: dict[str, Route] | None = node.get("")
        if routes is None:
            raise self._not_found(path)
        return routes, tuple(values)

    def _not_found(self, path: str) -> NotFound:
        near = get_close_matches(path[:_LONGEST_PATH], self._paths, n=1)
        return NotFound(
            "there is no such route",
            remedy=" ".join([f"did you mean {each}?" for each in near] + [_ALL_ROUTES]),
        )
