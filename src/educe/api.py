"""The doors of the package: `load`, `compile`, `predictor`, and those of language models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from educe import engines
from educe.engines.base import OPTION_NAMES, Executable
from educe.errors import OptionError, refuse_unknown
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model import Card, Model
from educe.tasks import TaskOptions, task_for
from educe.tasks.predictor import Predictor

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from educe.generate.embedding import Embedder
    from educe.generate.generator import Generator
    from educe.generate.parameters import Progress
    from educe.generate.transcription import Transcriber
    from educe.generate.translation import Translator
    from educe.model.checkpoint import Checkpoint

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model"


def load(
    source: ModelSource,
    *,
    card: str | os.PathLike[str] | Card | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **unknown: Any,
) -> Model:
    """Read a model, verify it, and find its card; nothing is compiled yet.

    Args:
        source: The path of a model file or of the folder that holds it; the file's content; an
            `onnx.ModelProto`; or an `onnx_ir.Model`, which is copied.
        card: A card, the path of one, or the name of a preset, instead of the one found with the model.
        limits: The bounds on what is read.

    Raises:
        ModelFileError: the file is missing or broken.
        UnsupportedFormatError: the file is of a kind that Educe does not read.
        LimitError: the file is larger than `limits` allow.
        CardError: the card is wrong, or does not fit the model.
        OptionError: there is no such preset or keyword.

    Example:
        >>> import educe
        >>> educe.load("zoo/mnist/model.onnx").signature.inputs["Input3"].shape
        (1, 1, 28, 28)
    """
    import onnx
    import onnx_ir as ir

    from educe import cards, formats, graph

    refuse_unknown("keyword", unknown, ("card", "limits"))
    if card is not None and not isinstance(card, (str, os.PathLike, Card)):
        raise OptionError(
            f"card is a {type(card).__name__}", remedy="give a path, a preset's name, or an educe.Card"
        )
    if isinstance(source, ir.Model):
        source = ir.to_proto(source)
    if isinstance(source, onnx.ModelProto):
        source = source.SerializeToString()
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise OptionError(
            f"a model cannot be loaded from a {type(source).__name__}",
            remedy="give a path, bytes, an onnx.ModelProto or an onnx_ir.Model",
        )
    model = graph.normalize(formats.load(source, limits))
    return cards.resolve(model, Path(card) if isinstance(card, os.PathLike) else card, limits)


def compile(model: Model | ModelSource, *, engine: str | None = None, **options: Any) -> Executable:
    """Compile a model for this machine.

    Args:
        model: A loaded model, or what `load` takes.
        engine: An engine's name; see `educe.engines`. The default one if absent.
        **options: The fields of `educe.Options`.

    Raises:
        OptionError: there is no such engine or option.
        UnsupportedModelError: the engine cannot run the model; the error lists the nodes.
    """
    return engines.compile(_loaded(model), engine, **options)


def predictor(
    model: Model | ModelSource,
    *,
    task: str | None = None,
    engine: str | None = None,
    batch: int | None = None,
    top: int | None = None,
    threshold: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **options: Any,
) -> Predictor:
    """Bind a model to its task and an engine: raw input in, answers out.

    Args:
        model: A loaded model, or what `load` takes.
        task: A task's name, instead of the card's.
        engine: An engine's name.
        batch: Inputs run at once.
        top: Most predictions in an answer.
        threshold: Lowest score of a prediction.
        limits: The bounds on input files, and on the model file if `model` is none that was loaded.
        **options: The fields of `educe.Options`.

    Raises:
        OptionError: there is no such task, engine or option.
        CardError: the card lacks what the task needs.
    """
    own = ("task", "engine", "batch", "top", "threshold", "limits")
    refuse_unknown("keyword", options, (*own, *OPTION_NAMES))
    if top is not None and (not isinstance(top, int) or top < 1):
        raise OptionError(f"top={top!r} is not a positive integer", remedy="use 1 or more")
    if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise OptionError(f"threshold={threshold!r} is not within 0 and 1", remedy="use a score such as 0.5")
    chosen = task_for(_loaded(model, limits), task, TaskOptions(top, threshold, limits))
    return Predictor(chosen, engines.compile(chosen.model, engine, **options), batch)


def generator(
    source: str | os.PathLike[str],
    *,
    precision: str = "auto",
    cache: str = "bf16",
    context: int | None = None,
    memory_bytes: int | None = None,
    max_sequences: int = 16,
    threads: int | None = None,
    lookup: bool = True,
    draft: str | os.PathLike[str] | None = None,
    num_draft_tokens: int = 4,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Generator:
    """Read a language model from its own files, ready to write.

    Args:
        source: A folder as Hugging Face or ml5's charRNN lay it out; a GGUF or llama2.c ``.bin`` file, or the
            folder of one.
        precision: How weights are held and products computed; see `Generator`, as for all that follow.
        cache: How keys and values are held: ``f32``, ``bf16`` or ``int8``.
        context: Most tokens of a prompt and its text together.
        memory_bytes: Memory of the cache of keys and values.
        max_sequences: Most texts that are written at once.
        threads: Threads of a step.
        lookup: Whether tokens are guessed from what stood before, and verified.
        draft: The files of a smaller model of the same vocabulary that guesses instead.
        num_draft_tokens: How many tokens it guesses.
        progress: What is told of the packing of weights, which is done once: how much is done, and of which.
        limits: The bounds on what is read.

    Raises:
        ModelFileError: a file is missing or broken; the error says which, and how to get it.
        UnsupportedFormatError: the file is of a kind that Educe does not read.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
        OptionError: the numbers do not fit each other, or the memory is too small.
    """
    from educe.formats import checkpoint
    from educe.generate.generator import Generator

    return Generator(
        _checkpoint(source, "generator", limits),
        precision=precision,
        cache=cache,
        context=context,
        memory_bytes=memory_bytes,
        max_sequences=max_sequences,
        threads=threads,
        lookup=lookup,
        draft=None if draft is None else checkpoint.load(draft, limits),
        num_draft_tokens=num_draft_tokens,
        progress=progress,
        limits=limits,
    )


def translator(
    source: str | os.PathLike[str],
    *,
    precision: str = "f32",
    threads: int | None = None,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Translator:
    """Read a model that translates from its own files.

    Args:
        source: A folder as Hugging Face or CTranslate2 lay it out, or TensorFlow.js's of a Keras translator.
        precision: How weights are held and products computed; see `Translator`, as for all that follow.
        threads: Threads of a step.
        progress: What is told of the packing of weights.
        limits: The bounds on what is read.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.

    Example:
        >>> import educe
        >>> educe.translator("zoo/transliteration").translate(["محمد"])
        ['mahmad']
    """
    from educe.generate.translation import Translator

    model = _checkpoint(source, "translator", limits)
    return Translator(model, precision=precision, threads=threads, progress=progress, limits=limits)


def transcriber(
    source: str | os.PathLike[str],
    *,
    precision: str = "f32",
    threads: int | None = None,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Transcriber:
    """Read a model that writes down what is said in sounds.

    Args:
        source: A folder as Hugging Face lays it out, of the type ``whisper``.
        precision: How weights are held and products computed; see `Transcriber`, as for all that follow.
        threads: Threads of a step.
        progress: What is told of the packing of weights.
        limits: The bounds on what is read.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
    """
    from educe.generate.transcription import Transcriber

    model = _checkpoint(source, "transcriber", limits)
    return Transcriber(model, precision=precision, threads=threads, progress=progress, limits=limits)


def embedder(
    source: str | os.PathLike[str],
    *,
    precision: str = "f32",
    threads: int | None = None,
    batch_tokens: int = 512,
    limits: Limits = DEFAULT_LIMITS,
) -> Embedder:
    """Read a model that makes vectors of texts.

    Args:
        source: A folder as Hugging Face or Sentence Transformers lay it out.
        precision: How weights are held and products computed; see `Embedder`, as for all that follow.
        threads: Threads of a run.
        batch_tokens: How many tokens run at once.
        limits: The bounds on what is read.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
        OptionError: `batch_tokens` is less than 1.
    """
    from educe.generate.embedding import Embedder

    model = _checkpoint(source, "embedder", limits)
    return Embedder(model, precision=precision, threads=threads, batch_tokens=batch_tokens, limits=limits)


def _checkpoint(source: str | os.PathLike[str], door: str, limits: Limits) -> Checkpoint:
    from educe.formats import checkpoint
    from educe.generate.doors import check_door

    model = checkpoint.load(source, limits)
    check_door(model, door)
    return model


def _loaded(model: Model | ModelSource, limits: Limits = DEFAULT_LIMITS) -> Model:
    return model if isinstance(model, Model) else load(model, limits=limits)
