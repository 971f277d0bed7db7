"""`ChatTemplate`: a conversation as the one text that a model was trained to continue."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from educe.errors import InputError, ModelFileError, OptionError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.media.text import read_text
from educe.text.isolation import ExhaustedError, Worker

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""

CPU_SECONDS = 0.5
"""Processor time of one rendering; a template of the usual kind takes a thousandth of it."""

FUEL = 10_000_000
"""Instructions of one rendering."""

# Hugging Face's mark of what an assistant said, for training; it renders nothing.
_TRAINING_MARK = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_REMEDY = "use the template that came with the model, or give another"


class ChatTemplate:
    """A Jinja template in Hugging Face's conventions, rendered where it can do no harm.

    Args:
        text: The template.
        limits: Bounds on the template (`card_bytes`) and on what it renders (`text_bytes`).
    """

    def __init__(self, text: str, limits: Limits = DEFAULT_LIMITS) -> None:
        limits.check("card_bytes", len(text.encode("utf-8", "surrogatepass")))
        self.text = text
        self._limits = limits
        self._worker = Worker("educe.text.template:renderer", text, start_seconds=CPU_SECONDS)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **named: Any,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: Each with ``role`` and ``content``: a text, or a list of parts
                ``{"type": "text", "text": …}``, which are joined; an assistant's may have ``tool_calls``.
                Other fields are left to the template.
            tools: What the model may call, as JSON schemas of functions.
            add_generation_prompt: Whether the text ends where the assistant's answer begins.
            named: Further variables of the template, such as ``bos_token``.

        Raises:
            InputError: the messages are not of that form, or the template refuses them.
            ModelFileError: the template is broken, or takes too much work.
            LimitError: the text is larger than `limits.text_bytes`.
        """
        context = {
            **named,
            "messages": [_message(index, message) for index, message in enumerate(messages)],
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._text_of(self._answer(context))

    def _answer(self, context: dict[str, Any]) -> dict[str, Any]:
        request = {"context": context, "most_bytes": self._limits.text_bytes}
        try:
            answer: dict[str, Any] = self._worker.ask(request, cpu_seconds=CPU_SECONDS)
        except ExhaustedError as fault:
            raise ModelFileError(f"rendering {fault}", place="chat template", remedy=_REMEDY) from None
        except (TypeError, ValueError, RecursionError) as fault:
            raise InputError(
                f"the conversation is not what JSON can say: {fault}",
                remedy="give texts, numbers, lists and dictionaries",
            ) from None
        return answer

    def _text_of(self, answer: dict[str, Any]) -> str:
        if "text" in answer:
            text: str = answer["text"]
            return text
        if "size_bytes" in answer:
            self._limits.check("text_bytes", answer["size_bytes"])
        if "refusal" in answer:
            raise InputError(
                f"the model's chat template refuses the messages: {answer['refusal']}",
                remedy="change the messages as it says",
            )
        line = answer.get("line")
        raise ModelFileError(
            str(answer.get("fault")),
            place=f"chat template, line {line}" if line else "chat template",
            remedy=_REMEDY,
        )


def read_template(given: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> str:
    """Return a template that a user gives: the text itself, which has a brace, or the path of its file.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
        LimitError: the template is too large.
        OptionError: it is no template of conversations, is broken, or takes too much work.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise OptionError(
            f"a {type(given).__name__} is no template",
            place="chat_template",
            remedy="give its text, or the path of its file",
        )
    path = None if isinstance(given, str) and "{" in given else Path(given)
    text = str(given) if path is None else read_text(path, limits)
    try:
        # What a template refuses, it has understood.
        with suppress(InputError):
            ChatTemplate(text, limits).render([{"role": "user", "content": "?"}])
    except ModelFileError as error:
        raise OptionError(error.cause, path=path, place=error.place, remedy=error.remedy) from None
    if not any("messages" in tag for tag in _TAG.findall(text)):
        raise OptionError(
            "is no chat template: it never refers to `messages`, and would leave out all that is said",
            path=path,
            place="chat_template" if path is None else None,
            remedy="give one in Jinja, with {% for message in messages %}{{ message.content }}{% endfor %}",
        )
    return text


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose content is one text."""
    place = f"message {index}"
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise InputError(
            f"has the role {ascii(role)[:100]}", place=place, remedy=f"the roles are {', '.join(ROLES)}"
        )
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        content = "".join(_part(part, place) for part in content)
    if content is None and message["role"] == "assistant" and message.get("tool_calls"):
        return {**message, "content": ""}
    if not isinstance(content, str):
        raise InputError(
            f"has content of the type {type(content).__name__}",
            place=place,
            remedy='give a text, or a list of {"type": "text", "text": …}',
        )
    if not is_unicode(content):
        raise InputError("has half a character as content, a lone surrogate", place=place)
    return {**message, "content": content}


def is_unicode(text: str) -> bool:
    """Say whether a text has no lone surrogate, and so can be written as UTF-8."""
    return not _SURROGATE.search(text)


def _part(part: Any, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(
        f"has a part of the type {ascii(kind)[:100]}",
        place=place,
        remedy='this model reads text alone; give {"type": "text", "text": …}',
    )


class _RefusalError(Exception):
    """What a template says of messages that it does not take."""


def renderer(text: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what renders a template; only a worker calls it."""
    from minijinja import Environment, TemplateError

    environment = Environment(
        fuel=FUEL,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=lambda name: False,
        filters={"tojson": _to_json},
        globals={"raise_exception": _refuse, "strftime_now": _now},
    )
    source = _TRAINING_MARK.sub(r"{#\1 \2#}", text)

    def render(request: dict[str, Any]) -> dict[str, Any]:
        try:
            rendered = environment.render_str(source, "chat", **request["context"])
        except _RefusalError as refusal:
            return {"refusal": str(refusal)[:1000]}
        except TemplateError as fault:
            return {"fault": f"{fault.kind}: {fault.detail or fault.message}"[:1000], "line": fault.line}
        except Exception as fault:
            return {"fault": f"{type(fault).__name__}: {fault}"[:1000]}
        size_bytes = len(rendered.encode())
        return {"text": rendered} if size_bytes <= request["most_bytes"] else {"size_bytes": size_bytes}

    return render


def _refuse(message: str) -> None:
    raise _RefusalError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as Hugging Face's ``tojson`` writes it, which escapes nothing for HTML."""
    both = (separators[0], separators[1]) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=both, sort_keys=sort_keys)
