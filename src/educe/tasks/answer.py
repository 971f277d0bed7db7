"""`Answer`: what Educe says about one input, and what it used to say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np


class Prediction(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that the model sees in an input. Fields that do not apply are absent.

    Attributes:
        label: The class, by name.
        index: The class, by number.
        score: Its probability or confidence.
        value: For regression: the number predicted.
        box: For detection: left, top, right, bottom, in pixels of the original picture.
        start_seconds: For sound: where the segment begins.
        end_seconds: For sound: where it ends.
    """

    label: str | None = None
    index: int | None = None
    score: float | None = None
    value: float | None = None
    box: tuple[float, float, float, float] | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __repr__(self) -> str:
        words = [self.label] if self.label is not None else []
        words += [f"{self.score:.3f}"] if self.score is not None else []
        words += [f"{self.value:.6g}"] if self.value is not None else []
        if self.box is not None:
            words.append("[{:.0f} {:.0f} {:.0f} {:.0f}]".format(*self.box))
        if self.start_seconds is not None and self.end_seconds is not None:
            words.append(f"{self.start_seconds:.2f}-{self.end_seconds:.2f} s")
        return f"<{' '.join(words)}>"


class ModelId(msgspec.Struct, frozen=True):
    """The model that answered."""

    name: str
    sha256: str


class CardId(msgspec.Struct, frozen=True):
    """The card that the answer rests on."""

    source: str
    guessed: bool


class StageSeconds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the time went; of a batch, each answer carries its share.

    Attributes:
        compile: Compiling for sizes that the engine had not met before, which is no part of `run`.
    """

    preprocess: float
    run: float
    postprocess: float
    compile: float = 0.0


class TensorSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output array in a printed answer: `values` only up to `MAX_VALUES` elements.

    Attributes:
        file: The ``.npz`` file that holds the array, if it was saved.
    """

    dtype: str
    shape: tuple[int, ...]
    values: Any = None
    file: str | None = None


MAX_VALUES = 1000


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What Educe says about one input.

    Attributes:
        input: The input's name.
        task: What was asked of it.
        predictions: Best first, segments of sound in the order of time; absent for raw tensors.
        outputs: For raw tensors: the output arrays, by name. They belong to the caller.
        model: The model that answered.
        engine: The engine that ran it.
        card: Where the preprocessing came from, and whether it was guessed.
        seconds: Where the time went.
        frame: Position in a video.
        row: Position in a table or in a file of lines.
        time_seconds: Time in a video.
    """

    input: str
    task: str
    predictions: list[Prediction] | msgspec.UnsetType = msgspec.UNSET
    outputs: dict[str, np.ndarray] | None = None
    model: ModelId
    engine: str
    card: CardId
    seconds: StageSeconds
    frame: int | None = None
    row: int | None = None
    time_seconds: float | None = None

    def top(self, count: int = 1) -> list[Prediction]:
        """Return the best `count` predictions."""
        return [] if self.predictions is msgspec.UNSET else self.predictions[:count]

    def to_dict(self, saved: Path | None = None) -> dict[str, Any]:
        """Return the answer as plain values, as ``--json`` prints them.

        Args:
            saved: The ``.npz`` file that the outputs were written to, if they were.
        """
        outputs = {name: _summary(array, saved) for name, array in (self.outputs or {}).items()}
        plain = msgspec.to_builtins(msgspec.structs.replace(self, outputs=None))
        plain["seconds"] = {name: round(seconds, 6) for name, seconds in plain["seconds"].items()}
        if self.outputs is not None:
            plain["outputs"] = msgspec.to_builtins(outputs)
        return dict(plain)

    def __repr__(self) -> str:
        found = list(self.outputs or {}) if self.predictions is msgspec.UNSET else self.predictions[:3]
        return f"<Answer {self.input}: {found} by {self.engine}>"


def _summary(array: np.ndarray, saved: Path | None) -> TensorSummary:
    plain = array.astype(np.float64) if array.dtype.kind == "V" else array
    values = plain.tolist() if array.size <= MAX_VALUES and array.dtype.kind != "c" else None
    file = None if saved is None else str(saved)
    return TensorSummary(str(array.dtype), tuple(array.shape), values, file)
