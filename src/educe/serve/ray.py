"""`RayServer`: the models behind HTTP on a cluster of Ray, in as many replicas as are wanted."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from educe.errors import EngineError, MissingLibraryError, OptionError
from educe.serve.asgi import AsgiApp
from educe.serve.faults import NotReady
from educe.serve.opening import ModelSource
from educe.serve.settings import ServerSettings
from educe.serve.signals import on_ending, signals_kept

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "educe"
"""The name of the application and of its deployment in Ray Serve."""


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what each has.

    Attributes:
        fewest: How many there are at least.
        most: How many there are at most; the cluster has as many as the requests that are there ask for.
        cpus: Cores that Ray reserves for each, which its models' programs use.

    Raises:
        OptionError: there may be none, or fewer at most than at least.
    """

    fewest: int = 1
    most: int = 1
    cpus: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most or self.cpus < 1:
            raise OptionError("expected a number from 1 on, or MIN:MAX of them", place="replicas")

    @classmethod
    def parse(cls, text: str, cpus: int = 1) -> Replicas:
        """Return what ``N`` or ``MIN:MAX`` stands for.

        Raises:
            OptionError: it is neither.
        """
        found = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text)
        if found is None:
            raise OptionError(f"expected N or MIN:MAX, found {text!r}", place="replicas")
        return cls(int(found[1]), int(found[2] or found[1]), cpus)


class RayServer:
    """Models behind HTTP, as an application of Ray Serve: the routes are those of `Server`, but for gRPC.

    Each replica holds all models. Paths of models have to be there on every node.

    Args:
        sources: The models.
        settings: All else.
        replicas: How many replicas there are.

    Attributes:
        grpc_port: None: there is no gRPC.

    Raises:
        OptionError: two models have one name, or the settings name what a cluster does not have.
    """

    def __init__(
        self, sources: Sequence[ModelSource], settings: ServerSettings, replicas: Replicas | None = None
    ) -> None:
        _check(settings)
        self.replicas = Replicas() if replicas is None else replicas
        self.settings, self.grpc_port = settings, None
        self._app = AsgiApp([_for_replica(source, self.replicas.cpus) for source in sources], settings)
        self._end = threading.Event()

    def application(self) -> Application:
        """Return what Ray Serve runs.

        Raises:
            MissingLibraryError: Ray is not installed.
        """
        serve = _ray_serve()
        settings, replicas = self.settings, self.replicas
        options: dict[str, Any] = {"num_replicas": replicas.fewest}
        if replicas.most > replicas.fewest:
            options = {
                "autoscaling_config": {
                    "min_replicas": replicas.fewest,
                    "max_replicas": replicas.most,
                    "target_ongoing_requests": max(1, settings.max_batch // 2),
                }
            }
        deployment = serve.deployment(
            serve.ingress(self._app)(_Replica),
            name=APPLICATION,
            ray_actor_options={"num_cpus": replicas.cpus},
            # While one batch runs the next one gathers; more requests are better off with another replica.
            max_ongoing_requests=2 * settings.max_batch,
            max_queued_requests=settings.max_waiting,
            graceful_shutdown_timeout_s=settings.drain_seconds,
            health_check_period_s=5,
            **options,
        )
        application: Application = deployment.bind()
        return application

    def run(self, when_ready: Callable[[str], object] = lambda url: None) -> None:
        """Serve until the process is told to end, by SIGINT or SIGTERM, or `stop` is called.

        The cluster is the one that ``RAY_ADDRESS`` names, else one that runs on this machine, else one that
        is started for this. Where Ray Serve runs on it already, its address and port stay as they are.

        Args:
            when_ready: Called with the URL at which Ray Serve listens, when all replicas answer.

        Raises:
            MissingLibraryError: Ray is not installed.
            OptionError: Ray Serve listens where other machines reach it, which the settings do not accept,
                or does not listen.
            EngineError: the replicas do not become ready.
        """
        serve = _ray_serve()
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        settings = self.settings
        serve.start(http_options={"host": settings.host, "port": settings.port})
        url = _url(settings, _http_options())
        try:
            with signals_kept():
                on_ending(self._end.set)
                serve.run(self.application(), name=APPLICATION, route_prefix="/")
                when_ready(url)
                self._end.wait()
        except RuntimeError as fault:
            raise EngineError(
                f"Ray Serve does not run the models: {fault}",
                remedy="see the replicas' logs, in Ray's dashboard or below /tmp/ray",
            ) from fault
        finally:
            serve.delete(APPLICATION)

    def stop(self) -> None:
        """Let the requests that are there end, and return from `run`; safe from any thread."""
        self._end.set()


class _Replica:
    """What Ray Serve asks of a replica beside its requests."""

    app: AsgiApp

    def check_health(self) -> None:
        """Say whether no run of a model hangs, as ``/livez`` does.

        Raises:
            NotReady: one does: Ray starts another replica in place of this one.
        """
        if self.app.is_stuck:
            raise NotReady("a model hangs")


def application(arguments: Mapping[str, Any]) -> Application:
    """Return what ``serve run`` and ``serve deploy`` run, as the ``import_path`` of a configuration.

    Args:
        arguments: ``models``, each as ``educe serve`` takes it; ``replicas`` and ``replica_cpus``, as
            there; and fields of `ServerSettings`.

    Raises:
        OptionError: one of them is unknown, or has no such value.
        ModelFileError: there is no such model.
    """
    given: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in arguments.items()
    }
    models = given.pop("models", ())
    if not isinstance(models, tuple) or not all(isinstance(text, str) for text in models):
        raise OptionError(f"expected a list of models, found {models!r}", place="models")
    cpus = str(given.pop("replica_cpus", 1))
    if not re.fullmatch("[0-9]{1,5}", cpus):
        raise OptionError(f"expected a number from 1 on, found {cpus!r}", place="replica_cpus")
    replicas = Replicas.parse(str(given.pop("replicas", 1)), int(cpus))
    try:
        settings = ServerSettings(**given)
    except TypeError as fault:
        raise OptionError(str(fault), place="args", remedy="name fields of ServerSettings") from None
    return RayServer(
        [each for text in models for each in ModelSource.find(text)], settings, replicas
    ).application()


def _check(settings: ServerSettings) -> None:
    elsewhere = {
        "admin": (settings.admin, "change the models of the application, and deploy it again"),
        "grpc_port": (settings.grpc_port is not None, "use HTTP"),
        "workers": (settings.workers > 1, "use --replicas"),
        "certificate": (settings.certificate is not None, "end TLS before the cluster, and give --insecure"),
        "port": (settings.port == 0, "name the port that every node listens at"),
    }
    for name, (is_given, remedy) in elsewhere.items():
        if is_given:
            raise OptionError("there is no such thing on a cluster of Ray", place=name, remedy=remedy)


def _http_options() -> Any:
    """Return what the Ray Serve that runs was started with; its public interface does not tell.

    Raises:
        OptionError: it does not listen.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    options = _get_global_client().http_config
    if options.host is None or not serve.status().proxies:
        raise OptionError(
            "Ray Serve runs on this cluster already, and does not listen",
            place="on",
            remedy="end it with: serve shutdown",
        )
    return options


def _url(settings: ServerSettings, http_options: Any) -> str:
    """Return where Ray Serve listens, which may not be where the settings want it.

    Raises:
        OptionError: other machines reach it, which the settings do not accept.
    """
    found = replace(settings, host=http_options.host, port=http_options.port)
    host = f"[{found.host}]" if ":" in found.host else found.host
    is_secured = getattr(http_options, "ssl_certfile", None) is not None  # older ones have no such field
    return f"{'https' if is_secured else 'http'}://{host}:{found.port}"


def _for_replica(source: ModelSource, cpus: int) -> ModelSource:
    """Return a source that means the same in any directory, and uses no more cores than are reserved."""
    options = {
        name: each.absolute() if isinstance(each, Path) else each for name, each in source.options.items()
    }
    return replace(source, path=source.path.absolute(), options={"threads": cpus, **options})


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise MissingLibraryError("ray[serve]", extra="ray", purpose="serving on a cluster") from None
    return serve
