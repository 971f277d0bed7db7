"""`Transcriber`: sounds of any length to what is said in them, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from educe.errors import ModelFileError, OptionError, UnsupportedModelError, nearest
from educe.generate.configuration import Configuration
from educe.generate.encoder_decoder import EncoderDecoder, Source, Target
from educe.generate.parameters import Progress
from educe.generate.search import SearchOptions
from educe.generate.timestamps import Piece, TimestampRules, divided
from educe.generate.transcript import Segment, Transcript
from educe.generate.writer import Writer
from educe.limits import DEFAULT_LIMITS, Limits
from educe.media.audio import open_sound
from educe.model.card import SpectrumInput
from educe.model.checkpoint import Checkpoint
from educe.model.spectrum import Spectrum
from educe.text.tokenizer import Tokenizer

SAMPLE_RATE, HOP = 16_000, 160
_WINDOW = 400
_FRAMES_PER_STEP = 2
_DECADES = 8.0
_LEAST = -10.0
_MOST_BINS = 1024
_TASKS = ("transcribe", "translate")


class Transcriber:
    """A model of the type ``whisper``, ready to run. It is used by one thread at a time.

    A sound is heard in windows of 30 seconds; each begins where the last whole segment before it ends.

    Args:
        checkpoint: The model.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        threads: Threads of a step; the machine's cores if absent.
        limits: The bounds on sounds.
        progress: What is told of the packing of weights.

    Attributes:
        checkpoint: The model.
        languages: The codes of the languages that the model knows; empty if it is not told.

    Raises:
        ModelFileError: a file is missing or broken, or weights are misshapen.
        UnsupportedModelError: the model is of another type.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "f32",
        threads: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
    ) -> None:
        if checkpoint.model_type != "whisper":
            raise UnsupportedModelError(
                f"models of the type {checkpoint.model_type!r} do not hear",
                path=checkpoint.path,
                remedy="give a folder of the type 'whisper'",
            )
        files, fields = checkpoint.tokenizer, {**checkpoint.config, **checkpoint.generation}
        if files is None:
            raise ModelFileError(
                "has no tokenizer", path=checkpoint.path, remedy="download tokenizer.json into the folder"
            )
        self.checkpoint = checkpoint
        self._tokenizer, self._limits = Tokenizer.from_files(files, limits), limits
        self._languages = _languages(fields.get("lang_to_id"))
        self.languages = sorted(self._languages)
        self._start, none = self._id("<|startoftranscript|>"), self._id("<|notimestamps|>")
        self._model = EncoderDecoder(
            checkpoint, precision=precision, threads=threads, progress=progress, max_sequences=8
        )
        initial = fields.get("max_initial_timestamp_index")
        most = initial if type(initial) is int and initial >= 0 else None
        self._rules = TimestampRules(none + 1, self._id("<|endoftext|>"), none, most)
        options = SearchOptions.of_model(checkpoint, self._model.max_target)
        self._options = dataclasses.replace(options, timestamps=self._rules, forced_bos_token_id=None)
        self._frames = 2 * self._model.max_source
        bins = Configuration(fields, checkpoint.path).integer("num_mel_bins", 80, most=_MOST_BINS)
        self._spectrum = Spectrum(_rules(bins), SAMPLE_RATE)
        self._writer = Writer(self._model, self._options.max_length)

    def transcribe(
        self,
        sound: Any,
        *,
        language: str | None = None,
        task: str = "transcribe",
        num_beams: int | None = None,
    ) -> Transcript:
        """Return what is said in a sound, and when.

        Args:
            sound: A path, the bytes of a sound file, or samples f32 in -1..1 at 16,000 Hz.
            language: The code of the language spoken; found by the first window if absent.
            task: ``transcribe``, or ``translate`` into English.
            num_beams: How many texts are continued side by side; as many as the model asks for if absent.

        Raises:
            InputError: the sound cannot be read.
            OptionError: the language or the task is not known.
            LimitError: the sound is longer than `limits.audio_seconds`.
        """
        for place, given, known in (("task", task, _TASKS), ("language", language, self.languages)):
            if given is not None and given not in known:
                cause = f"the {place} {given!r} is not known"
                raise OptionError(cause, place=place, remedy=nearest(given, known))
        samples = open_sound(sound, SAMPLE_RATE, self._limits)
        features = self.features(samples)
        if language is None and self._languages:
            language = self._heard(features[:, : self._frames])
        prompt = self._prompt(language, task)
        options = self._options
        if num_beams is not None:
            options = dataclasses.replace(options, num_beams=num_beams)
        return Transcript(language, tuple(self._segments(features, len(samples) // HOP, prompt, options)))

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Return the spectrogram of a sound and of a window of silence after it, f32[mel bins, frames]."""
        silence = np.zeros(self._frames * HOP, np.float32)
        padded = np.pad(np.concatenate([samples, silence]), _WINDOW // 2, mode="reflect")
        levels = np.maximum(self._spectrum(padded)[: len(samples) // HOP + self._frames], _LEAST)
        levels = np.maximum(levels, levels.max() - np.float32(_DECADES))
        return np.ascontiguousarray(((levels + 4) / 4).T.astype(np.float32))

    def _prompt(self, language: str | None, task: str) -> list[int]:
        if language is None:
            return [self._start]
        return [self._start, self._languages[language], self._id(f"<|{task}|>")]

    def _id(self, token: str) -> int:
        found = self._tokenizer.added_id(token)
        if found is None:
            raise ModelFileError(
                f"has no token {token}",
                place="tokenizer",
                remedy="use the tokenizer that came with the model",
            )
        return found

    def _heard(self, window: np.ndarray) -> str:
        """Return the code of the language that is likeliest to be spoken in a window."""
        model = self._model
        blocks = range(model.blocks_for(model.max_source))
        model.hear(window[None], [blocks])
        start = Target([self._start], 0, [0], source=Source(model.max_source, blocks))
        logits = model.decode([start])[0]
        return max(self._languages, key=lambda code: float(logits[self._languages[code]]))

    def _segments(
        self, features: np.ndarray, num_frames: int, prompt: Sequence[int], options: SearchOptions
    ) -> list[Segment]:
        found: list[Segment] = []
        seek = 0
        while seek < num_frames:
            rest = min(self._frames, num_frames - seek)
            tokens = self._written(features[None, :, seek : seek + self._frames], prompt, options)
            said, resume = divided(tokens, self._rules.first)
            found += filter(None, (self._segment(piece, seek, rest) for piece in said))
            seek += rest if resume is None else min(resume * _FRAMES_PER_STEP, rest)
        return found

    def _written(self, window: np.ndarray, prompt: Sequence[int], options: SearchOptions) -> list[int]:
        """Return the tokens of a window's text, without what begins and ends it."""
        length = self._model.max_source
        text = self._writer.write(
            [length], lambda _, blocks: self._model.hear(window, blocks), [prompt], options
        )
        return [token for token in text[0].tokens[len(prompt) :] if token not in options.eos_token_ids]

    def _segment(self, piece: Piece, seek: int, rest: int) -> Segment | None:
        text = self._tokenizer.decode(piece.words).strip()
        end = rest if piece.end is None else min(piece.end * _FRAMES_PER_STEP, rest)
        start = min(piece.start * _FRAMES_PER_STEP, end)
        return Segment(_seconds(seek + start), _seconds(seek + end), text) if text else None


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


def _languages(given: Any) -> dict[str, int]:
    """Return the token of each language, by its code, as generation_config.json has them."""
    listed = given.items() if isinstance(given, dict) else ()
    return {str(name).strip("<|>"): token for name, token in listed if type(token) is int}


def _seconds(frames: int) -> float:
    return frames * HOP / SAMPLE_RATE
