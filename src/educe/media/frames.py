"""Pictures and videos as one thing: a stream of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator

from PIL import Image

from educe.files import open_regular
from educe.limits import Limits
from educe.media.image import ImageSource, is_image, read_image
from educe.media.video import read_video

SUFFIXES = frozenset(
    ".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm "
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts".split()
)
"""How pictures and videos are called in a folder."""

# Every packet of an MPEG transport stream has this length, and begins with the letter G.
_TS_PACKET_BYTES = 188
_HEAD_BYTES = _TS_PACKET_BYTES + 1


def read_frames(
    source: ImageSource, limits: Limits
) -> Iterator[tuple[Image.Image, int | None, float | None]]:
    """Yield each picture in `source` with its position and time, which a still picture does not have.

    Which of the two a file is, is decided by its content.
    """
    if isinstance(source, (str, os.PathLike)) and is_video(source):
        for frame in read_video(source, limits):
            yield frame.image, frame.index, frame.time_seconds
    else:
        yield read_image(source, limits), None, None


def is_video(path: str | os.PathLike[str]) -> bool:
    """Say whether the file at `path` looks like a video: it is not empty, and does not begin as a picture."""
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    return _has_video_magic(head) and not is_image(head)


def _has_video_magic(head: bytes) -> bool:
    return (
        head[4:8] == b"ftyp"  # ISO base media: MP4, MOV
        or head.startswith((b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u"))
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or (head[:1] == b"G" and head[_TS_PACKET_BYTES:] == b"G")
    )
