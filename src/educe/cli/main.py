"""Running the `educe` command: the one place where errors become exit statuses."""

from __future__ import annotations

import io
import logging
import signal
import sys
import warnings

from educe import settings
from educe.errors import EduceError, InternalError

_INTERRUPTED = 130


class _Log(logging.Handler):
    """Prints what the library logs as the command line prints its own warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        from educe.cli.screen import print_warning

        print_warning(record.getMessage())


def run() -> None:
    """Run the command line, and exit with 0, 2 (user error), 3 (unsupported) or 4 (internal fault)."""
    try:
        _prepare()
        from educe.cli.app import app

        app(prog_name="educe")
    except EduceError as error:
        _report(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        _exit_interrupted()
    except SystemExit as end:
        # What runs the subcommands makes an interrupt an exit without a word.
        if end.code == _INTERRUPTED:
            _exit_interrupted()
        raise
    except Exception as fault:
        if settings.TRACEBACK.value():
            sys.excepthook(type(fault), fault, fault.__traceback__)
        remedy = f"this is a fault in Educe: report it with {settings.TRACEBACK.variable}=1"
        _report(InternalError(f"{type(fault).__name__}: {fault}", remedy=remedy))
        sys.exit(InternalError.exit_status)


def _prepare() -> None:
    # Pillow warns of sloppy metadata in pictures that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("educe").addHandler(_Log(logging.WARNING))
    if hasattr(signal, "SIGPIPE"):
        # Like other commands, end without a word when the reader of a pipe has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        # Words that the terminal's encoding lacks are worth a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _exit_interrupted() -> None:
    print("interrupted", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def _report(error: EduceError) -> None:
    """Print an error as the command line asks for results: as JSON, or in words."""
    from educe.cli.screen import error_fields, print_error, print_json

    if "--json" in sys.argv:
        print_json({"error": error_fields(error)}, sys.stderr)
    else:
        print_error(error)
