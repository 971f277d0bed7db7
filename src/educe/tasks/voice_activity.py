"""Voice activity detection: from when to when somebody speaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from educe.media.audio import audio_windows, peak_normalized
from educe.model import Model
from educe.model.card import Activation, VoiceOutput
from educe.tasks.answer import Prediction
from educe.tasks.base import Feeds, Findings, Item, Outputs, TaskOptions
from educe.tasks.scores import class_scores
from educe.tasks.sounds import SoundTask


class VoiceActivity(SoundTask):
    """Gives the segments of speech in a sound, in the order of time.

    Each step of the model sees `window_samples` new samples behind `context_samples` of the past, which are
    zeros at the start; the last window is filled with zeros. One item is run at a time.
    """

    name = "voice-activity-detection"
    stepwise: ClassVar[bool] = True

    def __init__(self, model: Model, options: TaskOptions) -> None:
        """Settle input and output.

        Raises:
            CardError: the card has no ``[audio]``, or does not fit the model.
        """
        super().__init__(model, options)
        self.window_seconds = self.audio.window_samples / self.audio.sample_rate
        self._check_card()

    @property
    def rules(self) -> VoiceOutput:
        """What makes segments of probabilities: the card's rules, with the threshold that was asked for."""
        if self.options.threshold is None:
            return self.card.voice
        return msgspec.structs.replace(self.card.voice, score_threshold=self.options.threshold)

    def preprocess(self, items: Sequence[Item[np.ndarray]]) -> Feeds:
        """Return the windows of the one item, f32[steps, 1, context + window], as a read-only view."""
        (item,) = items
        samples = peak_normalized(item.content) if self.audio.normalize == "peak" else item.content
        context, window = self.audio.context_samples, self.audio.window_samples
        samples = np.concatenate([np.zeros(context, np.float32), samples])
        windows = audio_windows(samples, context + window, window, self.options.limits)
        item.memory["steps"] = len(windows)
        return {self.input_name: windows[:, None]}

    def postprocess(self, outputs: Outputs, items: Sequence[Item[np.ndarray]]) -> list[Findings]:
        """Return the segments of speech in the one item, each with the mean probability of its windows."""
        (item,) = items
        probabilities = speech_probabilities(outputs, self.output_name, self.card.scores.activation)
        num_steps = item.memory["steps"]
        if len(probabilities) != num_steps:
            raise self.card_error(
                f"output {self.output_name!r} has {len(probabilities)} values for {num_steps} windows",
                "name an output with one probability for each window, in [scores]",
            )
        found = segments(probabilities.tolist(), self.window_seconds, self.rules)
        total_seconds = len(item.content) / self.audio.sample_rate
        times = padded(found, self.window_seconds, self.rules.padding_seconds, total_seconds)
        scores = [float(probabilities[start:end].mean()) for start, end in found]
        return [Findings(self._best(times, scores))]

    def _best(self, times: list[tuple[float, float]], scores: list[float]) -> list[Prediction]:
        kept = sorted(range(len(scores)), key=lambda index: -scores[index])[: self.options.top]
        return [
            Prediction(
                label="speech",
                score=scores[index],
                start_seconds=times[index][0],
                end_seconds=times[index][1],
            )
            for index in sorted(kept)
        ]

    def _check_card(self) -> None:
        if self.audio.spectrum is not None:
            raise self.card_error("voice activity takes a waveform", "leave out [audio.spectrum]")
        if self.audio.hop_samples not in (None, self.audio.window_samples):
            raise self.card_error("hop_samples is not window_samples", "leave out hop_samples")
        size = self.audio.context_samples + self.audio.window_samples
        mismatch = self.input_type.mismatch(np.broadcast_to(np.float32(0), (1, size)))
        if mismatch:
            raise self.card_error(
                f"input {self.input_name!r}: {mismatch}",
                "correct window_samples and context_samples in [audio]",
            )


def speech_probabilities(outputs: Outputs, name: str, activation: Activation = "none") -> np.ndarray:
    """Return the probability of speech in each window, f32[steps], from the stacked outputs of all steps."""
    return class_scores(outputs[name], activation).ravel()


def segments(
    probabilities: Sequence[float], window_seconds: float, rules: VoiceOutput
) -> list[tuple[int, int]]:
    """Return the segments of speech, each as its first window and the one after its last.

    A segment begins at a window whose probability reaches `score_threshold`. It ends before the first window
    of a pause: at least `min_silence_seconds` of windows all below ``score_threshold - hysteresis``. Windows
    in between neither begin nor end one.
    """
    quiet_needed = max(1, _windows(rules.min_silence_seconds, window_seconds))
    found: list[tuple[int, int]] = []
    start, quiet = None, 0
    for index, probability in enumerate(probabilities):
        if start is None:
            start = index if probability >= rules.score_threshold else None
            quiet = 0
            continue
        quiet = quiet + 1 if probability < rules.score_threshold - rules.hysteresis else 0
        if quiet == quiet_needed:
            found.append((start, index + 1 - quiet))
            start = None
    if start is not None:
        found.append((start, len(probabilities) - quiet))
    shortest = _windows(rules.min_speech_seconds, window_seconds)
    return [(start, end) for start, end in found if end - start >= shortest]


def padded(
    found: Sequence[tuple[int, int]], window_seconds: float, padding_seconds: float, total_seconds: float
) -> list[tuple[float, float]]:
    """Return segments of windows as seconds, lengthened at both ends by `padding_seconds`.

    Neighbours that would overlap meet in the middle of the pause; none leaves 0..`total_seconds`.
    """
    bounds = np.array(found, np.float64).reshape(-1, 2) * window_seconds
    middles = (bounds[:-1, 1] + bounds[1:, 0]) / 2
    starts = np.maximum(bounds[:, 0] - padding_seconds, np.concatenate([[0.0], middles]))
    ends = np.minimum(bounds[:, 1] + padding_seconds, np.concatenate([middles, [total_seconds]]))
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _windows(seconds: float, window_seconds: float) -> int:
    """Return how many windows last `seconds` at least; the margin is for 0.7 / 0.1 and its like."""
    return math.ceil(seconds / window_seconds - 1e-9)
