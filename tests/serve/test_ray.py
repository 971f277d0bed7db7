"""What `educe serve --on ray` says before there is a cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from educe.errors import OptionError
from educe.serve import AsgiApp, ModelSource, ServerSettings
from educe.serve.faults import NotReady
from educe.serve.ray import _Replica, _url, application
from educe.serve.served import PredictorModel
from tests.conftest import ROOT
from tests.serve.conftest import Hang
from tests.serve.test_asgi import Asked

SECONDS = 60


def refused(*options: str, code: str = "from educe.cli.main import run; run()") -> tuple[int, str]:
    words = [sys.executable, "-c", code, "serve", "zoo/breast_cancer", "--on", "ray", *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, done.stderr


def test_what_a_cluster_does_not_have_is_refused():
    status, said = refused("--admin")
    assert status == 2, said
    assert "admin: there is no such thing on a cluster of Ray" in said
    status, said = refused("--replicas", "4:1")
    assert status == 2, said
    assert "MIN:MAX" in said


def test_without_ray_the_extra_is_named():
    status, said = refused(
        code="import sys; sys.modules['ray'] = None; from educe.cli.main import run; run()"
    )
    assert status == 3, said
    assert "pip install 'educe[ray]'" in said


def test_the_address_is_that_at_which_ray_serve_listens() -> None:
    settings = ServerSettings(host="127.0.0.1", port=8000, insecure=True)
    assert _url(settings, SimpleNamespace(host="0.0.0.0", port=9000)) == "http://0.0.0.0:9000"
    assert _url(settings, SimpleNamespace(host="::", port=1, ssl_certfile=None)) == "http://[::]:1"
    assert (
        _url(settings, SimpleNamespace(host="127.0.0.1", port=1, ssl_certfile="a")) == "https://127.0.0.1:1"
    )


def test_models_without_keys_are_not_served_beyond_this_machine_by_a_ray_serve_that_was_there() -> None:
    with pytest.raises(OptionError, match="can be reached from other machines"):
        _url(ServerSettings(), SimpleNamespace(host="0.0.0.0", port=8000))


@pytest.mark.parametrize("cpus", ["two", None, [1]])
def test_the_cores_of_a_replica_are_a_number(cpus: object) -> None:
    with pytest.raises(OptionError, match="replica_cpus"):
        application({"replica_cpus": cpus})


@pytest.mark.parametrize("models", ["zoo/breast_cancer", [1], None])
def test_the_models_are_a_list(models: object) -> None:
    with pytest.raises(OptionError, match="expected a list of models"):
        application({"models": models})


def test_a_replica_is_replaced_if_a_run_hangs_and_not_for_a_model_that_cannot_be_loaded(
    hang: Callable[..., Hang], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    sources = [ModelSource("nonsense", tmp_path), ModelSource("good", ROOT / "zoo" / "breast_cancer")]
    tensor = {"name": "features", "datatype": "FP32", "shape": [1000, 30], "data": [0.5] * 30_000}
    infer = json.dumps({"inputs": [tensor]}).encode()

    async def run() -> None:
        replica = _Replica()
        async with AsgiApp(sources, ServerSettings(timeout_seconds=1.0)) as app:
            replica.app = app
            assert not app.is_ready
            replica.check_health()
            hanging = hang(PredictorModel, "_infer")
            status, _, _ = await Asked(app, "POST", "/v2/models/good/infer", infer).run()
            assert status == 504
            await asyncio.sleep(1.0)
            with pytest.raises(NotReady):
                replica.check_health()
            hanging.end()

    asyncio.run(run())
