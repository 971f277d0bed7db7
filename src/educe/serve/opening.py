"""Any model file to what serves it, whatever door of the package opens it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from educe import api
from educe.engines import OPTION_NAMES
from educe.errors import EduceError, ModelFileError, OptionError
from educe.files import neighbour, open_regular
from educe.formats import FORMATS, checkpoint
from educe.formats.sniff import HEAD_BYTES, refuse
from educe.generate.doors import door_of
from educe.limits import DEFAULT_LIMITS, Limits
from educe.serve.served import LanguageModelServed, PredictorModel, Served

_LOG = logging.getLogger("educe.serve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEYWORDS: dict[str, frozenset[str]] = {
    "predictor": frozenset(("engine", *OPTION_NAMES)),
    "generator": api.GeneratorOptions.__optional_keys__ | {"chat_template", "draft"},
    "translator": api.ReaderOptions.__optional_keys__,
    "transcriber": api.ReaderOptions.__optional_keys__,
    "embedder": api.EmbedderOptions.__optional_keys__,
}


@dataclass(frozen=True)
class ModelSource:
    """A model that is to be served.

    Attributes:
        name: Its name in the server's interfaces.
        path: A model file, the folder of one, or a folder of versions: folders whose names are numbers.
        options: Keywords of the door that opens it.
    """

    name: str
    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Return the source that ``NAME=PATH`` or ``PATH`` stands for.

        Without a name, a folder's own is taken, a file's, or that of its folder if the file is a ``model``.

        Raises:
            OptionError: the name is none that a path in a URL can have.
        """
        name, separator, rest = text.partition("=")
        path = Path(rest if separator else text)
        if not separator:
            absolute = path.absolute()
            name = absolute.parent.name if absolute.stem == "model" else absolute.stem or absolute.name
            name = re.sub(r"[^A-Za-z0-9._-]", "-", absolute.name if path.is_dir() else name)
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"{name!r} is no name of a model",
                remedy="give one of letters, digits, dots, dashes and underscores: NAME=PATH",
            )
        return cls(name, path)

    @classmethod
    def find(cls, text: str) -> list[ModelSource]:
        """Return the sources that ``NAME=PATH`` or ``PATH`` stands for: a model, or each model in a folder.

        What is found is seen by names and first bytes alone; that it can be loaded is not said.

        Raises:
            ModelFileError: there is nothing at the path, or no model.
            UnsupportedFormatError: it is a file of another kind.
            OptionError: a name is none that a path in a URL can have, or one name is given to a folder of
                models.
        """
        source = cls.parse(text)
        path = source.path
        paths = [found for _, found in source.versions()]
        if paths != [path] or not path.is_dir() or _holds_model(path):
            _check_any_model(paths)
            return [source]
        inside = [cls.parse(str(entry)) for entry in sorted(path.iterdir()) if _is_visible_folder(entry)]
        found = [each for each in inside if any(_holds_model(path) for _, path in each.versions())]
        if not found:
            raise ModelFileError(
                "the folder holds no model, no versions, and no folders of models",
                path=path,
                remedy="name a model's file or folder",
            )
        if "=" in text:
            raise OptionError(
                f"{path} holds {len(found)} models, and {source.name!r} can name one",
                remedy="leave the name out, or give the path of one model",
            )
        if others := [each.name for each in inside if each not in found]:
            _LOG.warning("in %s, these hold no model and are left out: %s", path, ", ".join(others))
        return found

    def versions(self) -> list[tuple[str, Path]]:
        """Return the number and path of each version, the newest first; a path without any is version 1.

        Raises:
            ModelFileError: there is nothing at the path.
        """
        if not self.path.exists():
            near = neighbour(self.path)
            remedy = "name a model's file or folder" if near is None else f"did you mean {near}?"
            raise ModelFileError("there is no such file or folder", path=self.path, remedy=remedy)
        numbers = [entry for entry in self.path.iterdir() if _is_version(entry)] if self.path.is_dir() else []
        if not numbers:
            return [("1", self.path)]
        return [(entry.name, entry) for entry in sorted(numbers, key=lambda entry: -int(entry.name))]

    def newest(self) -> tuple[str, Path]:
        """Return the newest version's number and path; see `versions`."""
        return self.versions()[0]


def size_bytes(path: Path) -> int:
    """Return the size of a model's files, before anything of it is loaded."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def distinct(sources: Sequence[ModelSource]) -> tuple[ModelSource, ...]:
    """Return the sources, each of which has a name of its own.

    Raises:
        OptionError: two have one name.
    """
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"two models are named {name!r}", remedy="name them: NAME=PATH")
    return tuple(sources)


def open_model(path: Path, options: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> Served:
    """Return the model at `path`, ready to answer.

    Raises:
        EduceError: it cannot be read, or nothing here can run it.
    """
    if not checkpoint.recognises(path):
        return PredictorModel(api.predictor(str(path), limits=limits, **options))
    door = door_of(checkpoint.load(path, limits))
    kind = "generator" if door is None else door.name
    return LanguageModelServed(kind, getattr(api, kind)(path, limits=limits, **options))


def with_options(sources: Sequence[ModelSource], options: Mapping[str, Any]) -> list[ModelSource]:
    """Return models, each with those options that models of its kind take.

    Raises:
        OptionError: no model takes an option.
    """
    if not options:
        return list(sources)
    kinds = [_kind([path for _, path in source.versions()]) for source in sources]
    for name in options:
        if not any(name in _KEYWORDS[kind] for kind in kinds):
            takers = sorted(kind for kind, names in _KEYWORDS.items() if name in names)
            raise OptionError(
                "no model that is served takes this option",
                place=name,
                remedy=f"it is for models of the kind {' or '.join(takers)}",
            )
    return [
        replace(source, options={name: value for name, value in options.items() if name in _KEYWORDS[kind]})
        for source, kind in zip(sources, kinds, strict=True)
    ]


def _kind(paths: Sequence[Path]) -> str:
    """Return the name of the door that opens a model, by the first of its versions that can be read."""
    language_models = [path for path in paths if checkpoint.recognises(path)]
    for path in language_models:
        with suppress(EduceError):
            if (door := door_of(checkpoint.load(path))) is not None:
                return door.name
    return "generator" if language_models else "predictor"


def _holds_model(folder: Path) -> bool:
    graphs = (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx"))
    return bool(graphs) or checkpoint.recognises(folder)


def _check_any_model(paths: Sequence[Path]) -> None:
    """Raise the first path's error if, by names and first bytes, none of them holds a model."""
    first: EduceError | None = None
    for path in paths:
        try:
            _check_model(path)
        except EduceError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _check_model(path: Path) -> None:
    """Raise the error of a path that, by names and first bytes, holds no model."""
    if path.is_dir():
        if not _holds_model(path):
            raise ModelFileError(
                "the folder holds no model", path=path, remedy="name a model's file or folder"
            )
        return
    with open_regular(path, error=ModelFileError) as file:
        head = file.read(HEAD_BYTES)
    if not any(each.sniff(head) for each in FORMATS) and not checkpoint.recognises(path):
        raise refuse(head, path)


def _is_visible_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "_"))


def _is_version(entry: Path) -> bool:
    return entry.is_dir() and entry.name.isascii() and entry.name.isdigit() and len(entry.name) < 19
