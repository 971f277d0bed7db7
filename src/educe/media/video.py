"""Video files as a stream of frames, and frames as a video file; decoded and encoded by PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from educe.errors import InputError, MissingLibraryError
from educe.files import open_regular
from educe.limits import Limits

HEAD_BYTES = 189
"""How much of a file `video_container` needs."""

_MAGIC = {
    b"\x1aE\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"FLV": "flv",
    b"\0\0\1\xba": "mpeg",
    b"\0\0\1\xb3": "mpegvideo",
    b"0&\xb2u": "asf",
}


def video_container(head: bytes) -> str | None:
    """Return FFmpeg's name for the container of a file that begins with `head`, or None if it is no video.

    Only containers that hold their frames themselves are known: a playlist names other files.
    """
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    # Each packet of a transport stream has 188 bytes and begins with the letter G.
    if head[:1] == b"G" and head[188:189] == b"G":
        return "mpegts"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


@dataclass(frozen=True)
class VideoFrame:
    """One frame: its position from 0, its time, and its picture in the mode ``RGB``."""

    index: int
    time_seconds: float
    image: Image.Image


@dataclass(frozen=True)
class VideoFacts:
    """What a video file's header says; `num_frames` is None where it does not tell."""

    width: int
    height: int
    frames_per_second: float
    num_frames: int | None


def read_video(path: str | os.PathLike[str], limits: Limits) -> Iterator[VideoFrame]:
    """Yield the frames of a video in order, upright; memory stays constant however long it is.

    Raises:
        InputError: the file is no video, or is broken or cut off from some frame on; the frames before it
            are yielded.
        LimitError: the header announces more pixels than `limits` allow.
    """
    with open_regular(path) as file, _opened(file, path) as container:
        stream = _stream(container, path, limits)
        stream.thread_type = "AUTO"
        # A frame may be larger than the header says; the decoder then refuses it.
        stream.codec_context.options = {"max_pixels": str(limits.image_pixels)}
        index = 0
        try:
            for frame in container.decode(stream):
                yield VideoFrame(index, _seconds(frame, stream, index), _upright(frame))
                index += 1
        except (_av().error.FFmpegError, ValueError) as fault:
            raise InputError(
                f"cannot be decoded: {_reason(fault)}",
                path=path,
                place=f"frame {index}",
                remedy="play it, or convert it again",
            ) from None
        if index == 0:
            raise InputError("holds no frame", path=path, remedy="play it, or convert it again")
        if _is_cut_off(stream, os.fstat(file.fileno()).st_size):
            raise InputError(
                "the file ends before its last frame",
                path=path,
                place=f"frame {index}",
                remedy="copy or download it again",
            )


def video_facts(path: str | os.PathLike[str], limits: Limits) -> VideoFacts:
    """Return what the header of the video at `path` says."""
    with open_regular(path) as file, _opened(file, path) as container:
        stream = _stream(container, path, limits)
        rate = stream.average_rate or Fraction(25)
        count = stream.frames or (int(stream.duration * stream.time_base * rate) if stream.duration else 0)
        return VideoFacts(stream.width, stream.height, float(rate), count or None)


class VideoWriter:
    """Writes frames to an H.264 ``.mp4`` file; a context manager.

    Args:
        path: The file, which is replaced.
        frames_per_second: The frame rate.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._container: Any = _av().open(str(path), "w")
        self._rate = Fraction(frames_per_second).limit_denominator(1001)
        self._stream: Any = None

    def write(self, image: Image.Image) -> None:
        """Append one frame of the mode ``RGB``.

        H.264 takes even sizes: an odd one loses its last row or column. A frame of another size than the
        first is cut to it, or filled up with black.
        """
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height = _even(image.width), _even(image.height)
            self._stream.pix_fmt = "yuv420p"
        cut = image.crop((0, 0, self._stream.width, self._stream.height))
        frame = _av().VideoFrame.from_ndarray(np.asarray(cut), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what the encoder still holds, and finish the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _even(size: int) -> int:
    return max(2, size // 2 * 2)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingLibraryError("av", extra="video", purpose="decoding video") from None
    av.logging.set_level(None)
    return av


def _opened(file: Any, path: str | os.PathLike[str]) -> Any:
    av = _av()
    container = video_container(file.read(HEAD_BYTES))
    file.seek(0)
    if container is None:
        raise InputError("is no video that Educe reads", path=path, remedy="use MP4, MKV, WebM or AVI")
    # From PyAV 19 on, text that is not UTF-8 in the metadata never keeps a file from being opened.
    is_lenient = int(av.__version__.split(".")[0]) >= 19
    options = {} if is_lenient else {"metadata_errors": "replace"}
    try:
        return av.open(file, "r", format=container, **options)
    except (av.error.FFmpegError, ValueError) as fault:
        raise InputError(
            f"is a broken video: {_reason(fault)}",
            path=path,
            remedy="open it in a player to see whether it is whole",
        ) from None


def _reason(fault: Exception) -> str:
    return getattr(fault, "strerror", None) or str(fault)


def _stream(container: Any, path: str | os.PathLike[str], limits: Limits) -> Any:
    if not container.streams.video:
        raise InputError("holds no video stream", path=path, remedy="give a video or a picture")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InputError("is coded in an unknown way", path=path, remedy="convert it to H.264")
    limits.check("image_pixels", stream.width * stream.height, path=path)
    return stream


def _is_cut_off(stream: Any, size_bytes: int) -> bool:
    """Say whether the container's index, where it has one, names frames beyond the end of the file."""
    return any(entry.pos + entry.size > size_bytes for entry in getattr(stream, "index_entries", ()))


def _seconds(frame: Any, stream: Any, index: int) -> float:
    if frame.time is not None:
        return float(frame.time)
    return index / float(stream.average_rate or 25)


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
