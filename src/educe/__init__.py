"""Educe: a trained model, new input, the answer.

    import educe

    model = educe.load("model.onnx")       # Model: frozen, nothing compiled yet
    predictor = educe.predictor(model)     # its task, bound to an engine
    print(predictor("cat.jpg").top(3))
    exe = educe.compile(model)             # Executable: immutable, thread-safe
    y = exe.run({"input": x})["output"]    # NumPy in, NumPy out

    generator = educe.generator("qwen/")   # a language model, from its own files
    for piece in generator.stream("Once upon a time"):
        print(piece.text, end="")

`translator`, `transcriber` and `embedder` are the doors of models that translate, hear, and compare texts.

Importing `educe` imports nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from educe.imports import defer

if TYPE_CHECKING:
    from educe import engines, errors
    from educe.api import compile, embedder, generator, load, predictor, transcriber, translator
    from educe.engines.base import Engine, Executable, Options, State, Support
    from educe.errors import EduceError
    from educe.generate.embedding import Embedder
    from educe.generate.generator import Generator
    from educe.generate.statistics import Statistics
    from educe.generate.stream import Completion, Stream
    from educe.generate.transcript import Transcript
    from educe.generate.transcription import Transcriber
    from educe.generate.translation import Translator
    from educe.limits import Limits
    from educe.model import Card, CardOrigin, Model, Signature, TensorType
    from educe.tasks.answer import Answer, Prediction
    from educe.tasks.predictor import Predictor

__version__ = "0.1.0"

_HOMES = {
    "Answer": "educe.tasks.answer",
    "Card": "educe.model",
    "CardOrigin": "educe.model",
    "Completion": "educe.generate.stream",
    "EduceError": "educe.errors",
    "Embedder": "educe.generate.embedding",
    "Engine": "educe.engines.base",
    "Executable": "educe.engines.base",
    "Generator": "educe.generate.generator",
    "Limits": "educe.limits",
    "Model": "educe.model",
    "Options": "educe.engines.base",
    "Prediction": "educe.tasks.answer",
    "Predictor": "educe.tasks.predictor",
    "Signature": "educe.model",
    "State": "educe.engines.base",
    "Statistics": "educe.generate.statistics",
    "Stream": "educe.generate.stream",
    "Support": "educe.engines.base",
    "TensorType": "educe.model",
    "Transcriber": "educe.generate.transcription",
    "Transcript": "educe.generate.transcript",
    "Translator": "educe.generate.translation",
    "compile": "educe.api",
    "embedder": "educe.api",
    "generator": "educe.api",
    "load": "educe.api",
    "predictor": "educe.api",
    "transcriber": "educe.api",
    "translator": "educe.api",
}
_MODULES = ("engines", "errors")

__all__ = [
    "Answer",
    "Card",
    "CardOrigin",
    "Completion",
    "EduceError",
    "Embedder",
    "Engine",
    "Executable",
    "Generator",
    "Limits",
    "Model",
    "Options",
    "Prediction",
    "Predictor",
    "Signature",
    "State",
    "Statistics",
    "Stream",
    "Support",
    "TensorType",
    "Transcriber",
    "Transcript",
    "Translator",
    "compile",
    "embedder",
    "engines",
    "errors",
    "generator",
    "load",
    "predictor",
    "transcriber",
    "translator",
]

defer()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"educe.{name}")
    else:
        raise AttributeError(f"module 'educe' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
