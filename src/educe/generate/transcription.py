"""`Transcriber`: sounds of any length to what is said in them, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError, OptionError, UnsupportedModelError, nearest
from educe.generate.closing import Closing
from educe.generate.configuration import Configuration
from educe.generate.encoder_decoder import EncoderDecoder, Source
from educe.generate.fallback import TEMPERATURES, Fallback, Written
from educe.generate.logits import log_softmax
from educe.generate.parameters import Progress
from educe.generate.search import SearchOptions
from educe.generate.timestamps import Piece, TimestampRules, divided
from educe.generate.transcript import Segment, Transcript
from educe.generate.writer import Writer
from educe.limits import DEFAULT_LIMITS, Limits
from educe.media.audio import open_sound
from educe.model.card import SpectrumInput
from educe.model.checkpoint import Checkpoint, TokenizerFiles
from educe.model.spectrum import Spectrum
from educe.text.tokenizer import Tokenizer

SAMPLE_RATE, HOP = 16_000, 160
_WINDOW = 400
_FRAMES_PER_STEP = 2
_DECADES = 8.0
_LEAST = -10.0
_MOST_BINS = 1024
# How the vocabularies of the third version and of those before it name the token of silence.
_SILENCE = ("<|nospeech|>", "<|nocaptions|>")
_TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class _Wanted:
    """How the windows of a sound are written down."""

    task: str
    options: SearchOptions
    fallback: Fallback
    conditions: bool


class Transcriber(Closing):
    """A model of the type ``whisper``, ready to run until it is closed. It is used by one thread at a time.

    A sound is heard in windows of 30 seconds; each begins where the last whole segment before it ends. The
    same sound gives the same transcript, also where tokens are drawn.

    Args:
        checkpoint: The model.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        threads: Threads of a step; the machine's cores if absent.
        memory_bytes: Memory of the cache of keys and values; if absent, what sounds and texts can need, up to
            a quarter of the machine's.
        limits: The bounds on sounds.
        progress: What is told of the packing of weights.

    Attributes:
        checkpoint: The model.
        languages: The codes of the languages that the model knows; empty if it is not told.

    Raises:
        ModelFileError: a file is missing or broken, weights are misshapen, or the tokenizer or a language has
            a token that the model lacks.
        UnsupportedModelError: the model is of another type.
    """

    _held = ("_model", "_writer")

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "f32",
        threads: int | None = None,
        memory_bytes: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
    ) -> None:
        self.checkpoint, self._limits = checkpoint, limits
        self._tokenizer = Tokenizer.from_files(_tokenizer_files(checkpoint), limits)
        fields = {**checkpoint.config, **checkpoint.generation}
        config = Configuration(checkpoint.config, checkpoint.path)
        self._num_tokens = config.integer("vocab_size")
        self._languages = _languages(fields, self._num_tokens, checkpoint.path)
        self.languages = sorted(self._languages)
        self._start, none = self._id("<|startoftranscript|>"), self._id("<|notimestamps|>")
        if none + 1 == self._num_tokens:
            raise self._misfit("has no timestamps")
        self._before = self._known_id("<|startofprev|>")
        self._silence = next((found for found in map(self._known_id, _SILENCE) if found is not None), None)
        self._model = EncoderDecoder(
            checkpoint, precision=precision, threads=threads, progress=progress, max_sequences=8
        )
        initial = fields.get("max_initial_timestamp_index")
        most = initial if type(initial) is int and initial >= 0 else None
        self._rules = TimestampRules(none + 1, self._id("<|endoftext|>"), none, most)
        options = SearchOptions.of_model(checkpoint, self._model.max_target)
        self._options = dataclasses.replace(options, timestamps=self._rules, forced_bos_token_id=None)
        self._frames = 2 * self._model.max_source
        bins = config.integer("num_mel_bins", 80, most=_MOST_BINS)
        self._spectrum = Spectrum(_rules(bins), SAMPLE_RATE)
        self._writer = Writer(self._model, self._options.max_length, memory_bytes)

    def transcribe(
        self,
        sound: Any,
        *,
        language: str | None = None,
        task: str = "transcribe",
        num_beams: int | None = None,
        temperature: float | Sequence[float] = TEMPERATURES,
        compression_ratio_threshold: float | None = Fallback.compression_ratio_threshold,
        logprob_threshold: float | None = Fallback.logprob_threshold,
        no_speech_threshold: float | None = Fallback.no_speech_threshold,
        condition_on_previous_text: bool = True,
    ) -> Transcript:
        """Return what is said in a sound, and when.

        A window's text that is not believed is written again at the next temperature, see `Fallback`.

        Args:
            sound: A path, the bytes of a sound file, or samples f32 in -1..1 at 16,000 Hz.
            language: The code of the language spoken; found by the first window if absent.
            task: ``transcribe``, or ``translate`` into English, which takes a model of several languages.
            num_beams: How many texts are continued side by side at temperature 0; as many as the model asks
                for if absent.
            temperature: One at which tokens are drawn, or several, of which the next one is tried where the
                text of the one before is not believed.
            compression_ratio_threshold: Above it a text repeats itself, and is not believed.
            logprob_threshold: Below it, on average of its tokens, a text is not believed.
            no_speech_threshold: The probability of silence above which a window with a text below
                `logprob_threshold` has none. What is None is not looked at.
            condition_on_previous_text: Whether a window's text continues those before it.

        Raises:
            InputError: the sound cannot be read.
            OptionError: the language or the task is not known, a number is out of range, or it is closed.
            LimitError: the sound is longer than `limits.audio_seconds`, or there are too many beams.
        """
        self._check_open()
        self._check(task, language)
        fallback = Fallback(
            temperature=(temperature,) if isinstance(temperature, (int, float)) else temperature,
            compression_ratio_threshold=compression_ratio_threshold,
            logprob_threshold=logprob_threshold,
            no_speech_threshold=no_speech_threshold,
        )
        options = self._options
        if num_beams is not None:
            options = dataclasses.replace(options, num_beams=num_beams)
        samples = open_sound(sound, SAMPLE_RATE, self._limits)
        wanted = _Wanted(task, options, fallback, condition_on_previous_text)
        return self._transcript(self.features(samples), len(samples) // HOP, language, wanted)

    def _check(self, task: str, language: str | None) -> None:
        """Raise OptionError for a task or a language that is not known."""
        for place, given, known in (("task", task, _TASKS), ("language", language, self.languages)):
            if given not in known and not (place == "language" and given is None):
                cause = f"the {place} {given!r} is not known"
                remedy = nearest(str(given), known) if known else f"leave the {place} out"
                raise OptionError(cause, place=place, remedy=remedy)
        if not self.languages and task != "transcribe":
            raise OptionError(
                "the model's files name no languages, without which it does not translate",
                place="task",
                remedy="download generation_config.json into the folder, or take a multilingual model",
            )

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Return the spectrogram of a sound and of a window of silence after it, f32[mel bins, frames]."""
        silence = np.zeros(self._frames * HOP, np.float32)
        padded = np.pad(np.concatenate([samples, silence]), _WINDOW // 2, mode="reflect")
        levels = np.maximum(self._spectrum(padded)[: len(samples) // HOP + self._frames], _LEAST)
        levels = np.maximum(levels, levels.max() - np.float32(_DECADES))
        return np.ascontiguousarray(((levels + 4) / 4).T.astype(np.float32))

    def _transcript(
        self, features: np.ndarray, num_frames: int, language: str | None, wanted: _Wanted
    ) -> Transcript:
        found: list[Segment] = []
        said: list[int] = []
        seek = 0
        while seek < num_frames:
            rest = min(self._frames, num_frames - seek)
            with self._heard(features[None, :, seek : seek + self._frames]) as source:
                if language is None and self._languages:
                    language = self._language(source)
                written = self._written(source, said, self._prompt(language, wanted.task), wanted)
            if wanted.fallback.is_silent(written):
                seek += rest
                continue
            pieces, resume = divided(written.tokens, self._rules.first)
            found += filter(None, (self._segment(piece, seek, rest) for piece in pieces))
            seek += rest if resume is None else min(resume * _FRAMES_PER_STEP, rest)
            said += [token for piece in pieces for token in piece.tokens]
            if not (wanted.conditions and written.is_context):
                said.clear()
        return Transcript(language, tuple(found))

    def _prompt(self, language: str | None, task: str) -> list[int]:
        if language is None:
            return [self._start]
        return [self._start, self._languages[language], self._id(f"<|{task}|>")]

    def _id(self, token: str) -> int:
        found = self._known_id(token)
        if found is None:
            raise self._misfit(f"has no token {token}")
        return found

    def _known_id(self, token: str) -> int | None:
        """Return the id of a token, which is one of the model's; None where the tokenizer lacks it."""
        found = self._tokenizer.added_id(token)
        if found is not None and found >= self._num_tokens:
            raise self._misfit(
                f"has {token} as token {found:,}, and the model has {self._num_tokens:,} tokens"
            )
        return found

    def _misfit(self, cause: str) -> ModelFileError:
        """Return the error for a tokenizer that is not the model's."""
        return ModelFileError(
            cause,
            path=self.checkpoint.path,
            place="tokenizer",
            remedy="use the tokenizer that came with the model",
        )

    def _heard(self, window: np.ndarray) -> AbstractContextManager[Source]:
        """Hold a window, f32[1, mel bins, frames], as the encoder has heard it."""
        return self._writer.reading(self._model.max_source, lambda blocks: self._model.hear(window, [blocks]))

    def _language(self, source: Source) -> str:
        """Return the code of the language that is likeliest to be spoken in a window."""
        logits = self._writer.logits(source, [self._start])
        return max(self._languages, key=lambda code: float(logits[self._languages[code]]))

    def _written(
        self, source: Source, said: Sequence[int], prompt: Sequence[int], wanted: _Wanted
    ) -> Written:
        """Return the text of a window that comes after what was said before it."""
        before = self._context(said)
        prompt = [*before, *prompt]
        no_speech = self._no_speech(source, prompt[: len(before) + 1])
        for temperature in wanted.fallback.temperature:
            options = wanted.options
            if temperature > 0:
                options = dataclasses.replace(options, num_beams=1)
            text = self._writer.search(source, prompt, options, temperature)
            tokens = text.tokens[len(prompt) :]
            # The score is the sum of the log-probabilities over this power of their number.
            logprob = text.score * max(1, len(tokens)) ** (options.length_penalty - 1)
            tokens = tuple(token for token in tokens if token not in options.eos_token_ids)
            written = Written(tokens, self._text(tokens), logprob, no_speech, temperature)
            if wanted.fallback.believes(written) or wanted.fallback.is_silent(written):
                break
        return written

    def _no_speech(self, source: Source, start: Sequence[int]) -> float:
        """Return the probability that nothing is said in a window, after all that a text starts with."""
        if self._silence is None:
            return 0.0
        return float(np.exp(log_softmax(self._writer.logits(source, start))[self._silence]))

    def _context(self, said: Sequence[int]) -> list[int]:
        """Return what stands before a window's text, of which it has less than half of the room."""
        most = self._options.max_length // 2 - 1
        if self._before is None or not said or most < 1:
            return []
        return [self._before, *said[-most:]]

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(token for token in tokens if token < self._rules.first).strip()

    def _segment(self, piece: Piece, seek: int, rest: int) -> Segment | None:
        text = self._text(piece.tokens)
        end = rest if piece.end is None else min(piece.end * _FRAMES_PER_STEP, rest)
        start = min(piece.start * _FRAMES_PER_STEP, end)
        return Segment(_seconds(seek + start), _seconds(seek + end), text) if text else None


def _tokenizer_files(checkpoint: Checkpoint) -> TokenizerFiles:
    """Return the tokenizer of a model that hears; an error if it does not, or has none."""
    if checkpoint.model_type != "whisper":
        raise UnsupportedModelError(
            f"models of the type {checkpoint.model_type!r} do not hear",
            path=checkpoint.path,
            remedy="give a folder of the type 'whisper'",
        )
    if checkpoint.tokenizer is None:
        raise ModelFileError(
            "has no tokenizer", path=checkpoint.path, remedy="download tokenizer.json into the folder"
        )
    return checkpoint.tokenizer


def _rules(mel_bins: int) -> SpectrumInput:
    """Return how Whisper hears."""
    return SpectrumInput(
        "log-mel",
        frame_samples=_WINDOW,
        hop_samples=HOP,
        fft_size=_WINDOW,
        power=2,
        mel_bins=mel_bins,
        low_hz=0.0,
        high_hz=SAMPLE_RATE / 2,
        mel_scale="slaney",
        mel_norm="slaney",
        log="log10",
        log_floor=1e-30,
    )


def _languages(fields: Mapping[str, Any], num_tokens: int, path: Path | None) -> dict[str, int]:
    """Return the token of each language, by its code, as generation_config.json has them."""
    listed = Configuration(fields, path, "generation_config.json").section("lang_to_id")
    return {
        name.strip("<|>"): listed.integer(name, least=0, most=num_tokens - 1)
        for name in fields.get("lang_to_id") or ()
    }


def _seconds(frames: int) -> float:
    return frames * HOP / SAMPLE_RATE
