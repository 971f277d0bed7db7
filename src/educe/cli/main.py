"""Running the `educe` command: the one place where errors become exit statuses."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from educe import settings
from educe.errors import EduceError, InternalError, OptionError

_INTERRUPTED = 130
# What keeps a stream from being written; other files have a name.
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class _Log(logging.Handler):
    """Prints what the library logs as the command line prints its own warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        from educe.cli.screen import print_warning

        print_warning(record.getMessage())


def run() -> None:
    """Run the command line, and exit with 0, 2 (user error), 3 (unsupported) or 4 (internal fault)."""
    try:
        _run()
    except EduceError as error:
        _report(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        _exit_interrupted()
    except Exception as fault:
        if isinstance(fault, OSError) and fault.filename is None and fault.errno in _OF_OUTPUT:
            _exit_unwritten(fault)
        if settings.TRACEBACK.value():
            sys.excepthook(type(fault), fault, fault.__traceback__)
        remedy = f"this is a fault in Educe: report it with {settings.TRACEBACK.variable}=1"
        _report(InternalError(f"{type(fault).__name__}: {fault}", remedy=remedy))
        sys.exit(InternalError.exit_status)


def _run() -> None:
    _prepare()
    from typer.exceptions import TyperException

    from educe.cli.app import app
    from educe.cli.usage import usage_error

    try:
        status = app(prog_name="educe", standalone_mode=False)
    except TyperException as fault:
        # Without a word, the help was shown in place of an error.
        if fault.format_message():
            raise usage_error(fault) from None
        status = OptionError.exit_status
    # What runs the subcommands makes an interrupt an exit without a word.
    if status == _INTERRUPTED:
        _exit_interrupted()
    sys.stdout.flush()
    sys.exit(status)


def _prepare() -> None:
    # Pillow warns of sloppy metadata in pictures that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("educe").addHandler(_Log(logging.WARNING))
    if hasattr(signal, "SIGPIPE"):
        # Like other commands, end without a word when the reader of a pipe has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Who starts a process with a stream closed wants nothing of it.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Words that the terminal's encoding lacks are worth a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _exit_unwritten(fault: OSError) -> NoReturn:
    # Else the interpreter tries again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    remedy = "make room, or send the output elsewhere"
    _report(OptionError(f"the output cannot be written: {fault.strerror}", remedy=remedy))
    sys.exit(OptionError.exit_status)


def _exit_interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def _report(error: EduceError) -> None:
    """Print an error as the command line asks for results: as JSON, or in words."""
    from educe.cli.screen import error_fields, print_error, print_json

    if "--json" in sys.argv:
        print_json({"error": error_fields(error)}, sys.stderr)
    else:
        print_error(error)
