"""`bound`: the sockets of the addresses at which a server listens."""

from __future__ import annotations

import os
import socket

from educe.errors import OptionError


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
