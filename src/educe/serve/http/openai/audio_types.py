"""The bodies of transcriptions."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field


class TranscriptionForm(Struct, kw_only=True, forbid_unknown_fields=True):
    """A sound to write down, as a form.

    Attributes:
        file: The sound file's content.
        temperature: At which tokens are drawn; 0 tries the likeliest first, then higher ones where it has to.
        timestamp_granularities: Segments have times; words have none.
    """

    file: bytes
    model: str
    language: str | None = None
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    timestamp_granularities: list[Literal["segment"]] = field(default=[], name="timestamp_granularities[]")
    stream: bool = False
    prompt: Literal[""] = ""


class SoundUsage(Struct):
    """How long a sound was, in whole seconds."""

    seconds: int
    type: Literal["duration"] = "duration"


class Transcription(Struct):
    """What is said in a sound."""

    text: str
    usage: SoundUsage


class TranscriptionSegment(Struct):
    """What is said in a part of a sound; times are in seconds."""

    id: int
    start: float
    end: float
    text: str


class VerboseTranscription(Struct):
    """What is said in a sound, and when.

    Attributes:
        language: The code of the language spoken; empty where the model is not told it.
        duration: The sound's, in seconds.
    """

    language: str
    duration: float
    text: str
    segments: list[TranscriptionSegment]
    usage: SoundUsage
    task: str = "transcribe"


class TranscriptDelta(Struct, tag_field="type", tag="transcript.text.delta"):
    """The next words of a transcript."""

    delta: str


class TranscriptDone(Struct, tag_field="type", tag="transcript.text.done"):
    """A whole transcript."""

    text: str
    usage: SoundUsage
