"""Pictures and videos as one thing: a stream of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator

from PIL import Image

from educe.errors import InputError
from educe.files import open_regular
from educe.limits import Limits
from educe.media.image import ImageSource, read_image
from educe.media.video import HEAD_BYTES, read_video, video_container

SUFFIXES = frozenset(
    ".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm "
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts".split()
)
"""How pictures and videos are called in a folder."""


def read_frames(
    source: ImageSource, limits: Limits
) -> Iterator[tuple[Image.Image, int | None, float | None]]:
    """Yield each picture in `source` with its position and time, which a still picture does not have.

    Which of the two a file is, is decided by its content.
    """
    if isinstance(source, (str, os.PathLike)) and is_video(source):
        for frame in read_video(source, limits):
            yield frame.image, frame.index, frame.time_seconds
    elif isinstance(source, bytes) and video_container(source[:HEAD_BYTES]):
        raise InputError("is a video, which is read from a file only", remedy="save it to a file first")
    else:
        yield read_image(source, limits), None, None


def is_video(path: str | os.PathLike[str]) -> bool:
    """Say whether the file at `path` begins as a video does."""
    with open_regular(path) as file:
        try:
            return video_container(file.read(HEAD_BYTES)) is not None
        except OSError as fault:
            raise InputError(
                f"cannot be read: {fault.strerror}", path=path, remedy="check the disk"
            ) from None
