"""What the process of a worker runs."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys

from educe.errors import EduceError
from educe.serve.server import Server
from educe.serve.workers.link import receive, send
from educe.serve.workers.messages import Failed
from educe.serve.workers.worker import Worker


def work(link: int, connections: int) -> None:
    """Be a worker, in a process that a `Seat` has started.

    Args:
        link: The number of the socket to the supervisor.
        connections: The number of the socket from which connections come.
    """
    # The supervisor tells the end; what a service manager sends to all processes would end requests.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=link)
    spare = end.dup()  # the link closes its own
    try:
        beginning = receive(end)
    except ConnectionError:
        sys.exit(0)  # the supervisor is gone
    logging.getLogger("educe.serve").setLevel(beginning.log_level)
    try:
        worker = Worker(beginning.index, end, socket.socket(fileno=connections))
        Server(beginning.sources, beginning.settings, worker).run(lambda url: worker.started())
    except EduceError as error:
        with contextlib.suppress(OSError):
            send(spare, Failed(error))
        sys.exit(error.exit_status)
