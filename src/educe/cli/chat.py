"""``educe chat``: a conversation with a language model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from educe.cli import options
from educe.cli.chat_commands import Session, note, run_command
from educe.cli.completions import completion_fields, follow, print_summary
from educe.cli.conversation import Conversation
from educe.cli.loading import WritingOptions, open_generator
from educe.cli.markdown import MarkdownView, PlainView, View
from educe.cli.message_input import messages
from educe.cli.sampling import AnswerOptions
from educe.cli.screen import error_fields, print_error, print_json
from educe.errors import EduceError

EXAMPLES = """
[bold]Examples[/]\n
educe chat ./qwen3-0.6b --system "Answer in one sentence." --temperature 0.7\n
educe chat ./base-model.gguf --chat-template chatml.jinja\n
printf 'Who was Ada Lovelace?\\nWhen was she born?\\n' | educe chat ./qwen3-0.6b --json
"""


def command(
    model: options.ModelArgument,
    *,
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", help="What the model is told before all else.")
    ] = "",
    answers: AnswerOptions,
    loading: WritingOptions,
    json: options.JsonOption = False,
) -> None:
    """Talk with MODEL, a language model made for it; /help says what else there is to say.

    From a pipe, each line is a message.
    """
    conversation = Conversation(system, answers.keywords())
    with open_generator(model, loading) as generator:
        session = Session(generator, conversation)
        generator.encode([{"role": "user", "content": "?"}])
        status = _talk(session, json)
    if status:
        raise typer.Exit(status)


def _talk(session: Session, json: bool) -> int:
    """Answer until the user leaves, and return the exit status, which no mistake at a terminal changes."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not json
    status = 0
    if is_terminal:
        note(f"{session.generator.checkpoint.path.name}: /help says what there is to say besides questions")
    for message in messages(is_terminal=is_terminal):
        try:
            question = run_command(session, message) if message.startswith("/") else message
            if question is not None:
                _answer(session, question, json)
        except EduceError as error:
            if json:
                print_json({"error": error_fields(error)}, sys.stderr)
            else:
                print_error(error)
            status = 0 if is_terminal else max(status, error.exit_status)
        if session.is_over:
            break
    return status


def _answer(session: Session, question: str, json: bool) -> None:
    """Ask a question, and show the answer while it is written; a question that fails is not kept."""
    conversation = session.conversation
    conversation.ask(question)
    try:
        with session.generator.stream(conversation.messages, **conversation.sampling) as stream:
            if json:
                session.last = follow(stream, lambda piece: None)
                print_json({"input": question, **completion_fields(session.generator, session.last)})
            else:
                with _view() as view:
                    session.last = follow(stream, lambda piece: view.add(piece.text))
                print_summary(session.last)
    except EduceError:
        conversation.undo()
        raise
    conversation.answer(session.last.text)


def _view() -> View:
    return MarkdownView() if sys.stdout.isatty() else PlainView()
