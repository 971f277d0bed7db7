"""Transcriptions: sounds to what is said in them, as text, subtitles, or with times."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from educe.generate.transcript import Transcript
from educe.generate.transcription import SAMPLE_RATE, Transcriber
from educe.media.audio import open_sound
from educe.serve.faults import BadRequest
from educe.serve.http import sse
from educe.serve.http.exchange import Request, Response, json_response
from educe.serve.http.forms import FORM, Part, read_form
from educe.serve.http.invalid import invalid
from educe.serve.http.openai import audio_types as audio
from educe.serve.http.openai.errors import OPENAI, in_words_of
from educe.serve.http.openai.streaming import streamed
from educe.serve.http.openai.writing import deployed, language_model
from educe.serve.http.routes import Content, Route
from educe.serve.inference import Inference
from educe.serve.room import charge
from educe.serve.text_tensors import Work
from educe.serve.threads import aside

_PLAIN = "text/plain; charset=utf-8"
_VTT = "text/vtt; charset=utf-8"


@dataclass(frozen=True)
class Audio:
    """The route of transcriptions.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                "/v1/audio/transcriptions",
                self.transcribe,
                "Write down what is said in a sound; events if it is to stream.",
                takes=Content(FORM, audio.TranscriptionForm),
                gives=(audio.Transcription | audio.VerboseTranscription, _PLAIN, _VTT, sse.MEDIA_TYPE),
                family=OPENAI,
            )
        ]

    async def transcribe(self, request: Request) -> Response:
        """Write down what is said in a sound."""
        most = self.inference.settings.server_limits.num_parts
        asked = await aside(len(request.body), lambda: _read(request, most))
        if asked.stream:
            if asked.response_format != "json":
                raise BadRequest("streams are of the form json", place="response_format")
            return await streamed(self._events(request, asked), request.id)
        samples, transcript = await self._transcript(request, asked)
        return _answer(asked.response_format, len(samples) / SAMPLE_RATE, transcript)

    async def _events(self, request: Request, asked: audio.TranscriptionForm) -> AsyncGenerator[bytes, None]:
        samples, transcript = await self._transcript(request, asked)
        for index, segment in enumerate(transcript.segments):
            yield _event(audio.TranscriptDelta(segment.text if index == 0 else f" {segment.text}"))
        yield _event(audio.TranscriptDone(transcript.text, _usage(len(samples) / SAMPLE_RATE)))

    async def _transcript(
        self, request: Request, asked: audio.TranscriptionForm
    ) -> tuple[np.ndarray, Transcript]:
        limits = self.inference.settings.limits
        deployment = await deployed(self.inference, asked.model)
        with deployment, in_words_of({"": "file"}):
            language_model(deployment, "transcriber")
            assert deployment.lane is not None
            opened = partial(open_sound, asked.file, SAMPLE_RATE, limits)
            samples = await deployment.lane.read(opened, self.inference.pool, request.deadline)
            charge(samples.nbytes)
            options: dict[str, Any] = {"language": asked.language}
            if asked.temperature:
                options["temperature"] = asked.temperature
            work = Work([samples], options, _transcripts)
            (transcript,), _ = await deployment.lane.submit(
                object(), work, _seconds(samples), deadline=request.deadline
            )
            return samples, transcript


def _transcripts(model: Transcriber, sounds: Sequence[np.ndarray], **options: Any) -> list[Transcript]:
    return [model.transcribe(sound, **options) for sound in sounds]


def _seconds(samples: np.ndarray) -> int:
    return math.ceil(len(samples) / SAMPLE_RATE)


def _read(request: Request, most_parts: int) -> audio.TranscriptionForm:
    fields: dict[str, object] = {}
    for part in read_form(request, most_parts):
        name, value = part.name, part.content if part.name == "file" else _text(part)
        if name.endswith("[]"):
            listed = fields.setdefault(name, [])
            assert isinstance(listed, list)
            listed.append(value)
        elif name in fields:
            raise BadRequest("the field stands twice", place=name)
        else:
            fields[name] = value
    try:
        return msgspec.convert(fields, audio.TranscriptionForm, strict=False, builtin_types=(bytes,))
    except msgspec.ValidationError as fault:
        raise invalid(fault, audio.TranscriptionForm) from None


def _text(part: Part) -> str:
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise BadRequest("the field is no UTF-8", place=part.name) from None


def _answer(form: str, seconds: float, transcript: Transcript) -> Response:
    if form == "json":
        return json_response(audio.Transcription(transcript.text, _usage(seconds)))
    if form == "verbose_json":
        segments = [
            audio.TranscriptionSegment(index, segment.start_seconds, segment.end_seconds, segment.text)
            for index, segment in enumerate(transcript.segments)
        ]
        return json_response(
            audio.VerboseTranscription(
                transcript.language or "", seconds, transcript.text, segments, _usage(seconds)
            )
        )
    if form == "vtt":
        return Response(transcript.vtt().encode(), _VTT)
    text = transcript.srt() if form == "srt" else f"{transcript.text}\n"
    return Response(text.encode(), _PLAIN)


def _usage(seconds: float) -> audio.SoundUsage:
    return audio.SoundUsage(math.ceil(seconds))


def _event(data: audio.TranscriptDelta | audio.TranscriptDone) -> bytes:
    return sse.event(data, str(data.__struct_config__.tag))
