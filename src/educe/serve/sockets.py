"""`bound` and `raise_descriptors`: the sockets that a server listens at, and how many it may have."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from educe.errors import OptionError

_OPEN_MAX = 10_240
"""What macOS takes, where it says that there is no bound."""


def bound(host: str, port: int, option: str, flag: int = socket.SO_REUSEADDR) -> socket.socket:
    """Return a socket that is bound to an address, and does not listen yet.

    Args:
        host: An address of this machine.
        port: The port; 0 for one that is free.
        option: The option that has the port, for the error.
        flag: What others may use of it: addresses of connections that have ended, or with ``SO_REUSEPORT``
            the port.

    Raises:
        OptionError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, flag, 1)
        found.bind((host, port))
    except OSError as fault:
        found.close()
        raise OptionError(
            f"cannot listen at {host}:{port}: {os.strerror(fault.errno or 0).lower()}",
            remedy=f"give another {option}, or end what listens there",
        ) from None
    return found


def raise_descriptors() -> None:
    """Let this process have as many open files and connections as it may, and those that it starts."""
    if sys.platform == "win32":  # which has no such bound
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_MAX if sys.platform == "darwin" and hard == resource.RLIM_INFINITY else hard
    if resource.RLIM_INFINITY != soft != most:
        with suppress(ValueError, OSError):  # the system has a bound of its own: then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
