"""What is wrong with JSON that is not of the form that a route takes, and what it takes in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from educe.errors import nearest
from educe.serve.faults import BadRequest

_STEP = re.compile(r"\.([\w-]+)|\[(?:\d+|\.\.\.)\]")
_VALUE = re.compile(r"Invalid (?:enum )?value")
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)


def invalid(fault: msgspec.ValidationError, kind: Any) -> BadRequest:
    """Return what msgspec finds wrong with a value of `kind` as an error: where it is, and what is known."""
    reason, _, path = str(fault).partition(" - at `")
    place = path.rstrip("`").rpartition("$")[2]
    steps = [found[1] for found in _STEP.finditer(place)]
    remedy = None
    if field := _FIELD.fullmatch(reason):
        place = f"{place}.{field[2]}"
        known = {each.encode_name for kind in _types_at(kind, steps) for each in _fields(kind)}
        if field[1] == "contains unknown" and known:
            remedy = nearest(field[2], known)
    elif _VALUE.match(reason) and (known := set(_values_at(kind, steps))):
        remedy = f"known: {', '.join(sorted(known))}"
    return BadRequest(reason, place=place.removeprefix(".") or None, remedy=remedy)


_info = lru_cache(maxsize=64)(inspect.type_info)


def _types_at(kind: Any, steps: Sequence[str | None]) -> list[inspect.Type]:
    """Return what may stand at a place: the names of fields on the way to it, and None for elements."""
    found = list(_alternatives(_info(kind)))
    for step in steps:
        found = [part for each in found for inner in _inside(each, step) for part in _alternatives(inner)]
    return found


def _values_at(kind: Any, steps: Sequence[str | None]) -> Iterator[str]:
    """Yield the values that may stand at a place, among them the tags that tell objects apart."""
    for each in _types_at(kind, steps):
        if isinstance(each, inspect.LiteralType):
            yield from (repr(value) for value in each.values)
    for each in _types_at(kind, steps[:-1]) if steps else ():
        if isinstance(each, inspect.StructType) and each.tag is not None and each.tag_field == steps[-1]:
            yield repr(each.tag)


def _alternatives(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _alternatives(each)
    elif isinstance(kind, inspect.Metadata):
        yield from _alternatives(kind.type)
    else:
        yield kind


def _inside(kind: inspect.Type, step: str | None) -> Iterator[inspect.Type]:
    if step is not None:
        yield from (field.type for field in _fields(kind) if field.encode_name == step)
    elif isinstance(kind, inspect.CollectionType):
        yield kind.item_type
    elif isinstance(kind, inspect.DictType):
        yield kind.value_type


def _fields(kind: inspect.Type) -> Sequence[inspect.Field]:
    return kind.fields if isinstance(kind, inspect.StructType) else ()
