"""The examples of deployment: their flags, paths, probes and keys are those of the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from educe.cli.app import app, subcommand
from educe.settings import ALL
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.serve.test_ending import ROW, SECONDS, process

DEPLOY = ROOT / "deploy"
KEY = "a-key-of-some-length"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", "")
COMPOSE, PROMETHEUS = read("compose.yaml"), read("prometheus.yml")
RUNTIME, SERVICE = read("kserve/runtime.yaml"), read("kserve/service.yaml")
(CONTAINER,) = RUNTIME["spec"]["containers"]


def last(instruction: str) -> list[str]:
    """Return the words of the last instruction of its kind in the Containerfile, which is written as JSON."""
    found = re.findall(rf"^{instruction} (\[.*\])$", CONTAINERFILE, re.M)[-1]
    words: list[str] = json.loads(found)
    return words


def kserve_arguments() -> list[str]:
    """Return the arguments that KServe gives the server: the runtime's, then the service's."""
    metadata = SERVICE["metadata"]
    known = {"{{.Name}}": metadata["name"], "{{.Namespace}}": metadata["namespace"]}
    arguments = [*CONTAINER["args"], *SERVICE["spec"]["predictor"]["model"]["args"]]
    for placeholder, value in known.items():
        arguments = [argument.replace(placeholder, value) for argument in arguments]
    return arguments


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_every_option_exists() -> None:
    known = {option for parameter in subcommand("serve").params for option in parameter.opts}
    example = re.findall(r"educe:latest (/models.*)$", (DEPLOY / "README.md").read_text(), re.M)
    assert example
    named = [*last("ENTRYPOINT"), *COMPOSE["services"]["educe"]["command"], *kserve_arguments()]
    assert options_of([*named, *" ".join(example).split()]) <= known
    assert last("ENTRYPOINT")[:2] == ["educe", "serve"]


def test_every_setting_exists() -> None:
    known = {setting.variable for setting in ALL}
    assert set(re.findall(r"\bEDUCE_\w+", CONTAINERFILE)) <= known
    assert {entry["name"] for entry in CONTAINER["env"]} <= known


def test_paths_that_are_copied_or_mounted_exist() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.M):
        assert all((ROOT / name).exists() for name in line.split()), line
        ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
        assert {f"!{Path(name).name}" for name in line.split()} <= set(ignored), line
    build = COMPOSE["services"]["educe"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    mounts = [volume for service in COMPOSE["services"].values() for volume in service["volumes"]]
    assert all((DEPLOY / mount.split(":")[0]).exists() for mount in mounts if mount.startswith("."))
    mounted = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in RUNTIME["spec"]["volumes"]}


def test_the_image_does_not_start_without_keys() -> None:
    done = CliRunner().invoke(app, [*last("ENTRYPOINT")[1:], str(ROOT / "zoo" / "breast_cancer")])
    assert done.exit_code != 0
    assert "there is no key" in str(done.exception)


def test_the_image_is_not_run_by_root() -> None:
    assert re.findall(r"^USER (\d+)$", CONTAINERFILE, re.M)[-1] != "0"
    service = COMPOSE["services"]["educe"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert CONTAINER["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "educe_key"
    path.write_text(f"{KEY}\n")
    return path


def test_prometheus_reaches_the_server_of_the_compose_file(secret: Path) -> None:
    service = COMPOSE["services"]["educe"]
    command = [word.replace("/run/secrets/educe_key", str(secret)) for word in service["command"]]
    command = [word.replace("/models", str(ROOT / "zoo")) for word in command]
    (job,) = PROMETHEUS["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret.name}"
    fields = {"Host": target, "Authorization": f"{job['authorization']['type']} {KEY}"}
    with process(*command) as (_, client):
        status, _, metrics = client.ask("GET", job["metrics_path"], headers=fields)
        assert status == 200
        assert b'educe_model_ready{model="cancer"} 1' in metrics
        assert client.ask("GET", job["metrics_path"], headers={"Host": target})[0] == 401


def is_healthy(client: Client) -> bool:
    """Say what the health check of the image says of a server at another port."""
    python, *arguments = last("HEALTHCHECK .*CMD")
    assert python == "python"
    words = [word.replace("127.0.0.1:8080", client.address) for word in arguments]
    assert words != arguments
    return subprocess.run([sys.executable, *words], capture_output=True, timeout=SECONDS).returncode == 0


def test_the_image_is_healthy_while_its_server_is_ready() -> None:
    with process("zoo/breast_cancer") as (running, client):
        assert is_healthy(client)
        running.terminate()
        running.wait(SECONDS)
        assert not is_healthy(client)


def test_the_image_is_healthy_with_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-days", "1", "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=example.com"]
    subprocess.run([*made, *files], check=True, capture_output=True, timeout=SECONDS)
    with serving("breast_cancer", certificate=certificate, private_key=key) as client:
        assert is_healthy(client)


def test_kserve_reaches_the_server() -> None:
    arguments = [word.replace("/mnt/models", str(ROOT / "zoo/breast_cancer")) for word in kserve_arguments()]
    name = SERVICE["metadata"]["name"]
    with process(*arguments) as (_, client):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = CONTAINER[probe]["httpGet"]
            fields = {field["name"]: field["value"] for field in get["httpHeaders"]}
            assert client.ask("GET", get["path"], headers=fields)[0] == 200, probe
        assert client.ask("GET", "/readyz", headers={"Host": "10.0.0.1:8080"})[0] == 421
        for host in (f"{name}-predictor.models.svc.cluster.local", f"{name}-models.example.com"):
            path = f"/v2/models/{name}/infer"
            assert client.ask("POST", path, ROW, {"Host": host})[0] == 200, host
        path = RUNTIME["spec"]["annotations"]["prometheus.kserve.io/path"]
        assert client.ask("GET", path)[0] == 200


def test_the_service_asks_for_what_the_runtime_is() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in {each["name"] for each in RUNTIME["spec"]["supportedModelFormats"]}
    ports = {port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {int(last("ENTRYPOINT")[-1])} == {CONTAINER["readinessProbe"]["httpGet"]["port"]}
