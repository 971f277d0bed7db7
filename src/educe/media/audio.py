"""Reading sounds: any container and sample format, to one channel at the rate that a model wants."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from educe.errors import EduceError, InputError, MissingLibraryError
from educe.files import open_regular
from educe.limits import Limits

LOWEST_RATE, HIGHEST_RATE = 100, 1_000_000
MAX_SAMPLE = 16.0
SILENT_PEAK = 1e-9
_BLOCK_VALUES = 2**18
_UNKNOWN_FRAMES = 2**62
_EXPECTED = "WAV, FLAC, OGG, MP3, AIFF; M4A, MP4, WebM and AAC with educe[video]"


def open_sound(source: Any, sample_rate: int, limits: Limits) -> np.ndarray:
    """Return a sound as f32[samples] in -1..1, one channel, at `sample_rate`.

    Args:
        source: A path, the bytes of a sound file, or an array: floats in -1..1, one channel, already at
            `sample_rate`. An array of f32 is not copied.

    Raises:
        InputError: the source is none of these, is broken, or holds no sound.
        LimitError: it is longer than `limits.audio_seconds`.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source, sample_rate, limits)
    if isinstance(source, (str, os.PathLike, bytes)):
        return read_audio(source, sample_rate, limits)
    raise InputError(
        f"expected a path, bytes or a NumPy array, found {type(source).__name__}",
        remedy="give the name of a sound file",
    )


def read_audio(source: str | os.PathLike[str] | bytes, sample_rate: int, limits: Limits) -> np.ndarray:
    """Return the sound in a file as f32[samples] in -1..1, one channel, at `sample_rate`.

    The container is told by its content. Channels are averaged; another rate is resampled (soxr, HQ).
    The file is decoded in blocks, so that a header that lies about the length costs no memory.

    Args:
        source: A path, or the bytes of the file.
        sample_rate: Of the result, in hertz.

    Raises:
        InputError: the file is broken, is no sound, is empty, or has samples that are no numbers.
        LimitError: the sound is longer than `limits.audio_seconds`.
        MissingLibraryError: the container needs a library that is not installed.
    """
    try:
        with ExitStack() as stack:
            file = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
            stack.enter_context(file)
            return _resampled(_open_stream(_Input(file), stack), sample_rate, limits)
    except EduceError as error:
        if not isinstance(source, bytes):
            error.located(source)
        raise


def audio_windows(samples: np.ndarray, window_samples: int, hop_samples: int, limits: Limits) -> np.ndarray:
    """Return the windows that cover a sound, as a read-only view f32[windows, window_samples].

    They begin at sample 0 and every `hop_samples` after it, until one holds the end of the sound; the last
    is filled with zeros. A sound shorter than a window has one.

    Raises:
        LimitError: a window is larger than `limits.tensor_bytes`.
    """
    limits.check("tensor_bytes", window_samples * samples.itemsize)
    count = 1 + max(0, math.ceil((len(samples) - max(window_samples, hop_samples)) / hop_samples))
    missing = (count - 1) * hop_samples + window_samples - len(samples)
    if missing > 0:
        samples = np.concatenate([samples, np.zeros(missing, samples.dtype)])
    return np.lib.stride_tricks.sliding_window_view(samples, window_samples)[::hop_samples][:count]


def peak_normalized(samples: np.ndarray) -> np.ndarray:
    """Return f32[samples] divided by the largest; a sound with no positive sample is returned as it is."""
    largest = samples.max(initial=0)
    return samples / largest if largest > SILENT_PEAK else samples


class _Input:
    """A file in which a seek to nowhere stays where it is.

    A broken header can ask for one; an exception would be printed by the decoder's callback, not raised.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.tell = file.tell
        self._file = file

    def seek(self, offset: int, whence: int = 0) -> int:
        with suppress(OSError, ValueError, OverflowError):
            self._file.seek(offset, whence)
        return self._file.tell()


@dataclass(frozen=True)
class _Stream:
    """A sound being decoded: blocks of f32[frames, channels]; `seconds` is what the header claims."""

    rate: int
    seconds: float | None
    blocks: Iterator[np.ndarray]


def _open_stream(file: _Input, stack: ExitStack) -> _Stream:
    head = file.read(12)
    file.seek(0)
    # The container is named to FFmpeg: left to guess, it would also read playlists, which open other files.
    if head[4:8] == b"ftyp":
        return _av_stream(file, "mp4", stack)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _av_stream(file, "matroska", stack)
    if head[:1] == b"\xff" and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"):
        return _av_stream(file, "aac", stack)
    return _soundfile_stream(file, stack)


def _soundfile_stream(file: _Input, stack: ExitStack) -> _Stream:
    try:
        import soundfile
    except (ImportError, OSError):
        raise MissingLibraryError("soundfile", extra="audio", purpose="reading sound") from None

    class ForwardSound(soundfile.SoundFile):  # type: ignore[misc]
        """A file that is only read onwards.

        soundfile seeks after each read where it can, and fails on a FLAC whose header has no length.
        """

        def seekable(self) -> bool:
            return False

    try:
        sound = stack.enter_context(ForwardSound(file))
    except soundfile.LibsndfileError as fault:
        raise _not_sound(fault.error_string) from None

    def blocks() -> Iterator[np.ndarray]:
        num_frames = max(1, _BLOCK_VALUES // sound.channels)
        try:
            while len(block := sound.read(num_frames, dtype="float32", always_2d=True)):
                yield block
        except soundfile.LibsndfileError as fault:
            raise _broken(fault.error_string) from None

    seconds = sound.frames / sound.samplerate if sound.frames < _UNKNOWN_FRAMES else None
    return _Stream(sound.samplerate, seconds, blocks())


def _av_stream(file: _Input, container_format: str, stack: ExitStack) -> _Stream:
    try:
        import av
    except ImportError:
        purpose = f"reading sound from {container_format}"
        raise MissingLibraryError("av", extra="video", purpose=purpose) from None
    try:
        container = stack.enter_context(av.open(file, format=container_format))
    except (av.FFmpegError, ValueError) as fault:
        raise _not_sound(getattr(fault, "strerror", None) or str(fault)) from None
    if not container.streams.audio:
        raise InputError("holds no sound, only other streams", remedy="give a file with a sound track")
    track = container.streams.audio[0]
    if track.codec_context is None:
        raise _not_sound("its codec is unknown")
    seconds = None if container.duration is None else container.duration / av.time_base

    def blocks() -> Iterator[np.ndarray]:
        # Channels side by side: PyAV reads beyond the end of a planar frame of eight channels or more.
        resampler = av.AudioResampler(format="flt", layout=track.layout, rate=track.rate)
        try:
            # None at the end fetches what the resampler still holds.
            for decoded in itertools.chain(container.decode(track), [None]):
                for frame in resampler.resample(decoded):
                    if frame.format.name != "flt" or frame.rate != track.rate:
                        raise _broken("its format changes midway")
                    yield frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
        except (av.FFmpegError, ValueError) as fault:
            raise _broken(getattr(fault, "strerror", None) or str(fault)) from None

    return _Stream(track.rate, seconds, blocks())


def _resampled(stream: _Stream, sample_rate: int, limits: Limits) -> np.ndarray:
    if not LOWEST_RATE <= stream.rate <= HIGHEST_RATE:
        raise InputError(
            f"a rate of {stream.rate:,} Hz found, expected {LOWEST_RATE:,} to {HIGHEST_RATE:,}",
            remedy="check how the file was written",
        )
    if stream.seconds is not None:
        limits.check("audio_seconds", math.ceil(stream.seconds))
    blocks = _averaged(stream, limits)
    parts = list(blocks if stream.rate == sample_rate else _resample(blocks, stream.rate, sample_rate))
    samples = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(samples):
        raise InputError("holds no sound: 0 samples found", remedy="check how the file was written")
    return samples


def _averaged(stream: _Stream, limits: Limits) -> Iterator[np.ndarray]:
    num_frames = 0
    for block in stream.blocks:
        num_frames += len(block)
        limits.check("audio_seconds", math.ceil(num_frames / stream.rate))
        _check_samples(block)
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def _resample(blocks: Iterator[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    try:
        import soxr
    except ImportError:
        purpose = f"resampling from {rate:,} to {sample_rate:,} Hz"
        raise MissingLibraryError("soxr", extra="audio", purpose=purpose) from None
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(np.ascontiguousarray(block))
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _check_samples(samples: np.ndarray) -> None:
    # Written so that NaN fails, too.
    peak = np.abs(samples).max(initial=0)
    if not peak <= MAX_SAMPLE:
        raise InputError(
            f"a sample of {peak:g} found, expected -1 to 1",
            remedy="divide the samples by their full scale; 32768 for 16 bits",
        )


def _checked_array(samples: np.ndarray, sample_rate: int, limits: Limits) -> np.ndarray:
    if samples.ndim != 1 or samples.dtype.kind != "f" or not len(samples):
        raise InputError(
            f"expected one channel of floats f32[samples], found {samples.dtype}{list(samples.shape)}",
            remedy=f"give samples in -1..1 at {sample_rate:,} Hz, the channels averaged",
        )
    limits.check("audio_seconds", math.ceil(len(samples) / sample_rate))
    _check_samples(samples)
    return samples.astype(np.float32, copy=False)


def _not_sound(reason: str) -> InputError:
    return InputError(f"is no sound that can be read: {reason}", remedy=f"Educe reads {_EXPECTED}")


def _broken(reason: str) -> InputError:
    return InputError(f"the sound is broken: {reason}", remedy="copy the file again, or convert it")
