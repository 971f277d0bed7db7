"""Which runner a model needs: by the name of its architecture."""

from __future__ import annotations

from educe.errors import UnsupportedModelError
from educe.generate.architectures import architecture
from educe.generate.architectures.recurrent import RECURRENT
from educe.generate.base import StepRunner
from educe.generate.encoder_decoder import EncoderDecoder
from educe.generate.recurrent import RecurrentRunner
from educe.generate.recurrent_translation import RecurrentEncoderDecoder
from educe.generate.runner import Runner
from educe.model.checkpoint import Checkpoint


def runner_for(checkpoint: Checkpoint) -> type[StepRunner]:
    """Return what runs a language model.

    Raises:
        UnsupportedModelError: nothing does.
    """
    if checkpoint.model_type in RECURRENT:
        return RecurrentRunner
    try:
        architecture(checkpoint.model_type)
    except UnsupportedModelError as error:
        raise error.located(checkpoint.path) from None
    return Runner


def encoder_decoder_for(checkpoint: Checkpoint) -> type[EncoderDecoder | RecurrentEncoderDecoder]:
    """Return what runs a model that reads one text and writes another; it refuses what it does not know."""
    return RecurrentEncoderDecoder if checkpoint.model_type == "lstm_translation" else EncoderDecoder
