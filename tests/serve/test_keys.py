"""Where keys are set, nothing but the probes answers without one, whatever way a request is written.

The routes are those of the running server's own table, the methods of gRPC those that reflection tells.
"""

from __future__ import annotations

import json
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from educe.errors import OptionError
from educe.serve import ServerSettings
from educe.serve import core as core_module
from educe.serve.http.routes import Route
from tests.serve.conftest import Client, serving

KEY = "a-key-of-many-letters"
SECONDS = 60
MODEL, STRANGER = "breast_cancer", "nobody_knows_it"
PROBES = ("/livez", "/readyz")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "BREW")
REFUSALS = (400, 401, 404, 405, 421)
PAGE_KEY = f"Basic {b64encode(f'anyone:{KEY}'.encode()).decode()}"
WITHOUT_KEY: tuple[tuple[str, ...], ...] = (
    (),
    ("authorization:",),
    ("authorization: Bearer",),
    ("authorization: Bearer ",),
    (f"authorization: {KEY}",),
    (f"authorization: Bearer {KEY[:-1]}",),
    (f"authorization: Bearer {KEY}x",),
    (f"authorization: Bearer {KEY.upper()}",),
    (f"authorization: Bearer\t{KEY}",),
    (f"authorization: Bearer {KEY}, Bearer {KEY}",),
    (f"authorization: Bearer={KEY}",),
    (f"authorization: Digest {KEY}",),
    (f"authorization: Basic {KEY}",),
    ("authorization: Basic \xff\xfe",),
    (f"authorization: Basic {b64encode(KEY.encode()).decode()}",),
    (f"authorization: Basic {b64encode(f'{KEY}:'.encode()).decode()}",),
    (f"authorization: Bearer {'y' * 4000}",),
    (f"authorization: Bearer {KEY}", "authorization: Bearer no"),
    ("authorization: Bearer no", f"authorization: Bearer {KEY}"),
    (f"authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
    (f"authorization : Bearer {KEY}",),
    (f"x-api-key: {KEY}",),
    (f"api-key: {KEY}",),
    (f"proxy-authorization: Bearer {KEY}",),
    (f"cookie: authorization=Bearer {KEY}",),
    (f"x-original-url: /livez\r\nx-rewrite-url: /livez\r\nx-api-key: {KEY}",),
)


class Wire:
    """A client that writes requests as they are given, over one connection as long as it lasts."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address, self.place = address, (host, int(port))
        self.stream: Any = None

    def ask(
        self, method: str, target: str, fields: tuple[str, ...] = (), version: str = "HTTP/1.1"
    ) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the header fields, and the body."""
        length = 2 if method in ("POST", "PUT", "PATCH") else 0
        lines = [f"{method} {target} {version}", f"host: {self.address}", f"content-length: {length}"]
        request = "\r\n".join((*lines, *fields, "", "{}"[:length]))
        if self.stream is None:
            with socket.create_connection(self.place, SECONDS) as connection:
                self.stream = connection.makefile("rwb")  # which keeps it open
        self.stream.write(request.encode("latin-1"))
        self.stream.flush()
        status = int(self.stream.readline().split()[1])
        found: dict[str, str] = {}
        while line := self.stream.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            found[name.lower()] = value.strip()
        size = 0 if method == "HEAD" and status != 400 else int(found.get("content-length", 0))
        body = self.stream.read(size)
        if found.get("connection") == "close" or version == "HTTP/1.0" or status == 400:
            self.close()
        return status, found, body

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def variants(path: str, address: str) -> Iterator[str]:
    """Yield ways to write a path, and others that a careless server takes for it."""
    yield path
    yield path.upper()
    yield path.title()
    yield f"{path}/"
    yield f"{path}//"
    yield f"/{path}"
    yield path.replace("/", "//")
    yield f"/.{path}"
    yield f"/livez/..{path}"
    yield f"/livez/%2e%2e{path}"
    yield f"/page/../..{path}"
    yield f"{path}/../../livez"
    yield f"{path}/."
    yield f"/%{ord(path[1:2] or '/'):02x}{path[2:]}"
    yield path.replace("/", "%2f")
    yield f"{path}%00"
    yield f"{path}%20"
    yield f"{path};/livez"
    yield f"{path}?x=/livez"
    yield f"{path}?api_key={KEY}&key={KEY}&access_token={KEY}"
    yield f"{path}#/livez"
    yield f"/livez{path}"
    yield f"http://{address}{path}"
    yield f"http://{KEY}:{KEY}@{address}{path}"
    yield f"//{address}{path}"
    yield f"\\{path}"


@pytest.fixture(scope="module")
def routes() -> list[Route]:
    return []


@pytest.fixture(scope="module")
def locked(routes: list[Route]) -> Iterator[Client]:
    """A client of a server with a key, and with all routes that there are."""
    with pytest.MonkeyPatch.context() as patch:
        make = core_module.routes

        def remember(*arguments: Any) -> list[Route]:
            routes.extend(make(*arguments))
            return routes

        patch.setattr(core_module, "routes", remember)
        with serving(MODEL, grpc_port=0, api_keys=(KEY, "another-key-of-many-letters"), admin=True) as client:
            yield client


@pytest.fixture
def wire(locked: Client) -> Iterator[Wire]:
    found = Wire(locked.address)
    yield found
    found.close()


def path_of(route: Route, model: str = MODEL) -> str:
    return re.sub(r"{.*?}", "1", route.path.replace("{model}", model))


def is_probe(method: str, target: str) -> bool:
    path = unquote(re.split("[?#]", re.sub("^https?://[^/]*", "", target))[0])
    return method in ("GET", "HEAD") and path.removesuffix("/") in PROBES


def check(
    wire: Wire, method: str, target: str, fields: tuple[str, ...] = (), version: str = "HTTP/1.1"
) -> int:
    """Check that a request without a key is refused, unless it is a probe's, and return the status."""
    status, _, body = wire.ask(method, target, fields, version)
    if not is_probe(method, target):
        assert status in REFUSALS, (method, target, fields, status, body)
        stranger = wire.ask(method, target.replace(MODEL, STRANGER), fields, version)
        told, other = (each.partition(b"(")[0] for each in (body, stranger[2]))
        assert (status, told) == (stranger[0], other), "an answer tells which models there are"
    return status


def test_every_method_of_every_route_demands_a_key(wire: Wire, routes: list[Route]) -> None:
    assert len(routes) > 40
    for route in routes:
        for method in METHODS:
            status = check(wire, method, path_of(route))
            if method == route.method and route.access != "open":
                assert status == 401, route


def test_however_its_path_is_written(wire: Wire, routes: list[Route]) -> None:
    for route in routes:
        for target in variants(path_of(route), wire.address):
            for method in {route.method, "HEAD"}:
                check(wire, method, target)
        check(wire, route.method, path_of(route), version="HTTP/1.0")


def test_whatever_else_a_request_says_of_keys(wire: Wire, routes: list[Route]) -> None:
    for route in routes:
        if route.access == "open":
            continue
        for fields in WITHOUT_KEY:
            status = check(wire, route.method, path_of(route), fields)
            assert status == 401 or fields[0].startswith(("authorization :", "x-original")), (route, fields)


def test_a_key_is_looked_at_before_the_time_that_a_request_gives(locked: Client) -> None:
    for time in ("soon", "1"):
        for _ in range(20):
            assert locked.ask("GET", "/v2", headers={"x-request-timeout-ms": time})[0] == 401


def test_a_key_opens_every_route_and_the_pages_files_as_a_password(wire: Wire, routes: list[Route]) -> None:
    for route in routes:
        for key in (KEY, "another-key-of-many-letters"):
            assert (
                wire.ask(route.method, path_of(route, "nothing"), (f"authorization: bearer {key}",))[0] != 401
            )
        status, fields, _ = wire.ask(route.method, path_of(route), (f"authorization: {PAGE_KEY}",))
        if route.access == "page":
            assert status == 200
            assert wire.ask("GET", path_of(route))[1]["www-authenticate"].startswith("Basic ")
        elif route.access != "open":
            assert (status, fields["www-authenticate"]) == (401, "Bearer")
    assert {route.path for route in routes if route.access == "open"} == set(PROBES)


def test_an_origin_that_may_ask_needs_a_key_all_the_same(routes: list[Route], locked: Client) -> None:
    page = "https://page.example"
    with serving(MODEL, api_keys=(KEY,), origins=(page,)) as client:
        wire = Wire(client.address)
        asked = (f"origin: {page}", "access-control-request-method: POST")
        for route in routes:
            status, _, body = wire.ask("OPTIONS", path_of(route), asked)
            assert (status, body) == (200, b"")  # what a browser may send, and nothing of what is there
            if route.access not in ("open", "admin"):
                assert wire.ask(route.method, path_of(route), (f"origin: {page}",))[0] == 401
        wire.close()


def test_every_method_of_grpc_but_the_check_of_health_demands_a_key(locked: Client) -> None:
    grpc = pytest.importorskip("grpc")
    from educe.serve.grpc import messages

    request = messages.message("grpc.reflection.v1.ServerReflectionRequest")
    answer = messages.message("grpc.reflection.v1.ServerReflectionResponse")
    key = (("authorization", f"Bearer {KEY}"),)
    wrong = [
        (),
        (("authorization", KEY),),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", f"Bearer {KEY}x"),),
        (("authorization", f"Bearer {KEY.upper()}"),),
        (("authorization", f"Basic {KEY}"),),
        (("authorization", PAGE_KEY),),
        (("authorization", f"Bearer {KEY}"), ("authorization", "Bearer no")),
        (("authorization", "Bearer no"), ("authorization", f"Bearer {KEY}")),
        (("authorization-bin", f"Bearer {KEY}".encode()),),
        (("x-api-key", KEY),),
    ]
    with grpc.insecure_channel(locked.grpc_address) as channel:

        def reflected(**asked: str) -> Any:
            path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            ask = channel.stream_stream(path, request.SerializeToString, answer.FromString)
            (found,) = ask(iter([request(**asked)]), metadata=key, timeout=SECONDS)
            return found

        paths = []
        for service in reflected(list_services="").list_services_response.service:
            from google.protobuf.descriptor_pb2 import FileDescriptorProto

            found = reflected(file_containing_symbol=service.name).file_descriptor_response
            file = FileDescriptorProto.FromString(found.file_descriptor_proto[0])
            (described,) = [
                each for each in file.service if service.name.removeprefix(f"{file.package}.") == each.name
            ]
            paths += [f"/{service.name}/{method.name}" for method in described.method]
        assert len(paths) == 12 + 2 + 2
        unknown = [
            *(path.lower() for path in paths),
            *(f"{path}/" for path in paths),
            *(f"/{path}" for path in paths),
            *("/", "/livez", "/grpc.health.v1.Health/", "/inference.GRPCInferenceService/Nothing"),
            *("/grpc.channelz.v1.Channelz/GetServers", "/grpc.health.v1.Health/Check/../Watch"),
        ]

        def code(path: str, metadata: Any) -> str:
            try:
                list(channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=SECONDS))
            except grpc.RpcError as fault:
                return "tells of models" if MODEL in (fault.details() or "") else str(fault.code().name)
            return "OK"

        for path in (*paths, *unknown):
            for metadata in wrong:
                wanted = "OK" if path == "/grpc.health.v1.Health/Check" else "UNAUTHENTICATED"
                assert code(path, metadata) == wanted, (path, metadata)
            if path not in paths:
                assert code(path, key) == "UNIMPLEMENTED"


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    keys = tuple(f"{letter}-key-of-many-letters" for letter in "abc")
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", note)
    settings = ServerSettings(api_keys=keys)
    for given in ("", "x", keys[0], keys[2], keys[2] * 100):
        compared.clear()
        assert settings.accepts_key(given) == (given in keys)
        assert len(compared) == len(keys), "each key is looked at, whichever is right"
        assert {len(each) for pair in compared for each in pair} == {32}


def test_the_document_says_the_same(locked: Client) -> None:
    document = json.loads(locked.ask("GET", "/openapi.json", None, {"authorization": f"Bearer {KEY}"})[2])
    open_paths = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "security" not in operation
    }
    assert open_paths == set(PROBES)


@pytest.mark.parametrize("key", ["ein Schlüssel aus Wörtern", "a key with\nan end of a line"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(OptionError, match="header"):
        ServerSettings(api_keys=(key,))
