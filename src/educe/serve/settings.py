"""`ServerSettings`: all that a server can be told, checked once."""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from educe.errors import OptionError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.machine import usable_cores

_SHORTEST_KEY = 16
_HOST_NAME = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
# As browsers say it: in small letters, and with a port only if it is not the scheme's own.
_ORIGIN = re.compile(
    rf"(?!http://[^/]*:80$|https://[^/]*:443$)[a-z][a-z0-9+.-]*://({_HOST_NAME.pattern})(:\d{{1,5}})?"
)


READER_SECONDS = 30.0
"""How long is waited for a client that does not read what it is sent."""

_BYTES_PER_SECOND = 2**20
_WORKERS_OF_CORE = 4


@dataclass(frozen=True)
class ServerLimits:
    """The bounds on what a client may send.

    An answer takes as long as its client reads it: one that reads less than 64 KiB of what waits for it
    within 30 seconds is cut off.

    Attributes:
        header_bytes: Largest sum of the request line and all header fields.
        num_headers: Most header fields.
        header_seconds: Longest time to receive them.
        body_bytes: Largest body, and largest after decompression.
        json_bytes: Largest JSON, beside whose reading nothing else is done; binary tensors behind it are not
            counted.
        bodies_bytes: Largest sum of the bodies of all requests over HTTP that are there, as they are sent and
            as they are when decompressed, of the messages over gRPC, and of the pictures and sounds in them
            when they are decoded, and of what JSON becomes.
        body_seconds: Longest time to receive it, beyond a second for each MiB.
        num_parts: Most parts of a form.
        num_connections: Most connections at once.
        num_items: Most answers to one raw input, such as the frames of a video.
        num_inputs: Most messages of a conversation, and most texts to make vectors of.
        num_texts: Most texts that one request may have written: its prompts, times how many for each.
    """

    header_bytes: int = 16 * 2**10
    num_headers: int = 100
    header_seconds: float = 10.0
    body_bytes: int = 64 * 2**20
    json_bytes: int = 16 * 2**20
    bodies_bytes: int = 2**31
    body_seconds: float = 30.0
    num_parts: int = 100
    num_connections: int = 10_000
    num_items: int = 10_000
    num_inputs: int = 2_048
    num_texts: int = 128

    def receiving_seconds(self, size_bytes: int | None) -> float:
        """Return how long a body of a size may take to come; None for any size."""
        size = self.body_bytes if size_bytes is None else min(size_bytes, self.body_bytes)
        return self.body_seconds + size / _BYTES_PER_SECOND


@dataclass(frozen=True)
class ServerSettings:
    """All that a server can be told.

    Attributes:
        host: The address to listen at.
        port: The port of HTTP; 0 for any that is free.
        grpc_port: The port of gRPC; None for none.
        host_names: Names by which clients may call this server, beside the address and ``localhost``.
        api_keys: Keys, one of which is demanded of every request but probes; none if empty.
        certificate: The file of a TLS certificate.
        private_key: The file of its private key.
        insecure: Whether to listen beyond this machine without keys and TLS.
        origins: Web origins whose pages may call this server.
        admin: Whether models may be loaded and unloaded by request.
        target_seconds: Within which time answers are wanted: idle engines may wait for more requests, and
            those that would have to wait longer are refused. None to answer as soon as may be.
        timeout_seconds: Longest time for a request, whatever longer one it names.
        workers: Processes that answer; bounds that are totals are divided among them.
        max_batch: Most rows of a run.
        max_waiting: Most requests that wait for one model.
        memory_bytes: Memory for the weights of all models; None for as much as they take.
        cache_bytes: Memory for answers, which are kept for who asks the same again; None to keep none.
        log_requests: Whether a line about every request goes to standard error.
        drain_seconds: How long requests may go on when the server is told to end.
        limits: The bounds on files, those in requests included.
        server_limits: The bounds on requests.

    Raises:
        OptionError: an address beyond this machine without keys and TLS, a key that is too short or not of
            ASCII, a host name or origin that no request can have, or a value that is none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    host_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    origins: tuple[str, ...] = ()
    admin: bool = False
    target_seconds: float | None = None
    timeout_seconds: float = 600.0
    workers: int = 1
    max_batch: int = 64
    max_waiting: int = 1024
    memory_bytes: int | None = None
    cache_bytes: int | None = None
    log_requests: bool = False
    drain_seconds: float = 30.0
    limits: Limits = DEFAULT_LIMITS
    server_limits: ServerLimits = ServerLimits()

    def __post_init__(self) -> None:
        for name in ("workers", "max_batch", "max_waiting", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise OptionError(f"expected more than 0, found {getattr(self, name)}", place=name)
        cores = usable_cores()
        if self.workers > _WORKERS_OF_CORE * cores:
            raise OptionError(
                f"{self.workers} processes for {cores} cores",
                place="workers",
                remedy=f"give at most {_WORKERS_OF_CORE * cores}; one is as fast for most models",
            )
        for name in ("target_seconds", "cache_bytes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptionError(f"expected more than 0, found {value}", place=name)
        if (self.certificate is None) != (self.private_key is None):
            raise OptionError("a certificate and its private key come together", place="certificate")
        if any(len(key) < _SHORTEST_KEY for key in self.api_keys):
            raise OptionError(
                f"a key has less than {_SHORTEST_KEY} characters",
                place="api_keys",
                remedy="make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        if not all(key.isascii() and key.isprintable() for key in self.api_keys):
            raise OptionError(
                "a key has characters that a header field cannot carry",
                place="api_keys",
                remedy="use letters, digits and signs of ASCII",
            )
        self._check_names()
        is_safe = bool(self.api_keys) and self.certificate is not None
        if not self.is_local and not is_safe and not self.insecure:
            raise OptionError(
                f"{self.host} can be reached from other machines, and there is "
                + ("no key" if not self.api_keys else "no certificate"),
                place="host",
                remedy="give keys and a certificate, with --api-key-file, --tls-cert and --tls-key; "
                "or accept it, with --insecure",
            )

    def _check_names(self) -> None:
        for host in self.host_names:
            if not _HOST_NAME.fullmatch(host.lower()):
                raise OptionError(
                    f"{host!r} is no name of a host",
                    place="host_names",
                    remedy="give one without scheme, port and path, such as models.example.org",
                )
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    f"{origin!r} is no origin of a page",
                    place="origins",
                    remedy="give scheme, host and any port as browsers do, such as https://app.example.org",
                )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def accepts_key(self, key: str) -> bool:
        """Say whether `key` is one of the keys, in a time that does not depend on it."""
        given = sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = [hmac.compare_digest(given, sha256(known.encode()).digest()) for known in self.api_keys]
        return any(found)

    def accepts_host(self, host: str) -> bool:
        """Say whether a request's ``Host`` names this server, whatever its port."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        own = f"[{self.host}]" if ":" in self.host else self.host
        known = ("localhost", "127.0.0.1", "[::1]", own, *self.host_names)
        return name.lower() in {each.lower() for each in known}
