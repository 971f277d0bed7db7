"""``educe serve``: models behind HTTP."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from educe.cli.loading import GuessingOptions, LoadingOptions, ReadingOptions, size_bytes
from educe.cli.options import EngineOption, OptionGroup, given, named_path
from educe.cli.remote import API_KEY, read_keys
from educe.cli.screen import errors, print_warning
from educe.errors import OptionError
from educe.formats import checkpoint
from educe.generate.cache import CACHES
from educe.serve import ModelSource, Server, ServerSettings
from educe.serve.collecting import collect_at_rest
from educe.serve.opening import with_options

if TYPE_CHECKING:
    from educe.serve.ray import RayServer

EXAMPLES = """
[bold]Examples[/]\n
educe serve zoo/mobilenet_v2 zoo/stories260K\n
educe serve digits=zoo/mnist/model.onnx --port 9000 --target-latency-ms 50\n
educe serve ./models --memory 8GiB\n
curl localhost:8000/v1/models/mobilenet_v2/predict --data-binary @zoo/images/zebra.jpeg
"""


class _Progress(logging.Handler):
    """Prints what the server does that is no warning, such as that a model is compiling."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            errors().print(f"[dim]{escape(record.getMessage())}[/]")


def _keys(text: str) -> tuple[str, ...]:
    """Return the keys in the file that `text` names."""
    return read_keys(named_path(text))


def _seconds(text: str) -> float:
    """Return the seconds of as many milliseconds as `text` says."""
    try:
        seconds = float(text) / 1000
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f"expected milliseconds, more than 0; found {text!r}")
    return seconds


@dataclass(frozen=True, kw_only=True)
class ServingOptions(OptionGroup):
    """The options of the server; the names are the fields of `ServerSettings`."""

    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="The address; 127.0.0.1 if absent.")
    ] = None
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, metavar="N", help="The port; 8000 if absent, 0 for a free one."
        ),
    ] = None
    grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port",
            min=0,
            max=65535,
            metavar="N",
            help="The port of gRPC; none if absent, 0 for a free one.",
        ),
    ] = None
    host_names: Annotated[
        list[str] | None,
        typer.Option("--host-name", metavar="NAME", help="A name by which clients call this server."),
    ] = None
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            envvar=API_KEY,
            metavar="KEY",
            help="Requests need this key. Lists of processes show it: a file or the environment does not.",
        ),
    ] = None
    api_keys: Annotated[
        Any,
        typer.Option(
            "--api-key-file",
            parser=_keys,
            metavar="FILE",
            help="Keys, one a line; requests need one of them.",
        ),
    ] = None
    certificate: Annotated[
        Path | None,
        typer.Option("--tls-cert", parser=named_path, metavar="FILE", help="A TLS certificate."),
    ] = None
    private_key: Annotated[
        Path | None,
        typer.Option("--tls-key", parser=named_path, metavar="FILE", help="Its private key."),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without keys and TLS.")
    ] = False
    origins: Annotated[
        list[str] | None,
        typer.Option("--origin", metavar="URL", help="A web origin whose pages may call this server."),
    ] = None
    admin: Annotated[bool, typer.Option("--admin", help="Let clients load and unload the models.")] = False
    target_seconds: Annotated[
        float | None,
        typer.Option(
            "--target-latency-ms",
            parser=_seconds,
            metavar="X",
            help="Wait for more requests within this time, and refuse those that would wait longer.",
        ),
    ] = None
    timeout_seconds: Annotated[
        float | None,
        typer.Option(
            "--timeout-s", metavar="X", help="Longest time for a request, in seconds; 600 if absent."
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Processes that answer; 1 if absent.")
    ] = None
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", min=1, metavar="N", help="Most rows of a run; 64 if absent.")
    ] = None
    max_waiting: Annotated[
        int | None,
        typer.Option(
            "--max-waiting", min=1, metavar="N", help="Most requests that wait for a model; 1024 if absent."
        ),
    ] = None
    cache_bytes: Annotated[
        int | None,
        typer.Option(
            "--cache",
            parser=size_bytes,
            metavar="SIZE",
            help="Memory for answers, such as 256MiB, given again to who asks the same; none if absent.",
        ),
    ] = None
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line about each request to standard error.")
    ] = False
    memory_bytes: Annotated[
        int | None,
        typer.Option(
            "--memory",
            parser=size_bytes,
            metavar="SIZE",
            help="Memory of all weights, such as 8GiB; models not used for longest make room.",
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Return the options that were given, as `ServerSettings` takes them."""
        found = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in super().keywords().items()
        }
        for name in ("certificate", "private_key"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.exists():
                raise OptionError(f"there is no {str(path)!r}", place=name, remedy="name a PEM file")
        keys = (*found.pop("api_key", ()), *found.get("api_keys", ()))
        return {**found, **({"api_keys": keys} if keys else {})}

    def settings(self) -> ServerSettings:
        """Return the settings of the server.

        Raises:
            OptionError: an option does not take its value.
        """
        try:
            return ServerSettings(**self.keywords())
        except OptionError as error:
            if error.place == "api_keys" and self.api_keys is None:
                is_set = self.api_key == (os.environ.get(API_KEY) or "").split()
                error.place = API_KEY if is_set else "api_key"
            raise


@dataclass(frozen=True, kw_only=True)
class OpeningOptions(GuessingOptions, ReadingOptions, LoadingOptions):
    """How models are opened: each option is for those whose kind takes it."""

    engine: EngineOption = None
    # --cache and --memory are those of the whole server here.
    cache: Annotated[
        str | None,
        typer.Option(
            "--kv-cache", metavar="NAME", help=f"How keys and values are held: {', '.join(CACHES)}."
        ),
    ] = None
    kv_memory: Annotated[
        int | None,
        typer.Option(
            "--kv-memory",
            parser=size_bytes,
            metavar="SIZE",
            help="Memory of keys and values, of each language model: 2GiB, 500MB.",
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Return the options that were given, as the doors in `educe.api` take them."""
        found = super().keywords()
        for name in ("chat_template", "draft"):
            if name in found and not found[name].exists():
                raise OptionError(f"there is no {str(found[name])!r}", place=name)
        if "draft" in found and not checkpoint.recognises(found["draft"]):
            raise OptionError(f"{str(found['draft'])!r} is no language model", place="draft")
        memory = given(memory_bytes=found.pop("kv_memory", None))
        return {**found, **memory}

    def apply(self, sources: Sequence[ModelSource]) -> list[ModelSource]:
        """Return models, each with the options that models of its kind take.

        Raises:
            OptionError: no model takes an option.
        """
        with self.naming():
            return with_options(sources, self.keywords())

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Have errors of the options name them as they are called here."""
        try:
            yield
        except OptionError as error:
            if error.place == "memory_bytes":  # which is --memory in the other commands
                error.place = "kv_memory"
            raise


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(OptionGroup):
    """Where the server runs."""

    on: Annotated[
        Literal["ray"] | None,
        typer.Option("--on", help="Serve on a cluster of Ray, not on this machine alone."),
    ] = None
    replicas: Annotated[
        str | None,
        typer.Option(
            "--replicas",
            metavar="N|MIN:MAX",
            help="Replicas on the cluster, or a range within which the requests decide; 1 if absent.",
        ),
    ] = None
    replica_cpus: Annotated[
        int | None,
        typer.Option("--replica-cpus", min=1, metavar="N", help="Cores of each replica; 1 if absent."),
    ] = None

    def server(self, sources: list[ModelSource], settings: ServerSettings) -> Server | RayServer:
        """Return the server that runs there.

        Raises:
            OptionError: replicas are wanted, and no cluster.
        """
        if self.on is None:
            if self.keywords():
                raise OptionError("there are replicas on a cluster only", remedy="add --on ray")
            return Server(sources, settings)
        from educe.serve.ray import RayServer, Replicas

        return RayServer(sources, settings, Replicas.parse(self.replicas or "1", self.replica_cpus or 1))


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL", help="Model files or folders; a folder may hold versions, or models."
        ),
    ],
    *,
    serving: ServingOptions,
    opening: OpeningOptions,
    cluster: ClusterOptions,
) -> None:
    """Put MODELs behind HTTP: the Open Inference Protocol, the OpenAI API, and a page to try them."""
    log = logging.getLogger("educe.serve")
    log.setLevel(logging.INFO)
    log.addHandler(_Progress(logging.INFO))
    settings = serving.settings()
    if not settings.is_local and settings.insecure and not settings.api_keys:
        print_warning(f"anyone who reaches {settings.host} can use the models")
    sources = [source for text in models for source in ModelSource.find(text)]
    server = cluster.server(opening.apply(sources), settings)
    with errors().status("loading the models") as status:

        def announce(url: str) -> None:
            collect_at_rest()
            status.stop()
            also = "" if server.grpc_port is None else f", and gRPC at port {server.grpc_port}"
            errors().print(f"[bold]{escape(url)}[/] answers{also}; Ctrl-C ends it")

        with opening.naming():
            server.run(announce)
