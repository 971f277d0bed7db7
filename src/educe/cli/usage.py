"""What is wrong with a command as it was typed, in the words of whoever typed it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand
from typer.exceptions import TyperException

from educe.errors import EduceError, OptionError

_KEYWORD = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b|\b[a-z]+(?==)")


class Subcommand(TyperCommand):
    """A subcommand whose errors name its options as they are typed, not as the keywords in Python."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; what is wrong with its options is said of what was typed."""
        try:
            return super().invoke(ctx)
        except EduceError as error:
            # What is said of a file speaks of the names in that file.
            if error.path is None:
                name_as_typed(error, {each.name: _typed(each) for each in self.params if each.name})
            raise


def name_as_typed(error: EduceError, names: Mapping[str, str]) -> None:
    """Put what is typed in the place of the keywords in Python that an error names.

    Words without an underscore, such as ``context``, may be words of a sentence: they are taken for keywords
    only before an equals sign, or where they are the whole place of the error.

    Args:
        names: What is typed for each keyword.
    """

    def typed(text: str) -> str:
        return _KEYWORD.sub(lambda found: names.get(found[0], found[0]), text)

    error.cause = typed(error.cause)
    error.place = error.place and (names.get(error.place) or typed(error.place))
    error.remedy = error.remedy and typed(error.remedy)


def usage_error(fault: TyperException) -> OptionError:
    """Return what Typer finds wrong with a command as an error like all others."""
    parameter, context = getattr(fault, "param", None), getattr(fault, "ctx", None)
    place = None
    cause = fault.format_message().strip().rstrip(".")
    if parameter is not None and fault.message:
        place, cause = _typed(parameter), fault.message
    usage = "" if context is None else " ".join(context.get_usage().split()).removeprefix("Usage: ")
    remedy = f"the form is {usage}; -h says more" if usage else "educe -h says what there is"
    return OptionError(cause[:1].lower() + cause[1:], place=place, remedy=remedy)


def _typed(parameter: Any) -> str:
    name: str = parameter.opts[0]
    return name if name.startswith("-") else parameter.metavar or name
