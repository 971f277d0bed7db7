"""The arguments and options of commands that ask a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from educe.cli.options import OptionGroup, named_path
from educe.errors import OptionError
from educe.files import open_regular

if TYPE_CHECKING:
    from educe.bench.load_targets import Address

_KEY_BYTES = 64 * 2**10

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://localhost:8000.")]
API_KEY = "EDUCE_API_KEY"
"""The variable of the environment that may hold a server's key."""


@dataclass(frozen=True, kw_only=True)
class RemoteOptions(OptionGroup):
    """How a server is asked."""

    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=API_KEY, metavar="KEY", help="The key to send."),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            parser=named_path,
            metavar="FILE",
            help="A file whose first line is the key to send.",
        ),
    ] = None
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca",
            parser=named_path,
            metavar="FILE",
            help="Certificates to trust, such as one that the server has made itself.",
        ),
    ] = None

    def address(self, url: str) -> Address:
        """Return the server's address, with the key.

        Raises:
            OptionError: the file has no key.
        """
        from educe.bench.load_targets import Address

        key = self.api_key or ""
        if self.api_key_file is not None:
            key = read_keys(self.api_key_file)[0]
        return Address(url, key, self.tls_ca)


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line.

    Raises:
        OptionError: the file has no key.
    """
    with open_regular(path, error=OptionError) as file:
        lines = file.read(_KEY_BYTES).decode("utf-8", "replace").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise OptionError("the file has no key", path=path, remedy="write one a line")
    return keys
