"""Audio classification: what a sound is, such as a spoken word or a dog."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from educe.errors import CardError
from educe.media.audio import audio_windows, peak_normalized
from educe.model import Dim, Model, TensorType
from educe.model.spectrum import Spectrum
from educe.tasks.answer import Prediction
from educe.tasks.base import Feeds, Findings, Item, Outputs, TaskOptions
from educe.tasks.scores import class_scores, ranked
from educe.tasks.sounds import SoundTask


class AudioClassification(SoundTask):
    """Gives the classes of a whole sound: the scores of its windows are averaged.

    The signature decides how the features of a window lie: frames before bins, bins before frames, or all in
    one dimension; dimensions of size 1 may stand anywhere. Where both orders fit, frames come first.
    """

    name = "audio-classification"
    default_batch: ClassVar[int] = 8

    def __init__(self, model: Model, options: TaskOptions) -> None:
        """Settle input, output and features.

        Raises:
            CardError: the card has no ``[audio]``, or does not fit the model.
        """
        super().__init__(model, options)
        self.spectrum = self._spectrum()
        self.features = self._features_shape()
        self.shape, self.bins_first = self._arrangement(self.input_type)

    def preprocess(self, items: Sequence[Item[np.ndarray]]) -> Feeds:
        """Return the features of all windows of all `items`, [windows, ...]; each remembers its count."""
        parts = []
        for item in items:
            parts.append(self._features(item.content))
            item.memory["windows"] = len(parts[-1])
        return {self.input_name: np.concatenate(parts)}

    def postprocess(self, outputs: Outputs, items: Sequence[Item[np.ndarray]]) -> list[Findings]:
        """Return the best classes of each of `items`."""
        scores = class_scores(outputs[self.output_name], self.card.scores.activation)
        counts = [item.memory["windows"] for item in items]
        if len(scores) != sum(counts):
            raise self.card_error(
                f"output {self.output_name!r} has {len(scores)} rows for {sum(counts)} windows",
                "name an output with one row for each window, in [scores]",
            )
        rows = np.split(scores, np.cumsum(counts)[:-1])
        return [Findings(self._ranked(row.mean(axis=0))) for row in rows]

    def _ranked(self, scores: np.ndarray) -> list[Prediction]:
        return ranked(self.card, scores, self.top_classes, self.options.threshold)

    def _features(self, samples: np.ndarray) -> np.ndarray:
        audio, limits = self.audio, self.options.limits
        if audio.normalize == "peak":
            samples = peak_normalized(samples)
        windows = audio_windows(
            samples, audio.window_samples, audio.hop_samples or audio.window_samples, limits
        )
        limits.check("tensor_bytes", len(windows) * math.prod(self.features) * 4)
        features = windows if self.spectrum is None else self.spectrum(windows)
        if self.bins_first:
            features = features.transpose(0, 2, 1)
        return features.reshape(len(features), *self.shape).astype(self.input_type.numpy_dtype, copy=False)

    def _spectrum(self) -> Spectrum | None:
        rules = self.audio.spectrum
        try:
            return None if rules is None else Spectrum(rules, self.audio.sample_rate)
        except CardError as error:
            raise self.card_error(f"{error.place}: {error.cause}", error.remedy or "") from None

    def _features_shape(self) -> tuple[int, ...]:
        window_samples = self.audio.window_samples
        if self.spectrum is None:
            return (window_samples,)
        num_frames = self.spectrum.num_frames(window_samples)
        if not num_frames:
            raise self.card_error(
                f"window_samples = {window_samples} is less than one frame of the spectrum",
                f"frame_samples is {self.spectrum.rules.frame_samples}",
            )
        return (num_frames, self.spectrum.num_bins)

    def _arrangement(self, wanted: TensorType) -> tuple[tuple[int, ...], bool]:
        """Return the shape of a window's features in the input, and whether bins come before frames."""
        if wanted.dtype not in ("f16", "f32", "f64"):
            raise self.card_error(
                f"input {self.input_name!r} is {wanted}, not of floats", "name another input"
            )
        if wanted.shape is None:
            return self.features, False
        flat = (math.prod(self.features),)
        for order in (self.features, self.features[::-1], flat):
            shape = _fitted(order, wanted.shape[1:])
            if shape is not None:
                return shape, order not in (self.features, flat)
        raise self.card_error(
            f"input {self.input_name!r} is {wanted}, a window gives features {list(self.features)}",
            "correct window_samples or the spectrum in [audio]",
        )


def _fitted(sizes: tuple[int, ...], dims: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """Return `dims` with `sizes` in place of all but the 1s, or None where they disagree."""
    sizes = tuple(size for size in sizes if size != 1)
    if len(sizes) != sum(dim != 1 for dim in dims):
        return None
    rest = iter(sizes)
    shape = tuple(1 if dim == 1 else next(rest) for dim in dims)
    fits = all(size == dim for size, dim in zip(shape, dims, strict=True) if isinstance(dim, int))
    return shape if fits else None
