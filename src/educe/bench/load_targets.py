"""What a server can be asked under load: tensors, files, texts; each as whole requests."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import ml_dtypes
import numpy as np

from educe.bench.load import Target
from educe.errors import InputError, OptionError

_TYPES: dict[str, Any] = {
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "?",
    "BF16": ml_dtypes.bfloat16,
}
_WORDS = (b"a", b"word", b"two words")
_UNKNOWN_SIZE = 16
_SECONDS = 30.0
_SOME = 16


@dataclass(frozen=True)
class Address:
    """A server's address.

    Attributes:
        url: The URL, without a path.
        api_key: The key to send; empty for none.
        authorities: A file of certificates to trust, in PEM; those of the system if absent.
    """

    url: str
    api_key: str = field(default="", repr=False)
    authorities: Path | None = None

    @property
    def host(self) -> str:
        """The host."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """The port."""
        return self._parts.port or (443 if self.is_secure else 80)

    @property
    def is_secure(self) -> bool:
        """Whether it is behind TLS."""
        return bool(self._parts.scheme == "https")

    @property
    def _parts(self) -> Any:
        url = self.url if "//" in self.url else f"http://{self.url}"
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise OptionError(
                f"{self.url!r} is no server's URL", remedy="give one like http://localhost:8000"
            )
        return parts

    def request(self, path: str, body: bytes, headers: Mapping[str, str], method: str = "POST") -> bytes:
        """Return a whole request, as HTTP/1.1 has it."""
        host = self._parts.netloc.rpartition("@")[2]
        fields = {"Host": host, "Content-Length": str(len(body)), **headers}
        if self.api_key:
            fields["Authorization"] = f"Bearer {self.api_key}"
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body

    def read(self, method: str, path: str) -> bytes:
        """Return the body of an answer.

        Raises:
            InputError: the server cannot be reached, or does not answer this.
        """
        connection = self._connection()
        try:
            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as fault:
            raise InputError(
                f"cannot be reached: {fault}", path=self.url, remedy=self._remedy(fault)
            ) from None
        finally:
            connection.close()
        if answer.status != 200:
            shown = content[:200].decode("utf-8", "replace").strip()
            is_page = "html" in answer.getheader("content-type", "") or shown.startswith("<")
            remedy = "is it one of educe serve?" if is_page else None
            raise InputError(
                f"answers {method} {path} with {answer.status}: {'a page' if is_page else shown}",
                path=self.url,
                remedy="give its key with --api-key-file" if answer.status == 401 else remedy,
            )
        return content

    def json(self, method: str, path: str) -> Any:
        """Return an answer that is JSON.

        Raises:
            InputError: it is none, or `read` cannot get it.
        """
        try:
            return json.loads(self.read(method, path))
        except ValueError:
            raise InputError(f"what it answers to {path} is no JSON", path=self.url) from None

    def target(self, requests: Sequence[bytes], *, streams: bool = False) -> Target:
        """Return these requests to this server."""
        return Target(self.host, self.port, requests, self._tls() if self.is_secure else None, streams)

    def _remedy(self, fault: Exception) -> str:
        if isinstance(fault, ssl.SSLCertVerificationError):
            return "name its certificate with --tls-ca"
        if isinstance(fault, RemoteDisconnected) and not self.is_secure:
            return "if it is behind TLS, begin the URL with https://"
        return "is it up?"

    def _connection(self) -> HTTPConnection:
        if self.is_secure:
            return HTTPSConnection(self.host, self.port, timeout=_SECONDS, context=self._tls())
        return HTTPConnection(self.host, self.port, timeout=_SECONDS)

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.authorities)
        except OSError as fault:  # which a fault of TLS is, too
            raise OptionError(
                f"cannot be used as certificates: {fault.strerror or fault}",
                path=self.authorities,
                remedy="give a file in PEM",
            ) from None


def only_model(address: Address) -> str:
    """Return the name of the one model of a server.

    Raises:
        InputError: the server cannot be asked.
        OptionError: it has several models, or none.
    """
    names = [entry["name"] for entry in address.json("POST", "/v2/repository/index")]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise OptionError(f"the server's models are: {found}", place="--model", remedy="name one")
    return str(names[0])


def tensors(address: Address, model: str, rows: int = 1, seed: int = 0) -> Target:
    """Return requests of the Open Inference Protocol with random tensors of what the model's metadata says.

    Args:
        address: The server.
        model: The model's name.
        rows: The first size, where the metadata leaves it open; others that it does are 16.
        seed: What the numbers depend on.

    Raises:
        InputError: the server does not say what the model takes, or a type has no random values.
    """
    path = f"/v2/models/{quote(model, safe='')}"
    inputs = address.json("GET", path).get("inputs", [])
    rng = np.random.default_rng(seed)
    return address.target([_infer(address, f"{path}/infer", inputs, rows, rng) for _ in range(_SOME)])


def file(address: Address, model: str, content: bytes) -> Target:
    """Return requests with a file's content, to be answered as `educe predict` does."""
    path = f"/v1/models/{quote(model, safe='')}/predict"
    return address.target([address.request(path, content, {"Content-Type": "application/octet-stream"})])


def texts(address: Address, model: str, prompt: str, max_tokens: int, *, is_chat: bool) -> Target:
    """Return requests of the OpenAI API for texts that come as they are written.

    Args:
        address: The server.
        model: The model's name.
        prompt: What is said, or to be continued; a number before it makes each request another one.
        max_tokens: How long a text becomes.
        is_chat: Whether the prompt is a message of a conversation.
    """
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    requests = []
    for index in range(_SOME):
        text = f"{index} {prompt}"
        body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "stream": True}
        body.update({"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text})
        requests.append(address.request(path, json.dumps(body).encode(), headers))
    return address.target(requests, streams=True)


def _infer(
    address: Address, path: str, inputs: Sequence[Mapping[str, Any]], rows: int, rng: np.random.Generator
) -> bytes:
    described, parts = [], []
    for each in inputs:
        sizes = [rows if axis == 0 else _UNKNOWN_SIZE for axis in range(len(each["shape"]))]
        shape = [known if known > 0 else size for known, size in zip(each["shape"], sizes, strict=True)]
        content = _content(each["datatype"], shape, rng)
        parts.append(content)
        described.append(
            {
                "name": each["name"],
                "shape": shape,
                "datatype": each["datatype"],
                "parameters": {"binary_data_size": len(content)},
            }
        )
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return address.request(path, b"".join([head, *parts]), headers)


def _content(datatype: str, shape: Sequence[int], rng: np.random.Generator) -> bytes:
    """Return the bytes of a random tensor: numbers from 0 to 1, small whole ones, words."""
    if datatype == "BYTES":
        words = (_WORDS[index] for index in rng.integers(len(_WORDS), size=int(np.prod(shape))))
        return b"".join(len(word).to_bytes(4, "little") + word for word in words)
    if datatype not in _TYPES:
        raise InputError(f"there are no random values of {datatype}", remedy="send a file instead")
    dtype = np.dtype(_TYPES[datatype])
    if dtype.kind in "iub":
        return rng.integers(2 if dtype.kind == "b" else 10, size=shape).astype(dtype).tobytes()
    return rng.random(shape, np.float32).astype(dtype).tobytes()
