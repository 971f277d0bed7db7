"""Any model file to what serves it, whatever door of the package opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from educe import api
from educe.errors import ModelFileError, OptionError
from educe.formats import checkpoint
from educe.generate.doors import door_of
from educe.limits import DEFAULT_LIMITS, Limits
from educe.serve.served import LanguageModelServed, PredictorModel, Served

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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

    def newest(self) -> tuple[str, Path]:
        """Return the newest version's number and path; a path that has no versions is version 1.

        Raises:
            ModelFileError: there is nothing at the path.
        """
        if not self.path.exists():
            raise ModelFileError("there is no such file or folder", path=self.path)
        numbers = [entry for entry in self.path.iterdir() if _is_version(entry)] if self.path.is_dir() else []
        if not numbers:
            return "1", self.path
        newest = max(numbers, key=lambda entry: int(entry.name))
        return newest.name, newest

    def size_bytes(self) -> int:
        """Return the size of the newest version's files, before anything of it is loaded."""
        _, path = self.newest()
        if path.is_file():
            return path.stat().st_size
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


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


def _is_version(entry: Path) -> bool:
    return entry.is_dir() and entry.name.isascii() and entry.name.isdigit() and len(entry.name) < 19
