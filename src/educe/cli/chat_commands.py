"""What a user may say to `educe chat` itself: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from educe.cli.conversation import Conversation
from educe.cli.screen import counted, errors
from educe.errors import OptionError, nearest
from educe.generate.generator import Generator
from educe.generate.stream import Completion


@dataclass
class Session:
    """A conversation while it goes on.

    Attributes:
        generator: The model.
        conversation: What was said.
        last: What became of the last answer.
        is_over: Whether the user has left.
    """

    generator: Generator
    conversation: Conversation
    last: Completion | None = None
    is_over: bool = False


@dataclass(frozen=True)
class _Command:
    """What a command does; `run` returns the question to ask now, if there is one."""

    usage: str
    meaning: str
    run: Callable[[Session, str], str | None]


def run_command(session: Session, line: str) -> str | None:
    """Do what a line says that begins with a slash, and return the question to ask now, if there is one.

    Raises:
        OptionError: there is no such command, or it lacks what it needs.
        EduceError: it cannot be done.
    """
    name, _, argument = line.removeprefix("/").partition(" ")
    if name not in _COMMANDS:
        raise OptionError(
            f"there is no command /{name}",
            remedy=f"{nearest(name, _COMMANDS)}; a message may begin with a space and a slash",
        )
    return _COMMANDS[name].run(session, argument.strip())


def note(text: str) -> None:
    """Tell the user something that is no answer, on standard error."""
    errors().print(f"[dim]{escape(text)}[/]")


def _help(session: Session, argument: str) -> None:
    width = max(len(command.usage) for command in _COMMANDS.values())
    note("\n".join(f"{each.usage:{width}}  {each.meaning}" for each in _COMMANDS.values()))
    note('A line that ends with \\ goes on in the next one; """ begins and ends a message of several lines.')
    note("Ctrl-C ends an answer, Ctrl-D the conversation.")


def _clear(session: Session, argument: str) -> None:
    session.conversation.turns.clear()
    note("all is forgotten but what /system says")


def _undo(session: Session, argument: str) -> None:
    question = session.conversation.undo()
    note("there is nothing to take back" if question is None else f"taken back: {question}")


def _retry(session: Session, argument: str) -> str | None:
    question = session.conversation.undo()
    if question is None:
        note("there is no question to ask again")
    return question


def _save(session: Session, argument: str) -> None:
    session.conversation.save(_path(argument))
    note(f"saved {counted(len(session.conversation.turns), 'message')} in {argument}")


def _load(session: Session, argument: str) -> None:
    session.conversation.load(_path(argument))
    note(f"loaded {counted(len(session.conversation.turns), 'message')}")


def _path(argument: str) -> Path:
    if not argument:
        raise OptionError("no file is named", remedy="such as /save talk.json")
    return Path(argument)


def _system(session: Session, argument: str) -> None:
    session.conversation.system = argument
    note("the model is told this before all else" if argument else "the model is told nothing before")


def _set(session: Session, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if name:
        session.conversation.set(name, value.strip())
    chosen = {**session.generator.defaults, **session.conversation.sampling}
    note("\n".join(f"{name} = {value}" for name, value in chosen.items()))


def _tokens(session: Session, argument: str) -> None:
    context = session.generator.context
    used = len(session.generator.encode(session.conversation.messages)) if session.conversation.turns else 0
    note(f"the conversation has {counted(used, 'token')}; {context - used:,} of {context:,} are left")
    if session.last is not None:
        last = session.last
        read = counted(last.num_prompt_tokens, "token")
        note(f"the last answer was to {read}, of which {last.num_cached_tokens:,} came from the cache")


def _exit(session: Session, argument: str) -> None:
    session.is_over = True


_COMMANDS = {
    "help": _Command("/help", "these lines", _help),
    "clear": _Command("/clear", "forget what was said", _clear),
    "undo": _Command("/undo", "take the last question and its answer back", _undo),
    "retry": _Command("/retry", "ask the last question again", _retry),
    "save": _Command("/save FILE", "write the conversation to a file", _save),
    "load": _Command("/load FILE", "go on with the conversation of a file", _load),
    "system": _Command("/system TEXT", "what the model is told before all else", _system),
    "set": _Command("/set NAME VALUE", "how answers are chosen, such as /set temperature 0.7", _set),
    "tokens": _Command("/tokens", "how long the conversation is, and what was cached", _tokens),
    "exit": _Command("/exit", "leave", _exit),
}
