"""A folder as Sentence Transformers lays it out: what is made of an encoder's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from educe.errors import ModelFileError, UnsupportedModelError
from educe.formats.folder import Folder, json_object, shown
from educe.limits import DEFAULT_LIMITS, Limits

MODULES = "modules.json"
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_MODES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
_REMEDY = "use a model whose modules are Transformer, Pooling (cls, mean or max) and Normalize"
_MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class Pooling:
    """What is made of the rows of a text's tokens.

    Attributes:
        how: ``mean``, ``max``, or ``cls``, the row of the first token.
        normalized: Whether the result is divided by its length.
        max_tokens: Most tokens of a text; None if only the encoder bounds it.
    """

    how: str = "mean"
    normalized: bool = False
    max_tokens: int | None = None


def read_pooling(path: Path, limits: Limits = DEFAULT_LIMITS) -> Pooling:
    """Return what the files beside an encoder say; the mean of all rows if there are none.

    Raises:
        ModelFileError: a file is broken.
        UnsupportedModelError: a module, or a way to pool, is not known.
        LimitError: a file is larger than `limits` allow.
    """
    folder = Folder(path, limits)
    if not path.is_dir() or not folder.has(MODULES):
        return Pooling()
    modules = _modules(folder)
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    for number, kind in enumerate(kinds):
        if number >= 3 or kind != ("Transformer", "Pooling", "Normalize")[number]:
            reason = f"makes embeddings by the module {shown(kind)} in place {number + 1}"
            raise UnsupportedModelError(reason, path=path / MODULES, remedy=_REMEDY)
    how = _how(folder, str(modules[1].get("path", ""))) if len(modules) > 1 else "mean"
    return Pooling(how, len(modules) > 2, _max_tokens(folder))


def _modules(folder: Folder) -> list[Mapping[str, Any]]:
    path = folder.path / MODULES
    content = folder.read(MODULES, "card_bytes")
    modules = json_object(b'{"modules":' + content + b"}", path=path)["modules"]
    if isinstance(modules, list) and all(isinstance(module, dict) for module in modules):
        return modules
    raise ModelFileError("is no list of modules", path=path, remedy="download the file again")


def _how(folder: Folder, name: str) -> str:
    file = f"{name}/config.json" if name else "config.json"
    fields = folder.read_object(file)
    prefix = "pooling_mode_"
    modes = [
        mode.removeprefix(prefix) for mode, used in fields.items() if mode.startswith(prefix) and used is True
    ]
    if isinstance(fields.get("pooling_mode"), str):
        modes = [f"{fields['pooling_mode']}_tokens".replace("cls_tokens", "cls_token")]
    if len(modes) == 1 and modes[0] in _MODES:
        return _MODES[modes[0]]
    reason = f"pools by {shown(', '.join(modes))}"
    raise UnsupportedModelError(reason, path=folder.path / file, remedy=_REMEDY)


def _max_tokens(folder: Folder) -> int | None:
    fields: dict[str, Any] = {}
    for name in _SETTINGS:
        fields |= folder.read_object(name)
    for name in ("do_lower_case", "default_prompt_name"):
        if fields.get(name):
            reason = f"changes texts by {name} = {shown(fields[name])}, which is not done yet"
            raise UnsupportedModelError(
                reason, path=folder.path, remedy="change the texts, and remove the field"
            )
    found = fields.get("max_seq_length")
    if found is None or (type(found) is int and 0 < found <= _MOST_TOKENS):
        return found
    raise ModelFileError(
        f"has max_seq_length {shown(found)}, where a number of tokens is expected",
        path=folder.path / _SETTINGS[0],
        remedy="download the file again",
    )
