"""Engines compile and run models behind one small contract; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from educe.engines.base import OPTION_NAMES, Engine, Executable, Options, State, Support, check_state
from educe.errors import OptionError, UnsupportedModelError, nearest
from educe.model import Model
from educe.settings import ENGINE

_CLASSES = {
    "native": ("educe.engines.native", "NativeEngine"),
    "onnxruntime": ("educe.engines.onnxruntime", "OnnxRuntimeEngine"),
    "reference": ("educe.engines.reference", "ReferenceEngine"),
    "openvino": ("educe.engines.openvino", "OpenVinoEngine"),
}


def engines() -> tuple[Engine, ...]:
    """Return every engine that Educe knows, whether or not its library is installed."""
    return tuple(get(name) for name in _CLASSES)


def get(name: str | None = None, *, place: str | None = None) -> Engine:
    """Return the engine called `name`, or the one that the settings choose.

    Args:
        name: An engine's name.
        place: The option that has it, for the error.

    Raises:
        OptionError: there is no such engine.
    """
    name = ENGINE.value() if name is None else name
    if not isinstance(name, str) or name not in _CLASSES:
        raise OptionError(f"there is no engine {name!r}", place=place, remedy=nearest(str(name), _CLASSES))
    module, class_name = _CLASSES[name]
    engine: Engine = getattr(importlib.import_module(module), class_name)()
    return engine


def compile(model: Model, engine: str | None = None, **options: Any) -> Executable:
    """Compile `model`, which is not modified.

    Args:
        engine: The engine's name; the one that the settings choose if absent.
        options: Fields of `Options`.

    Raises:
        OptionError: an engine or an option that does not exist.
        CardError: the card's state does not fit the model.
        UnsupportedModelError: the engine lacks operators; the error lists the nodes.
        MissingLibraryError: the engine's library is not installed.
    """
    place = None if engine is None else "engine"
    chosen, settled = get(engine, place=place), Options.of(**options)
    check_state(model)
    support = chosen.supports(model)
    if not support:
        raise UnsupportedModelError(
            f"the engine {chosen.name} cannot run {model.name}",
            problems=support.problems,
            path=model.path,
            remedy=_other_engines(model, chosen),
        )
    return chosen.compile(model, settled)


def _other_engines(model: Model, refusing: Engine) -> str:
    able = [
        engine.name
        for engine in engines()
        if engine.name != refusing.name and engine.version() is not None and engine.supports(model)
    ]
    if able:
        return f"use the engine {' or '.join(able)}"
    return "no other engine installed here can run it either: export the model with standard operators"


__all__ = ["OPTION_NAMES", "Engine", "Executable", "Options", "State", "Support", "compile", "engines", "get"]
