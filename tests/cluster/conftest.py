"""`educe serve --on ray` on a cluster of this machine: a head without replicas, two nodes with one each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serve.conftest import Client

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray: Any = pytest.importorskip("ray")

KEY = "a-key-of-some-length"
MODELS = ("breast_cancer", "stories260K", "mnist")
SECONDS = 120
STORE_BYTES = 80 * 2**20


@dataclass
class Served:
    """A cluster that serves.

    Attributes:
        cluster: The cluster.
        nodes: Its nodes that run replicas.
        client: A client of the proxy at its head.
        said: What the command said when it answered.
        num_replicas: How many replicas run.
    """

    cluster: Any
    nodes: list[Any]
    client: Client
    said: str = ""

    @property
    def num_replicas(self) -> int:
        from ray import serve

        (deployment,) = serve.status().applications["educe"].deployments.values()
        return int(deployment.replica_states.get("RUNNING", 0))

    @property
    def replica_nodes(self) -> set[str]:
        """The ids of the nodes on which replicas run."""
        from ray.serve.context import _get_global_client

        application = _get_global_client().get_serve_details()["applications"]["educe"]
        (deployment,) = application["deployments"].values()
        return {each["node_id"] for each in deployment["replicas"] if each["state"] == "RUNNING"}

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))


def wait_until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """The cluster, with the command serving on it, behind one proxy: all nodes share an address."""
    from ray import serve
    from ray.cluster_utils import Cluster

    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, not_listened_at = one.getsockname()[1], other.getsockname()[1]
    cluster = Cluster()
    command: subprocess.Popen[str] | None = None
    try:
        cluster.add_node(num_cpus=0, object_store_memory=STORE_BYTES, include_dashboard=False)
        found = Served(cluster, [], Client(f"http://127.0.0.1:{port}"))
        found.add_node()
        found.add_node()
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        words = [sys.executable, "-m", "educe", "serve", *(f"zoo/{name}" for name in MODELS)]
        words += ["--on", "ray", "--replicas", "2", "--port", str(not_listened_at)]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "EDUCE_API_KEY": KEY}
        command = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert command.stderr is not None
        said: list[str] = []
        while not said or "answers; Ctrl-C ends it" not in said[-1]:
            said.append(command.stderr.readline())
            assert said[-1], said
        found.said = said[-1]
        yield found
        command.send_signal(signal.SIGTERM)
        command.communicate(timeout=SECONDS)
        assert command.returncode == 0
        assert "educe" not in serve.status().applications
        serve.shutdown()
    finally:
        if command is not None and command.poll() is None:
            command.kill()
            command.communicate()
        ray.shutdown()
        cluster.shutdown()
