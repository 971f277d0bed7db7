"""Replicas on a cluster answer as one server does, and go on answering when a node dies."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest

from educe.errors import ModelFileError, OptionError
from educe.serve import ModelSource, ServerSettings
from educe.serve.ray import RayServer, Replicas, application
from tests.cluster.conftest import KEY, MODELS, SECONDS, wait_until
from tests.conftest import ROOT
from tests.serve.conftest import serving

AUTHORIZATION = {"authorization": f"Bearer {KEY}"}
SOURCES = [ModelSource(name, ROOT / "zoo" / name) for name in MODELS]
ROW = [0.1 * index for index in range(30)]
INFER = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], "data": ROW}]}
STORIES = {"model": "stories260K", "prompt": "Once", "max_tokens": 400, "temperature": 1, "n": 8}
PROMPT = {"model": "stories260K", "prompt": "Once upon", "max_tokens": 24, "temperature": 0}
REQUESTS_PER_SECOND = 20
LOAD_SECONDS = 25.0
KILL_AT, RESTORE_AT = 6.0, 10.0
SLACK = 1.0


def texts(events: bytes) -> list[str]:
    lines = [line[6:] for line in events.decode().splitlines() if line.startswith("data: {")]
    return [choice["text"] for line in lines for choice in json.loads(line)["choices"]]


def meaning(content: bytes) -> Any:
    """Return what JSON says, but for how long it took; other bytes as they are."""
    if not content.startswith(b"{"):
        return content
    return {name: each for name, each in json.loads(content).items() if name != "seconds"}


def test_each_node_has_a_replica(served):
    assert served.replica_nodes == {node.node_id for node in served.nodes}


def test_the_address_that_is_told_is_where_ray_serve_listens(served):
    assert served.client.url in served.said.split()


def test_answers_are_those_of_one_server(served):
    picture = (ROOT / "zoo/mnist/inputs/7.png").read_bytes()
    asked: list[tuple[Any, ...]] = [
        ("GET", "/v2/models/breast_cancer"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("POST", "/v2/models/breast_cancer/infer", INFER),
        ("POST", "/v2/models/breast_cancer/infer", {"inputs": []}),
        ("POST", "/v2/repository/models/mnist/unload", {}),
        ("POST", "/v1/models/mnist/predict", picture),
        ("POST", "/v1/models/none/predict", picture),
    ]
    with serving(*SOURCES, api_keys=(KEY,)) as plain:
        for method, path, *body in asked:
            expected = plain.ask(method, path, *body or [None], AUTHORIZATION)
            for _ in range(4):  # which reach both replicas
                status, headers, content = served.client.ask(method, path, *body or [None], AUTHORIZATION)
                assert status == expected[0], path
                assert headers["content-type"] == expected[1]["content-type"]
                assert meaning(content) == meaning(expected[2]), path
        whole = plain.json("POST", "/v1/completions", PROMPT, **AUTHORIZATION)["choices"]
    for _ in range(4):
        assert served.client.json("POST", "/v1/completions", PROMPT, **AUTHORIZATION)["choices"] == whole
        status, headers, events = served.client.ask(
            "POST", "/v1/completions", {**PROMPT, "stream": True}, AUTHORIZATION
        )
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert "".join(texts(events)) == whole[0]["text"]
        assert len(texts(events)) > 10


def test_keys_and_hosts_are_checked(served):
    assert served.client.ask("GET", "/v2")[0] == 401
    assert served.client.ask("GET", "/readyz")[0] == 200
    assert served.client.ask("GET", "/v2", None, {**AUTHORIZATION, "host": "evil.example"})[0] == 421


def test_a_client_that_goes_ends_its_answer(served):
    connection = HTTPConnection(served.client.address, timeout=SECONDS)
    body = json.dumps({**PROMPT, "max_tokens": 480, "stream": True, "n": 8, "temperature": 1})
    connection.request("POST", "/v1/completions", body, {**AUTHORIZATION, "content-type": "application/json"})
    assert connection.getresponse().read(10)
    connection.close()
    wait_until(lambda: b',status="499"' in served.client.ask("GET", "/metrics", None, AUTHORIZATION)[2])


@dataclass
class Outcome:
    """What became of a request: when it began and ended, and its status; 0 if none."""

    began: float
    ended: float
    status: int


def test_a_node_that_dies_under_load_costs_requests_only_until_that_is_noticed(served):
    expected = served.client.ask("POST", "/v2/models/breast_cancer/infer", INFER, AUTHORIZATION)[2]
    outcomes: list[Outcome] = []
    wrong: list[bytes] = []
    start = time.monotonic()

    def ask(path: str, body: dict[str, Any]) -> None:
        began, status = time.monotonic() - start, 0
        try:
            status, _, content = served.client.ask("POST", path, body, AUTHORIZATION)
            if status == 200 and body is INFER and content != expected:
                wrong.append(content)
        except (OSError, HTTPException):
            pass
        outcomes.append(Outcome(began, time.monotonic() - start, status))

    def load() -> None:
        arrivals, when = random.Random(0), 0.0
        while (when := when + arrivals.expovariate(REQUESTS_PER_SECOND)) < LOAD_SECONDS:
            time.sleep(max(0.0, start + when - time.monotonic()))
            short = ("/v2/models/breast_cancer/infer", INFER)
            request = short if len(threads) % 10 else ("/v1/completions", STORIES)
            threads.append(threading.Thread(target=ask, args=request))
            threads[-1].start()

    threads: list[threading.Thread] = []
    loading = threading.Thread(target=load)
    loading.start()
    time.sleep(KILL_AT)
    killed = time.monotonic() - start
    lost = served.nodes[0].node_id
    served.cluster.remove_node(served.nodes.pop(0), allow_graceful=False)
    wait_until(lambda: lost not in served.replica_nodes)
    noticed = time.monotonic() - start
    time.sleep(max(0.0, start + RESTORE_AT - time.monotonic()))
    served.add_node()
    loading.join()
    for thread in threads:
        thread.join(SECONDS)
    wait_until(lambda: served.num_replicas == 2 and lost not in served.replica_nodes)
    failed = [each for each in outcomes if each.status != 200]
    waited = max(each.ended - each.began for each in outcomes)
    print(f"{len(outcomes)} requests, a node killed at {killed:.2f} s, noticed at {noticed:.2f} s")
    print(f"longest {waited:.2f} s, failed: {failed}")
    assert len(outcomes) == len(threads)
    assert wrong == []
    assert [each for each in failed if each.began > noticed + SLACK or each.ended < killed] == []
    assert len(failed) <= len(outcomes) / 10
    for _ in range(20):
        assert (
            served.client.ask("POST", "/v2/models/breast_cancer/infer", INFER, AUTHORIZATION)[2] == expected
        )


def test_a_range_of_replicas_follows_the_requests_that_are_there():
    server = RayServer(SOURCES, ServerSettings(max_batch=16), Replicas.parse("1:4", cpus=2))
    deployment = server.application()._bound_deployment
    assert deployment.max_ongoing_requests == 32
    assert deployment.ray_actor_options["num_cpus"] == 2
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 8)


@pytest.mark.parametrize("text", ["0", "4:1", "0:4", "a", "1:", "1:2:3", ""])
def test_replicas_are_one_number_or_two(text):
    with pytest.raises(OptionError, match="replicas"):
        Replicas.parse(text)


@pytest.mark.parametrize("name", ["admin", "grpc_port", "workers", "port"])
def test_what_a_cluster_does_not_have_is_refused(name):
    value = {"admin": True, "workers": 2}.get(name, 0)
    with pytest.raises(OptionError, match=name):
        RayServer(SOURCES, ServerSettings(**{name: value}))


def test_a_configuration_names_models_replicas_and_settings():
    arguments = {"models": [str(ROOT / "zoo/mnist")], "replicas": "1:2", "host_names": ["models.example"]}
    assert application(arguments)._bound_deployment.name == "educe"
    with pytest.raises(OptionError, match="colour"):
        application({**arguments, "colour": "red"})
    with pytest.raises(ModelFileError):
        application({"models": ["nowhere"]})
