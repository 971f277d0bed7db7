"""Who may ask what, and in which words it is answered."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from educe.errors import OptionError
from educe.serve import ServerLimits, ServerSettings
from educe.serve.http.exchange import Request, Response
from educe.serve.http.routes import Route, Router
from educe.serve.threads import aside
from tests.serve.conftest import Client, serving

KEY = "a-key-of-some-length"
INFER = "/v2/models/breast_cancer/infer"
ROW = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0.5] * 30}]}


@pytest.fixture(scope="module")
def locked() -> Iterator[Client]:
    with serving("breast_cancer", api_keys=(KEY, "another-long-enough"), admin=True) as found:
        yield found


def test_a_key_is_demanded_on_all_routes_but_probes(locked: Client) -> None:
    paths = [
        "/v2",
        "/health",
        "/docs",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/breast_cancer",
        "/openapi.json",
    ]
    variants = ["//v2", "/V2", "/v2/", "/%76%32", "/v2;a", "/./v2", "/livez/../v2", "/v2%2f", "/nothing"]
    for path in (*paths, *variants, INFER, "/v2/repository/models/breast_cancer/load"):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for key in (None, "Bearer wrong-key-entirely", f"Basic {KEY}", f"Bearer {KEY[:-1]}", "Bearer "):
                headers = {} if key is None else {"authorization": key}
                status, _, body = locked.ask(method, path, None if method == "GET" else b"{}", headers)
                assert status in (401, 404, 405), (method, path, status, body)
    for path in ("/livez", "/readyz"):
        assert locked.ask("GET", path)[0] == 200


def test_a_slash_at_the_end_makes_no_difference(client: Client) -> None:
    for path in ("/v2", "/v1/models", "/v2/models/breast_cancer", "/livez", "/docs"):
        assert client.ask("GET", f"{path}/")[0] == 200, path
    assert client.ask("POST", f"{INFER}/", ROW)[0] == 200
    assert client.ask("GET", "/v2//")[0] == 404


def test_names_that_other_servers_have(client: Client) -> None:
    assert client.ask("GET", "/health")[0] == 200
    assert client.ask("GET", "/docs")[2] == client.ask("GET", "/openapi.json")[2]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/models/breast_cancer/predikt", "/v1/models/{model}/predict"),
        ("/v2/models/breast_cancer/inference", "/v2/models/{model}/infer"),
    ],
)
def test_a_route_that_is_none_names_the_nearest(client: Client, path: str, near: str) -> None:
    status, _, found = client.ask("POST", path, {})
    assert status == 404
    assert f"did you mean {near}? /openapi.json lists all" in found.decode()


def test_every_key_opens_every_route(locked: Client) -> None:
    for key in (KEY, "another-long-enough"):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        assert locked.ask("POST", INFER, json.dumps(ROW), headers)[0] == 200
        assert locked.ask("GET", "/v2", None, {"authorization": f"bearer {key}"})[0] == 200


def test_routes_that_change_models_are_there_only_if_they_are_wanted(client: Client, locked: Client) -> None:
    load = "/v2/repository/models/breast_cancer/load"
    assert client.ask("POST", load)[0] == 404
    assert locked.ask("POST", load, b"", {"authorization": f"Bearer {KEY}"})[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", ""])
def test_pages_of_other_origins_are_refused(client: Client, origin: str) -> None:
    status, headers, _ = client.ask("POST", INFER, ROW, {"origin": origin})
    assert status == 403
    assert "access-control-allow-origin" not in headers
    own = f"http://{client.address}"
    assert client.ask("POST", INFER, ROW, {"origin": own})[0] == 200


def test_pages_of_known_origins_may_ask_and_read() -> None:
    page = "https://page.example"
    with serving("breast_cancer", origins=(page,), api_keys=(KEY,)) as found:
        wanted = {
            "origin": page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        status, headers, body = found.ask("OPTIONS", INFER, None, wanted)
        assert (status, body) == (200, b"")
        assert headers["access-control-allow-origin"] == page
        assert "POST" in headers["access-control-allow-methods"]
        assert headers["access-control-allow-headers"] == "authorization, *"
        for key, status in ((KEY, 200), ("no-key-of-this-server", 401)):
            answer = found.ask("POST", INFER, ROW, {"origin": page, "authorization": f"Bearer {key}"})
            assert answer[0] == status
            assert answer[1]["access-control-allow-origin"] == page
            assert answer[1]["vary"] == "origin"
        status, headers, _ = found.ask("OPTIONS", INFER, None, {**wanted, "origin": "https://evil.example"})
        assert status == 403
        assert not [name for name in headers if name.startswith("access-control")]
        assert "access-control-allow-origin" not in found.ask("GET", "/livez")[1]


def test_hosts_are_known_by_name_in_any_case_and_by_address() -> None:
    assert ServerSettings(host_names=("Models.Example",)).accepts_host("models.example:8000")
    assert ServerSettings(host="2001:db8::1", insecure=True).accepts_host("[2001:DB8::1]:8000")
    assert not ServerSettings(host_names=("models.example",)).accepts_host("other.example")


def test_errors_say_what_and_where_in_each_family(client: Client) -> None:
    status, headers, body = client.ask("POST", INFER, {"inputs": [{"name": 3}]})
    assert status == 400
    assert "inputs[0].name" in json.loads(body)["error"].replace("...", "0")
    assert headers["x-request-id"]
    status, _, body = client.ask("POST", "/v1/models/nix/predict", b"x")
    fault = json.loads(body)["error"]
    assert (status, fault["type"], fault["code"]) == (404, "invalid_request_error", "not_found")
    _, _, body = client.ask("POST", "/v1/models/mobilnet_v2/predict", b"x")
    assert "did you mean 'mobilenet_v2'?" in json.loads(body)["error"]["message"]


def test_a_request_keeps_its_id_if_it_is_a_decent_one(client: Client) -> None:
    assert client.ask("GET", "/livez", None, {"x-request-id": "abc-1"})[1]["x-request-id"] == "abc-1"
    assert client.ask("GET", "/livez", None, {"x-request-id": "a b<c>"})[1]["x-request-id"] != "a b<c>"


def test_methods_that_a_route_lacks_are_named(client: Client) -> None:
    status, headers, _ = client.ask("DELETE", "/v2")
    assert (status, headers["allow"]) == (405, "GET")
    assert client.ask("HEAD", "/v2")[2] == b""


def test_bodies_may_be_compressed_within_bounds() -> None:
    with serving("breast_cancer", server_limits=ServerLimits(body_bytes=20_000)) as client:
        plain = json.dumps(ROW).encode()
        for coding, content in (("gzip", gzip.compress(plain)), ("deflate", zlib.compress(plain))):
            fields = {"content-encoding": coding, "content-type": "application/json"}
            assert client.ask("POST", INFER, content, fields)[0] == 200
            assert client.ask("POST", INFER, content[:-3], fields)[0] == 400
            assert client.ask("POST", INFER, content + b"x", fields)[0] == 400
        bomb = gzip.compress(b" " * 10_000_000)
        fields = {"content-encoding": "gzip", "content-type": "application/json"}
        assert client.ask("POST", INFER, bomb, fields)[0] == 413
        assert client.ask("POST", INFER, plain, {**fields, "content-encoding": "br"})[0] == 415


def test_what_bodies_are_when_decompressed_takes_room() -> None:
    limits = ServerLimits(body_bytes=40_000_000, json_bytes=40_000_000, bodies_bytes=30_000_000)
    with serving("breast_cancer", server_limits=limits) as client:
        fields = {"content-encoding": "gzip", "content-type": "application/json"}
        row = json.dumps(ROW).encode()
        for _ in range(3):
            assert client.ask("POST", INFER, gzip.compress(row.ljust(20_000_000)), fields)[0] == 200
        status, headers, body = client.ask("POST", INFER, gzip.compress(row.ljust(31_000_000)), fields)
        assert (status, headers["retry-after"]) == (503, "1"), body
        assert client.ask("POST", INFER, gzip.compress(row), fields)[0] == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff\xfe", b"{}", b'{"inputs": 1}', b"nan"]
)
def test_what_is_no_request_is_refused(client: Client, body: bytes) -> None:
    assert client.ask("POST", INFER, body, {"content-type": "application/json"})[0] == 400


def test_a_deadline_is_kept(client: Client) -> None:
    status, _, body = client.ask("POST", INFER, ROW, {"x-request-timeout-ms": "0.5"})
    assert b"a whole number of milliseconds, from 1 to" in body
    assert status == 400
    assert client.ask("POST", INFER, ROW, {"x-request-timeout-ms": "60000"})[0] == 200
    picture = Path("zoo/images/zebra.jpeg").read_bytes()
    fields = {"x-request-timeout-ms": "1"}
    status, _headers, body = client.ask("POST", "/v1/models/mobilenet_v2/predict", picture, fields)
    assert status == 504, body


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"host": "0.0.0.0", "api_keys": (KEY,)},
        {"api_keys": ("short",)},
        {"certificate": Path("a.pem")},
        {"max_batch": 0},
        {"target_seconds": 0.0},
    ],
)
def test_settings_that_are_unsafe_or_senseless_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        ServerSettings(**wrong)  # type: ignore[arg-type]


def test_a_connection_serves_many_requests(client: Client) -> None:
    connection = HTTPConnection(client.address, timeout=30)
    for _ in range(50):
        connection.request("POST", INFER, json.dumps(ROW), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
    connection.close()


def test_large_bodies_are_read_beside_the_loop() -> None:
    async def idents() -> list[int]:
        return [await aside(size, threading.get_ident) for size in (100, 2**20)]

    small, large = asyncio.run(idents())
    assert small == threading.get_ident()
    assert large != small


def test_only_short_paths_are_remembered() -> None:
    async def answer(request: Request) -> Response:
        return Response()

    router = Router([Route("GET", "/v2/models/{model}", answer, "A model.")])
    for name in ("x", "y" * 200):
        route, params = router.find("GET", f"/v2/models/{name}")
        assert (route.path, params) == ("/v2/models/{model}", {"model": name})
    assert [path for _, path in router._known] == ["/v2/models/x"]
