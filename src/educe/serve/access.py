"""Who may ask: what a key opens, whatever way it comes."""

from __future__ import annotations

import binascii
from base64 import b64decode
from hashlib import sha256
from typing import Literal

from educe.serve.faults import NotFound, Unauthorized
from educe.serve.settings import ServerSettings

Access = Literal["open", "page", "key", "admin"]
"""Who may ask: anyone, who has a key if keys are demanded, or such a one where models may be managed.

What is of the ``page``, and holds no data, takes the key as a password, too, since a browser that opens a
page asks its user for one. Nothing else does: what browsers send by themselves opens no model.
"""

_BASIC = 'Basic realm="educe", charset="UTF-8"'


def tenant_of(settings: ServerSettings, access: Access, authorization: str | None) -> str:
    """Return what tells clients apart who must not learn from each other's caches.

    Args:
        settings: Which keys there are, and whether models may be managed.
        access: Who may ask what is asked.
        authorization: What a request says of its key: ``Bearer KEY``; None if it says nothing.

    Raises:
        NotFound: models cannot be managed.
        Unauthorized: a key is demanded, and there is none, or a wrong one.
    """
    tenant = "" if access == "open" or not settings.api_keys else _tenant(settings, access, authorization)
    if access == "admin" and not settings.admin:
        raise NotFound("models cannot be managed here", remedy="start the server with --admin")
    return tenant


def _tenant(settings: ServerSettings, access: Access, authorization: str | None) -> str:
    kind, _, given = (authorization or "").partition(" ")
    key = given.strip() if kind.lower() == "bearer" else ""
    if access == "page" and kind.lower() == "basic":
        key = _password(given.strip())
    if not settings.accepts_key(key):
        if access == "page":
            raise Unauthorized("no key, or a wrong one", remedy="give it as the password", challenge=_BASIC)
        raise Unauthorized("no key, or a wrong one", remedy="send Authorization: Bearer KEY")
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _password(credentials: str) -> str:
    """Return the password of HTTP's Basic authentication, whoever the user is; empty if there is none."""
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
