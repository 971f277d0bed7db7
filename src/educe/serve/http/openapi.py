"""The OpenAPI document: what the server answers, told from the routes and from the types that validate.

Source: the OpenAPI Specification 3.1, https://spec.openapis.org/oas/v3.1.1.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from http import HTTPStatus
from types import UnionType
from typing import Any, TypeAlias, get_args

import msgspec
import numpy as np

from educe import __version__
from educe.serve.http.exchange import Request, Response, encode
from educe.serve.http.routes import Content, Route
from educe.serve.http.v2_types import V2Error
from educe.serve.settings import ServerSettings
from educe.tasks.answer import TensorSummary

_JSON = "application/json"
_FORM = "multipart/form-data"
_SCHEMAS = "#/components/schemas/{name}"
_MODEL_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_BY_CONNECTION = (408, 431)
_ALWAYS = (400, 403, 408, 421, 431, 500, 503, 504)
_OF_BODIES = (413, 415)
_OF_MODELS = (404, 422, 501)
_FILE: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
_BYTES = {"type": "string", "contentEncoding": "base64"}
_TIMEOUT: dict[str, Any] = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Within how many milliseconds the answer is of use.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
_DESCRIPTION = """Machine-learning models of any kind, behind the Open Inference Protocol and the OpenAI API.

Every answer has an X-Request-Id, that of the request if it has one. Where keys are set, all but the
probes demand one; a browser may send it as its password for the page's own files. Bodies may be
compressed with gzip or deflate. With a header Inference-Header-Content-Length, tensors may lie behind the
JSON of an inference, as bytes."""

Json: TypeAlias = "dict[str, Any]"


class OpenApi:
    """The document's own route.

    Args:
        routes: All other routes.
        settings: The server's; they say whether keys are demanded.
    """

    def __init__(self, routes: Iterable[Route], settings: ServerSettings) -> None:
        self._routes = (*routes, *self.routes())
        self._is_locked = bool(settings.api_keys)

    def routes(self) -> list[Route]:
        """Return the route."""
        return [
            Route("GET", path, self.document, "This document.", gives=dict[str, Any], access="page")
            for path in ("/openapi.json", "/docs")
        ]

    async def document(self, request: Request) -> Response:
        """Return the document."""
        return Response(self._content)

    @cached_property
    def _content(self) -> bytes:
        return encode(describe(self._routes, self._is_locked))


def describe(routes: Sequence[Route], is_locked: bool) -> Json:
    """Return the OpenAPI document of `routes`; the same for the same routes.

    Args:
        routes: The routes.
        is_locked: Whether keys are demanded.
    """
    types = {kind for route in routes for _, kind in (*_contents(route.takes), *_contents(route.gives))} - {
        None
    }
    types |= {route.family.error for route in routes}
    known = sorted(types | {V2Error, TensorSummary}, key=str)
    schemas, components = msgspec.json.schema_components(
        known, schema_hook=_array_schema, ref_template=_SCHEMAS
    )
    schema_of = dict(zip(known, schemas, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        operation = _operation(route, schema_of, is_locked)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Educe",
            "version": __version__,
            "summary": "Machine-learning inference.",
            "description": _DESCRIPTION,
        },
        "paths": paths,
        "components": {
            "schemas": {name: _polished(schema) for name, schema in sorted(components.items())},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, schema_of: dict[Any, Json], is_locked: bool) -> Json:
    operation: Json = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [_tag(route.path)],
        "parameters": [*_path_parameters(route.path), *_query_parameters(route.queries), _TIMEOUT],
        "responses": _responses(route, schema_of, is_locked),
    }
    if route.takes is not None:
        operation["requestBody"] = {
            "required": _demands_body(route.takes),
            "content": _taken(route, schema_of),
        }
    if route.access != "open":
        operation["security"] = [{"key": []}] if is_locked else [{}, {"key": []}]
    return operation


def _responses(route: Route, schema_of: dict[Any, Json], is_locked: bool) -> Json:
    error_type = schema_of[route.family.error]
    contents: dict[int, dict[str, list[Json]]] = {}
    for status in route.statuses:
        contents[status] = _given(route, schema_of)
    for status in _faults(route, is_locked):
        schema = schema_of[V2Error] if status in _BY_CONNECTION else error_type
        contents.setdefault(status, {}).setdefault(_JSON, []).append(schema)
    return {str(status): _response(status, contents[status]) for status in sorted(contents)}


def _response(status: int, content: dict[str, list[Json]]) -> Json:
    response: Json = {
        "description": HTTPStatus(status).phrase,
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
    }
    if status == 503:
        response["headers"]["Retry-After"] = {"schema": {"type": "integer", "minimum": 1}}
    if content and status != HTTPStatus.NOT_MODIFIED:
        response["content"] = {
            kind: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}} if schemas[0] else {}
            for kind, schemas in content.items()
        }
    return response


def _faults(route: Route, is_locked: bool) -> set[int]:
    """Return the statuses of the errors that a route may answer with."""
    found = set(_ALWAYS)
    if is_locked and route.access != "open":
        found.add(401)
    if route.takes is not None:
        found.update(_OF_BODIES)
    if route.access != "open" and (route.takes is not None or "{" in route.path):
        found.update(_OF_MODELS)
    return found


def _given(route: Route, schema_of: dict[Any, Json]) -> dict[str, list[Json]]:
    """Return the schemas of a route's answers, by media type."""
    found: dict[str, list[Json]] = {}
    for media_type, kind in _contents(route.gives):
        found.setdefault(media_type, []).append(_text_schema(media_type) if kind is None else schema_of[kind])
    return found


def _taken(route: Route, schema_of: dict[Any, Json]) -> Json:
    """Return the content of a route's bodies, by media type."""
    return {
        media_type: _body(media_type) if kind is None else {"schema": schema_of[kind]}
        for media_type, kind in _contents(route.takes)
    }


def _text_schema(media_type: str) -> Json:
    """Return the schema of an answer that is no JSON; none for bytes, and for lines and events of JSON."""
    return {"type": "string"} if media_type.startswith(("text/plain", "text/html", "text/css")) else {}


def _body(media_type: str) -> Json:
    if media_type == _FORM:
        form = {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}
        return {"schema": {**form, "additionalProperties": False}}
    return {"schema": {"type": "string", "minLength": 1}} if media_type.startswith("text/") else {}


def _contents(kinds: Any) -> Iterator[tuple[str, Any]]:
    """Yield the media types of a route's bodies or answers, each with its type; None for one that is free."""
    if kinds is None:
        return
    for each in kinds if isinstance(kinds, tuple) else (kinds,):
        if isinstance(each, str):
            yield each, None
        elif isinstance(each, Content):
            yield each.media_type, each.kind
        else:
            for kind in get_args(each) if isinstance(each, UnionType) else (each,):
                yield _JSON, kind


def _demands_body(kinds: Any) -> bool:
    """Say whether a route answers nothing but a fault to an empty body."""
    return any(
        kind is None or any(field.required for field in msgspec.structs.fields(kind))
        for _, kind in _contents(kinds)
    )


def _path_parameters(path: str) -> list[Json]:
    names = [segment[1:-1] for segment in path.split("/") if segment.startswith("{")]
    patterns = {"model": _MODEL_PATTERN, "version": "^[0-9]{1,18}$"}
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": patterns.get(name, "^[^/]+$")},
        }
        for name in names
    ]


def _query_parameters(kind: type[msgspec.Struct] | None) -> list[Json]:
    if kind is None:
        return []
    _, components = msgspec.json.schema_components([kind], ref_template=_SCHEMAS)
    return [
        {
            "name": name,
            "in": "query",
            "description": schema["description"],
            "schema": {rule: value for rule, value in schema.items() if rule != "description"},
        }
        for name, schema in components[kind.__name__]["properties"].items()
    ]


def _operation_id(route: Route) -> str:
    words = "".join(
        letter if letter.isalnum() else "_" for letter in route.path.replace("{", "").replace("}", "")
    )
    return f"{route.method.lower()}{words}".rstrip("_")


def _tag(path: str) -> str:
    names = {"v1": "OpenAI API and raw input", "v2": "Open Inference Protocol"}
    return names.get(path.split("/")[1], "Server")


def _polished(schema: Json) -> Json:
    """Return a schema with the first paragraph of its description, bytes being a file's."""
    polished = {**schema}
    if "description" in schema:
        polished["description"] = schema["description"].split("\n\n")[0]
    if "properties" in schema:
        fields = schema["properties"].items()
        polished["properties"] = {name: _FILE if kind == _BYTES else kind for name, kind in fields}
    return polished


def _array_schema(kind: type) -> Json:
    """Return the schema of what stands for an array in a printed answer."""
    if kind is np.ndarray:
        return {"$ref": _SCHEMAS.format(name=TensorSummary.__name__)}
    raise NotImplementedError
