"""Videos in requests: stored while their frames are read, since a video is read from a file only."""

from __future__ import annotations

import tempfile
from typing import IO, Any

from educe.media.video import HEAD_BYTES, video_container

_TASKS = ("image-classification", "object-detection", "face-detection")


def is_video(task: str, source: Any) -> bool:
    """Say whether a raw input of a model for `task` is a video, whose frames are to be answered about."""
    return task in _TASKS and isinstance(source, bytes) and video_container(source[:HEAD_BYTES]) is not None


def store(content: bytes) -> IO[bytes]:
    """Return a file that has a video's content, and is removed when it is closed."""
    file = tempfile.NamedTemporaryFile(prefix="educe-", suffix=".video")  # noqa: SIM115
    try:
        file.write(content)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file
