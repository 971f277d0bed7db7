"""The arguments and options of commands that ask a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from educe.cli.options import named_path
from educe.errors import OptionError
from educe.files import open_regular

if TYPE_CHECKING:
    from educe.bench.load_targets import Address

_KEY_BYTES = 64 * 2**10

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://localhost:8000.")]
ApiKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        parser=named_path,
        metavar="FILE",
        help="A file whose first line is the key to send.",
    ),
]


def address_of(url: str, api_key_file: Path | None) -> Address:
    """Return the server's address, with the key in the file.

    Raises:
        OptionError: the file has no key.
    """
    from educe.bench.load_targets import Address

    return Address(url) if api_key_file is None else Address(url, read_keys(api_key_file)[0])


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
