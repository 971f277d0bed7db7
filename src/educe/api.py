"""The doors of the package: `load`, `compile`, `predictor`, and those of language models."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from educe import engines
from educe.engines.base import OPTION_NAMES, Executable
from educe.errors import OptionError, refuse_unknown
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model import Card, Model

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from typing_extensions import Unpack

    from educe.generate.embedding import Embedder
    from educe.generate.generator import Generator
    from educe.generate.parameters import Progress
    from educe.generate.transcription import Transcriber
    from educe.generate.translation import Translator
    from educe.model.checkpoint import Checkpoint
    from educe.tasks.predictor import Predictor

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model"
FilePath: TypeAlias = "str | os.PathLike[str]"


class LanguageModelOptions(TypedDict, total=False):
    """The keywords that all doors of language models take; the classes behind them have the defaults.

    Attributes:
        precision: How weights are held and products computed: ``auto``, ``f32``, ``bf16``, ``int8`` or
            ``int4``.
        threads: Threads of a step; one per usable core if absent.
        progress: What is told of the packing of weights, which is done once: how much is done, and of which.
    """

    precision: str
    threads: int | None
    progress: Progress | None


class GeneratorOptions(LanguageModelOptions, total=False):
    """The keywords of `generator`.

    Attributes:
        cache: How keys and values are held: ``f32``, ``bf16`` or ``int8``.
        context: Most tokens of a prompt and its text together.
        memory_bytes: Memory of the cache of keys and values.
        max_sequences: Most texts that are written at once.
        lookup: Whether tokens are guessed from what stood before, and verified.
        num_draft_tokens: How many tokens a draft model guesses.
    """

    cache: str
    context: int | None
    memory_bytes: int | None
    max_sequences: int
    lookup: bool
    num_draft_tokens: int


class ReaderOptions(LanguageModelOptions, total=False):
    """The keywords of `translator` and `transcriber`.

    Attributes:
        memory_bytes: Memory of the cache of keys and values.
    """

    memory_bytes: int | None


class EmbedderOptions(LanguageModelOptions, total=False):
    """The keywords of `embedder`.

    Attributes:
        batch_tokens: How many tokens run at once.
    """

    batch_tokens: int


def load(
    source: ModelSource,
    *,
    card: FilePath | Card | None = None,
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
    _check_limits(limits)
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
    from educe.tasks import TaskOptions, task_for
    from educe.tasks.predictor import Predictor

    own = ("task", "engine", "batch", "top", "threshold", "limits")
    refuse_unknown("keyword", options, (*own, *OPTION_NAMES))
    _check_limits(limits)
    asked = TaskOptions(top, threshold, limits)
    chosen = task_for(_loaded(model, limits), task, asked)
    return Predictor(chosen, engines.compile(chosen.model, engine, **options), batch)


def generator(
    source: FilePath,
    *,
    chat_template: FilePath | None = None,
    draft: FilePath | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **options: Unpack[GeneratorOptions],
) -> Generator:
    """Read a language model from its own files, ready to write.

    Args:
        source: A folder as Hugging Face or ml5's charRNN lay it out; a GGUF or llama2.c ``.bin`` file, or the
            folder of one.
        chat_template: What makes a prompt of a conversation, instead of the model's own: a Jinja template as
            a text, which has a brace, or the path of one.
        draft: The files of a smaller model of the same vocabulary, which guesses tokens.
        limits: The bounds on what is read.
        **options: The fields of `GeneratorOptions`.

    Raises:
        ModelFileError: a file is missing or broken; the error says which, and how to get it.
        UnsupportedFormatError: the file is of a kind that Educe does not read.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
        OptionError: there is no such keyword, the numbers do not fit each other, the memory is too small, or
            the template is broken.
    """
    from educe.generate.generator import Generator
    from educe.text.template import read_template

    own = ("chat_template", "draft", "limits")
    refuse_unknown("keyword", options, (*own, *GeneratorOptions.__optional_keys__))
    _check_options(options)
    model = _checkpoint(source, "generator", limits)
    if chat_template is not None and model.tokenizer is not None:
        tokenizer = dataclasses.replace(model.tokenizer, chat_template=read_template(chat_template, limits))
        model = dataclasses.replace(model, tokenizer=tokenizer)
    guesser = None if draft is None else _read(draft, limits)
    return Generator(model, draft=guesser, limits=limits, **options)


def translator(
    source: FilePath, *, limits: Limits = DEFAULT_LIMITS, **options: Unpack[ReaderOptions]
) -> Translator:
    """Read a model that translates from its own files.

    Args:
        source: A folder as Hugging Face or CTranslate2 lay it out, or TensorFlow.js's of a Keras translator.
        limits: The bounds on what is read.
        **options: The fields of `ReaderOptions`.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
        OptionError: there is no such keyword, or it does not take its value.

    Example:
        >>> import educe
        >>> educe.translator("zoo/transliteration").translate(["محمد"])
        ['mahmad']
    """
    from educe.generate.translation import Translator

    refuse_unknown("keyword", options, ("limits", *ReaderOptions.__optional_keys__))
    _check_options(options)
    return Translator(_checkpoint(source, "translator", limits), limits=limits, **options)


def transcriber(
    source: FilePath, *, limits: Limits = DEFAULT_LIMITS, **options: Unpack[ReaderOptions]
) -> Transcriber:
    """Read a model that writes down what is said in sounds.

    Args:
        source: A folder as Hugging Face lays it out, of the type ``whisper``.
        limits: The bounds on what is read.
        **options: The fields of `ReaderOptions`.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
        OptionError: there is no such keyword, or it does not take its value.
    """
    from educe.generate.transcription import Transcriber

    refuse_unknown("keyword", options, ("limits", *ReaderOptions.__optional_keys__))
    _check_options(options)
    return Transcriber(_checkpoint(source, "transcriber", limits), limits=limits, **options)


def embedder(
    source: FilePath, *, limits: Limits = DEFAULT_LIMITS, **options: Unpack[EmbedderOptions]
) -> Embedder:
    """Read a model that makes vectors of texts.

    Args:
        source: A folder as Hugging Face or Sentence Transformers lay it out.
        limits: The bounds on what is read.
        **options: The fields of `EmbedderOptions`.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the model is of a kind that Educe does not run, or that another door opens.
        OptionError: there is no such keyword, or `batch_tokens` is less than 1.
    """
    from educe.generate.embedding import Embedder

    refuse_unknown("keyword", options, ("limits", *EmbedderOptions.__optional_keys__))
    _check_options(options)
    return Embedder(_checkpoint(source, "embedder", limits), limits=limits, **options)


def _checkpoint(source: FilePath, door: str, limits: Limits) -> Checkpoint:
    from educe.generate.doors import check_door

    model = _read(source, limits)
    check_door(model, door)
    return model


def _read(source: FilePath, limits: Limits) -> Checkpoint:
    from educe.formats import checkpoint

    _check_limits(limits)
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(
            f"a language model cannot be loaded from a {type(source).__name__}", remedy="give a path"
        )
    return checkpoint.load(source, limits)


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise OptionError for a keyword of a language model with a value that none takes."""
    from educe.generate.options import check_number

    for name in ("threads", "context", "memory_bytes"):
        if options.get(name) is not None:
            check_number(name, options[name], 0, math.inf, True)
    if not isinstance(options.get("lookup", False), bool):
        raise OptionError(f"is {options['lookup']!r}; it has to be True or False", place="lookup")
    progress = options.get("progress")
    if progress is not None and not callable(progress):
        raise OptionError(f"is {progress!r}; it has to be a function", place="progress")


def _check_limits(limits: Limits) -> None:
    if not isinstance(limits, Limits):
        raise OptionError(
            f"is {limits!r}; it has to be an educe.Limits", place="limits", remedy="leave it out"
        )


def _loaded(model: Model | ModelSource, limits: Limits = DEFAULT_LIMITS) -> Model:
    return model if isinstance(model, Model) else load(model, limits=limits)
