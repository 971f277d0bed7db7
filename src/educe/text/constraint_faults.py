"""What is wrong with a constraint, in the terms of who wrote it; `llguidance` speaks of its own grammar."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from educe.errors import OptionError

_MOST_SHOWN = 300
# The lines of a grammar that the library shows below its message.
_EXCERPT = re.compile(r"\n *\d+ \|.*", re.DOTALL)
_SHOWN_OF_PATTERN = 20
_SYNTAX = re.compile(r"regex parse error:\n {4}(?P<value>.*)\n {4}(?P<before> *)\^.*\nerror: (?P<cause>.*)")
_LOWERED = re.compile(r"at \d+\(\d+\): invalid regex .* \(in regex\): (?P<cause>.*?)(?: in regex /.*)?\n")
# A keyword of a schema and its value, as a message names them; the keyword is given where it does not.
_IN_SCHEMA = (
    (re.compile(r'Unimplemented keys: \["(?P<key>[^"]+)"'), ""),
    (re.compile(r"Unknown (?P<key>format): (?P<value>.*)"), ""),
    (re.compile(r"Invalid (?P<key>type): (?P<value>.*)"), ""),
    (re.compile(r"Expected \w+ for '(?P<key>[^']+)', got \"?(?P<value>.*?)\"?$"), ""),
    (re.compile(r"(?:Pointer|Resource) '(?P<value>[^']+)'"), "$ref"),
    (_SYNTAX, "pattern"),
)
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_VALUES = ("enum", "const", "default", "examples")
# What the library says where it reaches a bound on its work.
_SPENT = re.compile(
    r"too many (expressions|states|items)|(grammar|initial lexer configuration).* too big|fuel"
    r"|current row has \d+ items|unable to determine if regex is empty",
    re.IGNORECASE,
)
# The numbers that are a multiple of another take as many states as the least that all have in common.
_MOST_MULTIPLE = 10_000
# What the library says where no token can come first.
_STUCK = "NoExtensionBias"


def refused(
    place: str, said: str, remedy: str = "correct it, or leave out what it has no grammar for"
) -> OptionError:
    """Return the error of a constraint of which the library says that it cannot be used."""
    cause = _EXCERPT.sub("", said.split("\n<")[0]).strip()
    syntax = _SYNTAX.search(said)
    if syntax is not None:
        cause = f"the pattern {_shown(syntax['value'])} is wrong: {syntax['cause']}"
    if cause == _STUCK:
        cause = "no text satisfies it"
    if _SPENT.search(said):
        cause, remedy = "it takes more work than is allowed", "use smaller counts, and fewer alternatives"
    return OptionError(f"the constraint cannot be used: {cause[:_MOST_SHOWN]}", place=place, remedy=remedy)


def pattern_refused(pattern: str, said: str) -> OptionError:
    """Return the error of a regular expression; it says where in the pattern what is wrong stands."""
    remedy = "correct it; the syntax is Rust's, without look-around"
    if (syntax := _SYNTAX.search(said)) is not None:
        index = _index(pattern, syntax["value"], len(syntax["before"]))
        where = f"character {index + 1}, {_shown(pattern[index:])}" if index < len(pattern) else "its end"
        return refused("regex", f"{syntax['cause']}, at {where}", remedy)
    lowered = _LOWERED.match(said)
    return refused("regex", said if lowered is None else lowered["cause"], remedy)


def schema_refused(schema: Any, said: str) -> OptionError:
    """Return the error of a JSON schema; its place has the JSON pointer of what is wrong, if it is found."""
    pointers = (_find(schema, found, key) for form, key in _IN_SCHEMA if (found := form.search(said)))
    pointer = next(filter(None, pointers), None)
    return refused("json_schema" if pointer is None else f"json_schema, {pointer}", said)


def unbounded_multiple(schema: Any) -> OptionError | None:
    """Return the error of a JSON schema whose ``multipleOf`` take too much work; None if they do not."""
    common = 1
    for pointer, node in _schemas(schema, ""):
        value = node.get("multipleOf")
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            digits = Decimal(str(value)).normalize().as_tuple().digits
            common = math.lcm(common, int("".join(map(str, digits))))
            if common > _MOST_MULTIPLE:
                cause = f"multiples of {value} may take work without end"
                return refused(f"json_schema, {pointer}/multipleOf", cause, "leave multipleOf out")
    return None


def _index(pattern: str, escaped: str, position: int) -> int:
    """Return where in a pattern stands what is at `position` of its form with slashes and lines escaped."""
    index = at = 0
    while at < min(position, len(escaped)) and index < len(pattern):
        at += 1 if escaped[at] == pattern[index] else 2
        index += 1
    return index


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_OF_PATTERN else text[:_SHOWN_OF_PATTERN] + "…")


def _find(schema: Any, found: re.Match[str], key: str) -> str | None:
    named = found.groupdict()
    key, value = named.get("key") or key, named.get("value")
    for pointer, node in _schemas(schema, ""):
        if key in node and (value is None or value in str(node[key])):
            return f"{pointer}/{_escaped(key)}"
    return None


def _schemas(node: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas in a schema, itself first, each with its JSON pointer."""
    if isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _schemas(inner, f"{pointer}/{index}")
    if not isinstance(node, dict):
        return
    yield pointer, node
    for key, inner in node.items():
        if key in _OF_NAMES and isinstance(inner, dict):
            for name, schema in inner.items():
                yield from _schemas(schema, f"{pointer}/{key}/{_escaped(name)}")
        elif key not in _OF_VALUES:
            yield from _schemas(inner, f"{pointer}/{_escaped(key)}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
