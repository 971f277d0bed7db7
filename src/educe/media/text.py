"""Reading texts: UTF-8, whole or line by line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from educe.errors import InputError
from educe.files import open_regular, read_bytes
from educe.limits import Limits

BOM = "\ufeff"


def read_text(source: Path | bytes, limits: Limits) -> str:
    """Return the text in a file or in bytes, without its byte order mark.

    Raises:
        InputError: it cannot be opened, or is not UTF-8; the error names the byte.
        LimitError: it is larger than `limits.text_bytes`.
    """
    if isinstance(source, bytes):
        limits.check("text_bytes", len(source))
        return decode_utf8(source).removeprefix(BOM)
    return decode_utf8(read_bytes(source, limits, "text_bytes"), path=source).removeprefix(BOM)


def read_lines(source: Path | bytes, limits: Limits) -> Iterator[tuple[int, str]]:
    """Yield position, from 0, and text of each line of a file or of bytes, reading one line at a time.

    Lines end with LF or CRLF, which is left out. Empty lines count, but are not yielded.

    Raises:
        InputError: the source cannot be opened, or is not UTF-8; the error names the byte.
        LimitError: a line is larger than `limits.text_bytes`.
    """
    path = None if isinstance(source, bytes) else source
    offset = 0
    with _open(source) as file:
        for row, line in enumerate(iter(lambda: file.readline(limits.text_bytes + 1), b"")):
            limits.check("text_bytes", len(line), path=path)
            text = decode_utf8(line, path=path, offset=offset).rstrip("\r\n")
            offset += len(line)
            text = text.removeprefix(BOM) if row == 0 else text
            if text.strip():
                yield row, text


def decode_utf8(content: bytes, *, path: Path | None = None, offset: int = 0) -> str:
    """Return `content` decoded; `offset` is where it stands in the file at `path`.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise InputError(
            f"expected UTF-8 text, found the byte 0x{content[fault.start]:02x} ({fault.reason})",
            path=path,
            place=f"byte {offset + fault.start}",
            remedy="save it as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8",
        ) from None


def _open(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
