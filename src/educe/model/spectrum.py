"""`Spectrum`: waveforms to log-mel spectrograms and MFCCs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from educe.errors import CardError
from educe.model.card import SpectrumInput

Curve: TypeAlias = Callable[[np.ndarray], np.ndarray]
_FRAMES_AT_ONCE = 2048

SLANEY_HZ_PER_MEL = 200 / 3
SLANEY_BREAK_HZ = 1000.0
SLANEY_LOG_STEP = np.log(6.4) / 27


class Spectrum:
    """Features of waveforms at one sample rate, by the rules of a card; immutable.

    The frames begin at sample 0 and every `hop_samples` after it; a rest that fills no frame is left out.
    Each is multiplied by the window and padded with zeros to `fft_size`; the magnitudes of its Fourier
    transform (or their squares) are summed under triangles equally wide on the mel scale, and the logarithm
    is taken. MFCCs are a DCT-II of these (Davis and Mermelstein, 1980).

    Attributes:
        rules: The section of the card.
        num_bins: Values in a frame.
    """

    def __init__(self, rules: SpectrumInput, sample_rate: int) -> None:
        """Precompute window, filters and cosines.

        Raises:
            CardError: the rules contradict each other or the sample rate.
        """
        high_hz = sample_rate / 2 if rules.high_hz is None else rules.high_hz
        _check(rules, high_hz, sample_rate)
        self.rules = rules
        self._window = window(rules.window, rules.frame_samples).astype(np.float32)
        self._filters = mel_filters(rules, high_hz, sample_rate).astype(np.float32)
        self._cosines = cosines(rules.mel_bins, rules.coefficients).astype(np.float32)
        self.num_bins = rules.coefficients if rules.kind == "mfcc" else rules.mel_bins

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames a waveform of `num_samples` has; 0 if it is shorter than one."""
        return max(0, 1 + (num_samples - self.rules.frame_samples) // self.rules.hop_samples)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return the features of one waveform or of several.

        Args:
            waveform: f32[samples] or f32[batch, samples]; not modified.

        Returns:
            f32[frames, bins] or f32[batch, frames, bins].
        """
        batch = np.atleast_2d(waveform)
        count = self.num_frames(batch.shape[1])
        features = np.empty((len(batch), count, self.num_bins), np.float32)
        if count:
            frames = np.lib.stride_tricks.sliding_window_view(batch, self.rules.frame_samples, axis=1)
            frames = frames[:, :: self.rules.hop_samples]
            # A block of frames at a time stays in the cache, and bounds the memory of a long sound.
            rows = max(1, _FRAMES_AT_ONCE // count)
            for row in range(0, len(batch), rows):
                for first in range(0, count, _FRAMES_AT_ONCE):
                    block = np.s_[row : row + rows, first : first + _FRAMES_AT_ONCE]
                    features[block] = self._features(frames[block])
        return features if waveform.ndim == 2 else features[0]

    def _features(self, frames: np.ndarray) -> np.ndarray:
        rules = self.rules
        magnitudes = np.abs(np.fft.rfft(frames * self._window, rules.fft_size)).astype(np.float32)
        energies = (magnitudes if rules.power == 1 else magnitudes**2) @ self._filters
        energies += np.float32(rules.log_floor)
        if rules.log == "ln":
            levels = np.log(energies)
        else:
            levels = np.log10(energies) * np.float32(20 / rules.power if rules.log == "db" else 1)
        return np.asarray(levels if rules.kind == "log-mel" else levels @ self._cosines)


def window(kind: str, size: int) -> np.ndarray:
    """Return the periodic window function f64[size]: ``a - (1 - a) cos(2 pi n / size)``."""
    offset = {"hann": 0.5, "hamming": 0.54, "rectangular": 1.0}[kind]
    return offset - (1 - offset) * np.cos(2 * np.pi * np.arange(size) / size)


def cosines(num_inputs: int, num_outputs: int) -> np.ndarray:
    """Return the DCT-II as f64[inputs, outputs]: ``sqrt(2 / N) cos(pi k (2 n + 1) / (2 N))``."""
    positions = np.arange(num_inputs)[:, None] * 2 + 1
    angles = np.pi * np.arange(num_outputs) * positions / (2 * num_inputs)
    return np.asarray(np.sqrt(2 / num_inputs) * np.cos(angles))


def mel_filters(rules: SpectrumInput, high_hz: float, sample_rate: int) -> np.ndarray:
    """Return the weight of each frequency in each mel filter, f64[fft_size // 2 + 1, mel_bins].

    Filter i rises from 0 at edge i to 1 at edge i + 1, and falls to 0 at edge i + 2; the edges are
    equally far from each other on the mel scale.
    """
    to_mel, to_hertz = SCALES[rules.mel_scale]
    edges = np.linspace(to_mel(np.float64(rules.low_hz)), to_mel(np.float64(high_hz)), rules.mel_bins + 2)
    edges_hz = to_hertz(edges)
    points = np.arange(rules.fft_size // 2 + 1) * (sample_rate / rules.fft_size)
    if rules.mel_triangles == "mel":
        points = to_mel(points)
    else:
        edges = edges_hz
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (points[:, None] - left) / (centre - left)
    falling = (right - points[:, None]) / (right - centre)
    filters = np.maximum(0, np.minimum(rising, falling))
    return filters * (2 / (edges_hz[2:] - edges_hz[:-2])) if rules.mel_norm == "slaney" else filters


def htk_mel(hertz: np.ndarray) -> np.ndarray:
    """Return frequencies on the mel scale of the Hidden Markov Model Toolkit."""
    return np.asarray(2595 * np.log10(1 + hertz / 700))


def htk_hertz(mel: np.ndarray) -> np.ndarray:
    """Return the inverse of `htk_mel`."""
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


def slaney_mel(hertz: np.ndarray) -> np.ndarray:
    """Return frequencies on the mel scale of Slaney's Auditory Toolbox: linear to 1 kHz, then logarithmic."""
    above = np.log(np.maximum(hertz, SLANEY_BREAK_HZ) / SLANEY_BREAK_HZ) / SLANEY_LOG_STEP
    return np.asarray(np.minimum(hertz, SLANEY_BREAK_HZ) / SLANEY_HZ_PER_MEL + above)


def slaney_hertz(mel: np.ndarray) -> np.ndarray:
    """Return the inverse of `slaney_mel`."""
    break_mel = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL
    below = np.minimum(mel, break_mel) * SLANEY_HZ_PER_MEL
    return np.asarray(below * np.exp(np.maximum(mel - break_mel, 0) * SLANEY_LOG_STEP))


SCALES: dict[str, tuple[Curve, Curve]] = {
    "htk": (htk_mel, htk_hertz),
    "slaney": (slaney_mel, slaney_hertz),
}
"""Each mel scale: hertz to mel, and back."""


def _check(rules: SpectrumInput, high_hz: float, sample_rate: int) -> None:
    if rules.frame_samples > rules.fft_size:
        cause = f"frame_samples = {rules.frame_samples} is more than fft_size = {rules.fft_size}"
        raise _card_error(cause, "use a larger fft_size")
    if not 0 <= rules.low_hz < high_hz <= sample_rate / 2:
        cause = f"the filters reach from {rules.low_hz:g} to {high_hz:g} Hz, of {sample_rate / 2:g} Hz"
        raise _card_error(cause, "low_hz < high_hz <= half the sample rate")
    if rules.kind == "mfcc" and rules.coefficients > rules.mel_bins:
        cause = f"{rules.coefficients} coefficients cannot come of {rules.mel_bins} mel_bins"
        raise _card_error(cause, "keep at most as many coefficients as there are filters")


def _card_error(cause: str, remedy: str) -> CardError:
    return CardError(cause, place="[audio.spectrum]", remedy=remedy)
