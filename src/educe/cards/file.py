"""A card written by hand: a TOML file to a `Card`, and back, with errors that name the field."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from educe.errors import CardError, UserError, nearest
from educe.files import open_beneath, read_bytes
from educe.limits import Limits
from educe.model import Card

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_KEY_PARTS = 8
MAX_SHOWN = 60

# Strings and comments, each alternative consuming what it begins with even where it is not closed,
# so that a scan of any text takes linear time.
_STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5})?'
    r"|'''(?:[^']|'(?!''))*(?:'{3,5})?"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*",
    re.DOTALL,
)
_KEY_END = re.compile(r"[=,\[\]{}\n]")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]")


def read_card(path: Path, limits: Limits) -> Card:
    """Read the card in the TOML file at `path`, and the label file that it names, if any.

    Raises:
        CardError: the file is no TOML, or no card; the error names the field and what is legal there.
        LimitError: the file, or its label file, is larger than `limits.card_bytes`.
    """
    text = _decode(read_bytes(path, limits, "card_bytes", error=CardError), path)
    return with_labels(parse_card(text, path), path.parent, limits, path)


def parse_card(text: str, path: Path | None = None) -> Card:
    """Return the card that the TOML `text` holds; its label file, if it names one, is not read.

    Args:
        path: The file that errors name.

    Raises:
        CardError: see `read_card`.
    """
    table = _parse_toml(text, path)
    try:
        return msgspec.convert(table, Card)
    except msgspec.ValidationError as fault:
        raise _explain(str(fault), table, path) from None


def with_labels(card: Card, folder: Path | None, limits: Limits, path: Path | None) -> Card:
    """Return `card` with the label file that it names, one label a line, replaced by its lines.

    Args:
        folder: Where the file must be.
        path: The card's own file, which errors name.

    Raises:
        CardError: the file cannot be read, is not UTF-8, or the card may name no files.
    """
    if isinstance(card.labels, tuple):
        return card
    if folder is None:
        raise CardError("a card without a folder cannot name a label file", path=path, place="labels")
    try:
        with open_beneath(folder, card.labels) as file:
            content = file.read(limits.card_bytes + 1)
    except UserError as fault:
        raise CardError(fault.cause, path=path, place=f"labels: {card.labels}", remedy=fault.remedy) from None
    limits.check("card_bytes", len(content), path=folder / card.labels)
    lines = _decode(content, folder / card.labels).removesuffix("\n").split("\n")
    return msgspec.structs.replace(card, labels=tuple(line.removesuffix("\r") for line in lines))


def card_toml(card: Card) -> str:
    """Return `card` as TOML text, defaults left out; `parse_card` gives the same card back."""
    return "\n".join(_table_lines(msgspec.to_builtins(card), ())).lstrip("\n") + "\n"


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as fault:
        raise CardError(
            "expected UTF-8 text", path=path, place=f"byte {fault.start}", remedy="save it as UTF-8"
        ) from None


def _parse_toml(text: str, path: Path | None) -> dict[str, Any]:
    # The time that tomllib takes for one dotted key grows with the cube of its parts.
    pieces = _KEY_END.split(_STRING_OR_COMMENT.sub("s", text))
    if any(piece.count(".") >= MAX_KEY_PARTS for piece in pieces):
        raise CardError(f"a key has more than {MAX_KEY_PARTS} parts", path=path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise CardError("values are nested too deeply", path=path) from None
    except ValueError as fault:
        cause, _, place = str(fault).removesuffix(")").partition(" (at ")
        raise CardError(f"is not TOML: {cause}", path=path, place=place or None) from None


def _explain(message: str, table: dict[str, Any], path: Path | None) -> CardError:
    """Turn a message of msgspec into an error that names section, field and legal values."""
    cause, _, where = message.rpartition(" - at ") if " - at " in message else (message, "", "`$`")
    steps = [name or int(index) for name, index in _STEP.findall(where)]
    kind, section = _walk_types(steps)
    field = re.search(r"`(.*)`$", cause)
    if cause.startswith("Object contains unknown field") and field:
        place = _place([*steps, field[1]], section=len(steps))
        return CardError(
            "unknown field", path=path, place=place, remedy=nearest(field[1], _field_names(kind))
        )
    if cause.startswith("Object missing required field") and field:
        place = _place(steps, section=len(steps))
        remedy = _legal(_walk_types([*steps, field[1]])[0]) or f"add {field[1]} = ..."
        return CardError(f"the field {field[1]!r} is missing", path=path, place=place, remedy=remedy)
    found = _shorten(_walk_values(table, steps))
    place, legal = _place(steps, section), _legal(kind)
    if cause.startswith("Invalid enum value"):
        return CardError(f"{found} is not a legal value", path=path, place=place, remedy=legal)
    expected = cause.partition(", got ")[0].replace("`", "").replace("object", "table").replace(" | null", "")
    return CardError(
        f"{expected[:1].lower()}{expected[1:]}, found {found}", path=path, place=place, remedy=legal
    )


def _walk_types(steps: Iterable[str | int]) -> tuple[inspect.Type, int]:
    """Return the type that `steps` lead to from a `Card`, and how many of them lead to its section."""
    kind: inspect.Type = inspect.type_info(Card)
    section = 0
    for depth, step in enumerate(steps):
        kind = _struct_of(kind)
        if isinstance(kind, inspect.StructType):
            section = depth
            kind = next((field.type for field in kind.fields if field.name == step), inspect.AnyType())
        elif isinstance(kind, inspect.TupleType) and isinstance(step, int):
            kind = kind.item_types[min(step, len(kind.item_types) - 1)]
        elif isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
    return _struct_of(kind), section


def _struct_of(kind: inspect.Type) -> inspect.Type:
    """Return the member of an optional type that is not None, or the type itself."""
    if isinstance(kind, inspect.UnionType):
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        return members[0] if len(members) == 1 else kind
    return kind


def _field_names(kind: inspect.Type) -> list[str]:
    return [field.name for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def _legal(kind: inspect.Type) -> str | None:
    if not isinstance(kind, inspect.LiteralType):
        return None
    return f"legal: {', '.join(repr(value) for value in kind.values)}"


def _walk_values(table: Any, steps: Iterable[str | int]) -> Any:
    for step in steps:
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            break
    return table


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _place(steps: list[str | int], section: int) -> str | None:
    """Return ``[audio.spectrum] kind`` for the steps audio, spectrum, kind with two to the section."""
    header = f"[{'.'.join(str(step) for step in steps[:section])}]" if section else ""
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps[section:])
    return " ".join(part for part in (header, field.removeprefix(".")) if part) or None


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    if path and (plain or not table):
        yield f"\n[{'.'.join(map(_key, path))}]"
    yield from (f"{_key(key)} = {_literal(value)}" for key, value in plain.items())
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _table_lines(value, (*path, key))


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(_literal(item) for item in value)}]"
