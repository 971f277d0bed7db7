"""``educe transcribe``: what is said in sounds, as text or subtitles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from educe.cli import options
from educe.cli.completions import write_text
from educe.cli.inputs import standard_input_bytes
from educe.cli.loading import CachingOptions, model_fields, open_transcriber
from educe.cli.options import amount, given
from educe.cli.saving import OutputFolder
from educe.cli.screen import json_line, print_failure, working
from educe.errors import EduceError, InputError, OptionError
from educe.generate.transcript import Transcript
from educe.generate.transcription import Transcriber
from educe.limits import DEFAULT_LIMITS

EXAMPLES = """
[bold]Examples[/]\n
educe transcribe ./whisper-base talk.mp3 --timestamps\n
educe transcribe ./whisper-base *.wav --language de --task translate --json\n
educe transcribe ./whisper-base film.m4a --srt --save subtitles
"""


@dataclass(frozen=True, kw_only=True)
class HearingOptions(options.OptionGroup):
    """How windows are heard, and which texts are believed; the keywords of `Transcriber.transcribe`."""

    language: Annotated[
        str | None,
        typer.Option("--language", metavar="CODE", help="The language spoken; heard if absent."),
    ] = None
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="transcribe, or translate into English.")
    ] = None
    num_beams: options.NumBeamsOption = None
    temperature: Annotated[list[float] | None, amount("Given again: for what is not believed.")] = None
    compression_ratio_threshold: Annotated[float | None, amount("Above it a text is a loop.")] = None
    logprob_threshold: Annotated[float | None, amount("Below it a text is not believed.")] = None
    no_speech_threshold: Annotated[float | None, amount("Above it there may be silence.")] = None
    condition_on_previous_text: Annotated[
        bool,
        typer.Option(
            "--condition-on-previous-text/--no-condition-on-previous-text",
            help="Whether a window's text continues those before it.",
        ),
    ] = True


def command(
    model: options.ModelArgument,
    sounds: Annotated[
        list[str], typer.Argument(metavar="AUDIO", help="Sound files, or - for standard input.")
    ],
    *,
    hearing: HearingOptions,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Say in seconds when each part is said.")
    ] = False,
    srt: Annotated[bool, typer.Option("--srt", help="Print subtitles as SubRip has them.")] = False,
    vtt: Annotated[bool, typer.Option("--vtt", help="Print subtitles as WebVTT has them.")] = False,
    save: options.SaveTextsOption = None,
    loading: CachingOptions,
    json: options.JsonOption = False,
) -> None:
    """Write down what is said in each AUDIO with MODEL, in windows of 30 seconds."""
    suffix, form = _form(timestamps=timestamps, srt=srt, vtt=vtt, json=json)
    chosen = hearing.keywords()
    folder = None if save is None else OutputFolder(save, map(Path, sounds))
    transcriber = open_transcriber(model, loading)
    status = 0
    for name in sounds:
        try:
            with working(f"hearing {name}"):
                transcript = transcriber.transcribe(_sound(name), **chosen)
        except EduceError as error:
            # A fault of the options is one of the command, not of each sound.
            if isinstance(error, OptionError):
                raise
            status = max(status, error.exit_status)
            print_failure(name, error, json=json)
        else:
            text = form(transcriber, name, transcript)
            write_text(text)
            if folder is not None:
                folder.write_text(name, suffix, text)
    if status:
        raise typer.Exit(status)


_Form = Callable[[Transcriber, str, Transcript], str]


def _form(*, timestamps: bool, srt: bool, vtt: bool, json: bool) -> tuple[str, _Form]:
    """Return the suffix of files, and what makes their text of a transcript."""
    if timestamps + srt + vtt + json > 1:
        raise OptionError(
            "a transcript has one form", remedy="choose one of --timestamps, --srt, --vtt and --json"
        )
    if json:
        return ".json", _as_json
    if srt:
        return ".srt", lambda transcriber, name, transcript: transcript.srt()
    if vtt:
        return ".vtt", lambda transcriber, name, transcript: transcript.vtt()
    return ".txt", _with_seconds if timestamps else _plain


def _sound(name: str) -> str | bytes:
    if not name:
        raise InputError("the name of an input is empty", remedy="name a sound file")
    return standard_input_bytes(DEFAULT_LIMITS) if name == "-" else name


def _plain(transcriber: Transcriber, name: str, transcript: Transcript) -> str:
    return f"{transcript.text}\n"


def _with_seconds(transcriber: Transcriber, name: str, transcript: Transcript) -> str:
    return "".join(
        f"{segment.start_seconds:8.2f} {segment.end_seconds:8.2f}  {segment.text}\n"
        for segment in transcript.segments
    )


def _as_json(transcriber: Transcriber, name: str, transcript: Transcript) -> str:
    fields = {
        "input": name,
        **given(language=transcript.language),
        "text": transcript.text,
        "segments": [asdict(segment) for segment in transcript.segments],
        "model": model_fields(transcriber),
    }
    return json_line(fields)
