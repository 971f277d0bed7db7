"""Which runner a model needs: by the name of its architecture."""

from __future__ import annotations

from educe.errors import UnsupportedModelError, nearest
from educe.generate.architectures import ARCHITECTURES
from educe.generate.architectures.recurrent import RECURRENT
from educe.generate.base import StepRunner
from educe.generate.encoder_decoder import ENCODER_DECODERS, EncoderDecoder
from educe.generate.recurrent import RecurrentRunner
from educe.generate.recurrent_translation import RecurrentEncoderDecoder
from educe.generate.runner import Runner
from educe.model.checkpoint import Checkpoint

RUNNERS: dict[str, type[StepRunner]] = {
    **dict.fromkeys(ARCHITECTURES, Runner),
    **dict.fromkeys(RECURRENT, RecurrentRunner),
}
"""What runs each type of model that continues a text."""

SOURCE_RUNNERS: dict[str, type[EncoderDecoder | RecurrentEncoderDecoder]] = {
    **dict.fromkeys(ENCODER_DECODERS, EncoderDecoder),
    "lstm_translation": RecurrentEncoderDecoder,
}
"""What runs each type of model that writes a text about a source."""


def runner_for(checkpoint: Checkpoint) -> type[StepRunner]:
    """Return what runs a language model.

    Raises:
        UnsupportedModelError: nothing does.
    """
    model_type = checkpoint.model_type
    if model_type not in RUNNERS:
        raise UnsupportedModelError(
            f"language models of the type {model_type!r} are not run yet",
            path=checkpoint.path,
            remedy=nearest(model_type, RUNNERS),
        )
    return RUNNERS[model_type]


def encoder_decoder_for(checkpoint: Checkpoint) -> type[EncoderDecoder | RecurrentEncoderDecoder]:
    """Return what runs a model that reads one text and writes another; it refuses what it does not know."""
    return SOURCE_RUNNERS.get(checkpoint.model_type, EncoderDecoder)
