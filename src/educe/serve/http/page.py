"""The page at ``/``: a place to try the models, in plain HTML, CSS and JavaScript."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from hashlib import sha256
from importlib import resources

from msgspec import Struct

from educe import __version__
from educe.serve.deployment import Entry
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.routes import Route
from educe.serve.inference import Inference

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FILES = (
    "index.html",
    "style.css",
    "icon.svg",
    "app.js",
    "api.js",
    "draw.js",
    "files.js",
    "snippets.js",
    "tensors.js",
    "texts.js",
    "ui.js",
    "write.js",
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_SAFETY = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
]


class PageModel(Struct):
    """What the page has to know of a model.

    Attributes:
        name: Its name.
        title: What its card calls it.
        version: The version in service; empty if there is none.
        state: Whether it is loaded.
        reason: Why it is not.
        kind: What it is, such as ``predictor`` or ``generator``; empty if nothing is in service.
        task: What it is for; empty if nothing is in service.
        columns: The columns of the table that it takes.
        chats: Whether it takes conversations.
    """

    name: str
    title: str
    version: str
    state: str
    reason: str
    kind: str
    task: str
    columns: list[str]
    chats: bool


class PageModels(Struct):
    """What the page shows before a model is chosen."""

    version: str
    models: list[PageModel]


class Page:
    """The page's routes. Its files tell nothing of the models.

    Args:
        inference: What runs the models.
    """

    def __init__(self, inference: Inference) -> None:
        self.inference = inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            *(_file_route(name) for name in _FILES),
            Route(
                "GET", "/page/models", self.models, "The models, as the page lists them.", gives=PageModels
            ),
        ]

    async def models(self, request: Request) -> Response:
        """List the models."""
        entries = self.inference.repository.entries
        return json_response(
            PageModels(__version__, [_model(name, entry) for name, entry in entries.items()])
        )


def _file_route(name: str) -> Route:
    return Route(
        "GET",
        "/" if name == "index.html" else f"/page/{name}",
        _sender(name),
        "The page to try the models." if name == "index.html" else f"The page's {name}.",
        gives=_media_type(name),
        access="page",
        statuses=(200, 304),
    )


def _sender(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        content, tag = _content(name)
        headers = [*_SAFETY, (b"etag", tag)]
        if tag in request.head.fields.get(b"if-none-match", b""):
            return Response(b"", "", 304, headers)
        return Response(content, _media_type(name), headers=headers)

    return send


def _media_type(name: str) -> str:
    return _MEDIA_TYPES[name.rpartition(".")[2]]


@cache
def _content(name: str) -> tuple[bytes, bytes]:
    """Return a file's content, and its entity tag."""
    content = (resources.files("educe.serve.page") / name).read_bytes()
    return content, b'"%b"' % sha256(content).hexdigest()[:32].encode()


def _model(name: str, entry: Entry) -> PageModel:
    found = entry.description
    if found is None:
        return PageModel(name, name, "", entry.state, entry.reason, "", "", [], False)
    return PageModel(
        name=name,
        title=found.title or name,
        version=found.version,
        state=entry.state,
        reason=entry.reason,
        kind=found.kind,
        task=found.task,
        columns=list(found.columns),
        chats=found.chats,
    )
