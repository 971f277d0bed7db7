"""`Transcript`: what is said in a sound, and when; as plain text, SubRip and WebVTT (w3.org/TR/webvtt1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """What is said in a part of a sound.

    Attributes:
        start_seconds: When it begins.
        end_seconds: When it ends.
        text: What is said.
    """

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What is said in a sound.

    Attributes:
        language: The code of the language spoken; None where the model is not told it, or nothing was heard.
        segments: Its parts, in order of time.
    """

    language: str | None
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(segment.text for segment in self.segments)

    def srt(self) -> str:
        """Return subtitles as SubRip's files have them."""
        cues = (
            f"{number}\n{_span(segment, ',')}\n{_lines(segment.text)}\n"
            for number, segment in enumerate(self.segments, 1)
        )
        return "\n".join(cues)

    def vtt(self) -> str:
        """Return subtitles as WebVTT has them."""
        cues = (f"\n{_span(segment, '.')}\n{_escaped(segment.text)}\n" for segment in self.segments)
        return "".join(["WEBVTT\n", *cues])


def _span(segment: Segment, point: str) -> str:
    return f"{_clock(segment.start_seconds, point)} --> {_clock(segment.end_seconds, point)}"


def _clock(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _lines(text: str) -> str:
    """Return a text without blank lines, which would end it, and without arrows, which would begin one."""
    return "\n".join(filter(None, map(str.strip, text.splitlines()))).replace("-->", "→")


def _escaped(text: str) -> str:
    return _lines(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
