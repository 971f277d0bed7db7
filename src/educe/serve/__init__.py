"""Models behind HTTP: the Open Inference Protocol, the OpenAI API, and a page to try them."""

from __future__ import annotations

from educe.serve.asgi import AsgiApp
from educe.serve.opening import ModelSource
from educe.serve.server import Server
from educe.serve.settings import ServerLimits, ServerSettings

__all__ = ["AsgiApp", "ModelSource", "Server", "ServerLimits", "ServerSettings"]
