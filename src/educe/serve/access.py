"""Who may ask: what a key opens, whatever way it comes."""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

from educe.serve.faults import NotFound, Unauthorized
from educe.serve.settings import ServerSettings

Access = Literal["open", "key", "admin"]
"""Who may ask: anyone, who has a key if keys are demanded, or such a one where models may be managed."""


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
    if access == "admin" and not settings.admin:
        raise NotFound("models cannot be managed here", remedy="start the server with --admin")
    if not settings.api_keys or access == "open":
        return ""
    kind, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if kind.lower() != "bearer" or not settings.accepts_key(key):
        raise Unauthorized("no key, or a wrong one", remedy="send Authorization: Bearer KEY")
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
