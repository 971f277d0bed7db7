"""What all tasks on sounds share: one sound in, at the card's rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from educe.media.audio import open_sound
from educe.model import Model
from educe.model.card import AudioInput
from educe.tasks.base import Item, Task, TaskOptions


class SoundTask(Task[np.ndarray]):
    """Takes sounds.

    A source is a path, the bytes of a sound file, or an array f32[samples] at the card's rate.

    Attributes:
        audio: The card's section ``[audio]``.
        input_name: The graph input that takes the sound or its features.
        input_type: Its type.
        output_name: The graph output with the scores.
    """

    def __init__(self, model: Model, options: TaskOptions) -> None:
        """Settle input and output.

        Raises:
            CardError: the card has no ``[audio]``, or does not fit the model.
        """
        super().__init__(model, options)
        if self.card.audio is None:
            raise self.card_error("the card has no section [audio]", "say how a sound becomes the input")
        self.audio: AudioInput = self.card.audio
        self.input_name, self.input_type = self.tensor_input(self.audio.input)
        self.output_name = self.tensor_output(self.card.scores.output)

    def open(self, source: Any) -> Iterator[Item[np.ndarray]]:
        """Yield the one sound in `source`, as f32[samples] in -1..1 at the card's rate."""
        yield Item(open_sound(source, self.audio.sample_rate, self.options.limits))
